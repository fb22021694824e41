"""What happened: reports that verbs return, made to be printed, tested and sent as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import IncompatibleCheckpointError
from .names import Selector, fold
from .plan import LoadPlan, Mismatch, Move, not_allowed
from .table import Table, human_bytes, human_count, shorten

Require = float | Mapping[Any, float] | None


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a model and what was not.

    Attributes:
        source: the file or object the weights came from.
        plan: the decision it follows.
        applied: False for a dry run or a refused load.
        notes: what else the caller should know.
        allowed: selectors of names that were allowed to stay unloaded.
        checked: how far the outputs were from those of the reference at most; None where they were not compared.
    """

    source: str
    plan: LoadPlan
    applied: bool = False
    notes: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    checked: float | None = None

    @property
    def moves(self) -> tuple[Move, ...]:
        """Each tensor that is copied or adapted, with its rule, its adapter and its confidence."""
        return self.plan.moves

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Each tensor that does not fit, with the reason."""
        return self.plan.mismatched

    @property
    def matches(self) -> tuple[Move | Mismatch, ...]:
        """Each pair of names that a rule has found, whether the tensors fit or not, in the order of the model."""
        order = {name: place for place, name in enumerate(self.plan.target)}
        return tuple(sorted((*self.moves, *self.mismatches), key=lambda match: order[match.target]))

    @cached_property
    def _taken(self) -> dict[str, int]:
        """First name of each tensor of the model -> how many of its elements come from the source, where any do."""
        taken: dict[str, int] = {}
        for move in self.moves:
            if move.taken or not move.spec.numel:
                name = self.plan.tied.get(move.target, move.target)
                taken[name] = max(move.taken, taken.get(name, 0))
        return taken

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the model that get values from the source, those of tied tensors included."""
        return tuple(name for name in self.plan.target if self.plan.tied.get(name, name) in self._taken)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the model that the source does not have."""
        return self.plan.missing

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Names of the source that the model does not have."""
        return self.plan.unexpected

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Names of the model whose tensor in the source has another shape or an incompatible dtype."""
        return tuple(mismatch.target for mismatch in self.plan.mismatched)

    @property
    def adapted(self) -> tuple[str, ...]:
        """Names of the model that an adapter makes fit."""
        return tuple(move.target for move in self.moves if move.adapter)

    @property
    def coverage(self) -> float:
        """Share of the model's elements, parameters and buffers, that come from the source; tied tensors count once."""
        return self._covered(self.plan.target)

    @property
    def coverage_by_module(self) -> dict[str, float]:
        """The same for each module at the top of the model, and for each tensor that lies there itself."""
        tops: dict[str, list[str]] = {}
        for name in self.plan.target:
            tops.setdefault(name.partition(".")[0], []).append(name)
        return {top: self._covered(names) for top, names in tops.items()}

    def _covered(self, names: Iterable[str]) -> float:
        own = {self.plan.tied.get(name, name) for name in names}
        total = sum(self.plan.target[name].numel for name in own)
        return sum(self._taken.get(name, 0) for name in own) / total if total else 1.0

    def refused(self, allow: Selector | None) -> tuple[list[str], list[str], list[str]]:
        """What would stay unloaded without having been allowed: missing, unexpected, mismatched."""
        return (
            not_allowed(self.missing, allow),
            not_allowed(self.unexpected, allow),
            not_allowed(self.mismatched, allow),
        )

    def check(self, allow: Any = None, require: Require = None) -> None:
        """Refuse what the caller did not allow, and less than he requires.

        Args:
            allow: selectors of names that may stay unloaded.
            require: the share of the model's elements that must come from the source, from 0 to 1; or selectors of
                names, each with the share of what it chooses.

        Raises:
            IncompatibleCheckpointError: something else would stay unloaded, or too little is covered; it names an
                `allow` that would pass, or what is not covered.
            SelectorError: a selector of `require` chooses nothing.
        """
        missing, unexpected, mismatched = self.refused(Selector.of(allow) if allow else None)
        parts = [
            f"{len(names)} {what} ({shorten(names, 3)})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
            if names
        ]
        if parts:
            raise IncompatibleCheckpointError(
                f"{self.source} does not fit the model: {', '.join(parts)}. Nothing was loaded.\n{self}",
                report=self,
                hint=self._advice([*missing, *unexpected, *mismatched]),
            )
        self._check_required(require)

    def _check_required(self, require: Require) -> None:
        wanted = require if isinstance(require, Mapping) else {} if require is None else {"*": require}
        for selection, share in wanted.items():
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ValueError(f"require={share!r} is no share; it is a number from 0 to 1")
            if not self.plan.target:
                continue
            selector = Selector.of(selection)
            selector.check(self.plan.target, "require", "the model")
            names = selector.choose(self.plan.target)
            covered = self._covered(names)
            if covered >= share:
                continue
            lacking = [name for name in names if self._covered([name]) < 1]
            what = "the model" if not isinstance(require, Mapping) else str(selector)
            raise IncompatibleCheckpointError(
                f"{self.source} covers {_percent(covered)} of {what}, and {_percent(share)} are required. Not covered: "
                f"{shorten((text for text, _ in _folded(lacking)), 5)}. Nothing was loaded.\n{self}",
                report=self,
                hint="take another file or rule, or require less",
            )

    def _advice(self, names: list[str]) -> str:
        if not self.matches:
            return (
                "no name matches: is it the right file, or does a prefix differ? rules=[tk.strip('...')] takes one off"
            )
        groups = names
        if len(groups) > 6:
            groups = sorted({name.rpartition(".")[0] + ".*" if "." in name else name for name in names})
        if len(groups) > 6:
            groups = sorted({name.split(".")[0] + ".*" if "." in name else name for name in names})[:6]
        return f"if that is meant, name it: allow={groups}"

    def table(self) -> Table:
        """Folded by layer: what was copied by which rule, and what was not."""
        rows = [row for (verb, how), names in self._done().items() for row in self._rows(verb, how, names)]
        for reason in dict.fromkeys(mismatch.reason for mismatch in self.mismatches):
            for text, members in _folded(one.target for one in self.mismatches if one.reason == reason):
                rows.append((text, "MISMATCHED", str(len(members)), "", reason))
        for text, members in _folded(self.missing):
            rows.append((text, "MISSING", str(len(members)), self._sizes(members), "the source does not have it"))
        for text, members in _folded(self.unexpected):
            rows.append((text, "UNEXPECTED", str(len(members)), "", "the model does not have it"))
        return Table(
            title=f"{'loaded' if self.applied else 'plan for loading'} {self.source}",
            facts=(
                ("coverage", f"{_percent(self.coverage)} of the model's elements"),
                ("by module", self._by_module()),
                ("outputs", "" if self.checked is None else f"at most {self.checked:.3g} from the reference"),
            ),
            columns=("name", "what", "count", "elements", "why"),
            rows=tuple(rows),
            notes=self.notes,
        )

    def _done(self) -> dict[tuple[str, str], list[str]]:
        """What is done, and by which adapter how -> the names of the model to which it is done."""
        adapted = {move.target: f"{move.adapter}: {move.says}" for move in self.moves if move.adapter}
        copied, changed = ("copied", "adapted") if self.applied else ("copy", "adapt")
        done: dict[tuple[str, str], list[str]] = {(copied, ""): []}
        for name in self.plan.target:
            if name in adapted:
                done.setdefault((changed, adapted[name]), []).append(name)
            elif self.plan.tied.get(name, name) in self._taken:
                done[copied, ""].append(name)
        return done

    def _rows(self, verb: str, how: str, names: list[str]) -> Iterator[tuple[str, ...]]:
        move_of = {move.target: move for move in self.moves}
        for text, members in _folded(names):
            moves = [move_of[name] for name in members if name in move_of]
            why = sorted({move.rule for move in moves}) or ["tied"]
            sure = min((move.confidence for move in moves), default=1.0)
            why += [f"confidence {math.floor(sure * 100) / 100:.2f}"] if sure < 1 else []
            why += sorted({f"cast from {move.cast_from}" for move in moves if move.cast_from})
            why += [how] if how else []
            yield text, verb, str(len(members)), self._sizes(members), ", ".join(why)

    def _sizes(self, names: list[str]) -> str:
        """Elements of some tensors: `12 x 590 k` where all have as many."""
        sizes = [self.plan.target[name].numel for name in names if name not in self.plan.tied]
        if len(sizes) > 1 and len(set(sizes)) == 1:
            return f"{len(sizes)} x {human_count(sizes[0])}"
        return human_count(sum(sizes))

    def _by_module(self) -> str:
        shares = self.coverage_by_module
        if len(shares) < 2 or not any("." in name for name in self.plan.target):  # the rows say as much
            return ""
        partly = [f"{top} {_percent(share)}" for top, share in shares.items() if share < 1]
        whole = [top for top, share in shares.items() if share == 1]
        if whole and partly:
            partly.append(f"{shorten(whole, 4)} 100 %")
        return shorten(partly, 6) if partly else "100 % of each"

    def __str__(self) -> str:
        return str(self.table())


def _folded(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names folded by their numbers, and where that are many by their modules too: `layer.{0..11}.attention.*`."""
    groups = fold(names)
    if len(groups) <= _MANY:
        return groups
    modules: dict[str, list[str]] = {}
    for _, members in groups:
        for name in members:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    out = []
    for text, paths in fold(modules):
        members = [name for path in paths for name in modules[path]]
        out.append((members[0] if len(members) == 1 else f"{text}.*" if text else "*", members))
    return out


_MANY = 24  # rows that one still looks through


def _percent(share: float) -> str:
    """Never says 100 % of something that is not whole."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.99):.2f} %"


@dataclass(frozen=True)
class SaveReport:
    """What a save wrote.

    Attributes:
        path: the file, or the snapshot's key in its run.
        bytes_written: bytes that went to the disk in this save.
        bytes_total: bytes of all tensors that were saved, written now or before; those with several names count once.
        seconds: from the call to the commit.
        sequence: number of the snapshot; 0 for a single file.
        tensors_written, tensors_total: the same in tensors.
        engine: what wrote the tensors, `direct` or `buffered`; empty where none were new.
        notes: what is not stored as it was, e.g. views of one storage that became tensors of their own.
    """

    path: str
    bytes_written: int
    bytes_total: int
    seconds: float
    sequence: int = 0
    tensors_written: int = 0
    tensors_total: int = 0
    engine: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = f"snapshot {self.sequence}" if self.sequence else self.path
        engine = f", {self.engine}" if self.engine else ""
        text = (
            f"saved {what}: wrote {human_bytes(self.bytes_written)} in {self.seconds:.2f} s{engine} "
            f"({self.tensors_written} of {self.tensors_total} tensors; all of them: {human_bytes(self.bytes_total)})"
        )
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: the file.
        bytes: its size, with that of the file of its weights where there is one.
        difference: the largest absolute difference between its outputs and the model's; None where it was not checked.
        checked: the inputs it was checked on: dtype and shape of their tensors.
        notes: what else the caller should know.
    """

    path: str
    bytes: int
    difference: float | None
    checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"exported {self.path}: {human_bytes(self.bytes)}; "
        if self.difference is None:
            text += "not checked against the model"
        else:
            text += f"differs from the model by {self.difference:.2g} at most, on {' and '.join(self.checked)}"
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Skipped:
    """A snapshot that could not be used, and why."""

    sequence: int
    reason: str


@dataclass(frozen=True)
class ResumeReport:
    """How a run was continued.

    Attributes:
        sequence: the snapshot it continues from; 0 for a new run.
        step: the step of that snapshot; -1 for a new run.
        next_step: what `resume` returned.
        restored: what was restored: `model`, `optimizer`, `scheduler`, `rng`.
        skipped: newer snapshots that are damaged, each with the reason.
        notes: what was changed to be as in the snapshot.
        lost: what is not as it was saved.
        extra: the `extra` that was saved.
    """

    sequence: int = 0
    step: int = -1
    next_step: int = 0
    restored: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    extra: Any = None

    def __str__(self) -> str:
        if not self.sequence:
            return "nothing to resume: the run is new"
        head = f"resumed from snapshot {self.sequence} (step {self.step}): {', '.join(self.restored)}"
        return "\n  ".join([head, *self.skips, *self.lost, *self.notes])

    @property
    def skips(self) -> tuple[str, ...]:
        """A sentence for each snapshot that was skipped."""
        return tuple(f"snapshot {one.sequence} was skipped: {one.reason}" for one in self.skipped)


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written, or that nothing can be checked against.

    Attributes:
        what: the file, the tensor, or the snapshot.
        reason: what is wrong with it.
        tensors: of a snapshot, the full names of the tensors that it has lost.
    """

    what: str
    reason: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """Whether every byte of a file or run is as it was written.

    Attributes:
        path: what was verified.
        checked: tensors, records and manifests that were hashed.
        nbytes: bytes that were hashed.
        damaged: what is wrong.
        unchecked: what the format carries no digest or checksum for.
        notes: what is harmless but worth knowing, e.g. files that belong to no snapshot.
    """

    path: str
    checked: int = 0
    nbytes: int = 0
    damaged: tuple[Damage, ...] = ()
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True only if all of it was checked and all of it is intact."""
        return not self.damaged and not self.unchecked

    def table(self) -> Table:
        """The verdict and each damage."""
        verdict = "intact" if self.ok else "DAMAGED" if self.damaged else "cannot be verified"
        return Table(
            title=f"{self.path}: {verdict}",
            facts=(("checked", f"{self.checked} parts, {human_bytes(self.nbytes)}"),),
            columns=("what", "problem") if self.damaged else (),
            rows=tuple((damage.what, damage.reason) for damage in self.damaged),
            notes=(*self.unchecked, *self.notes),
        )

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote.

    Attributes:
        source, target: the files.
        save: the report of the write.
        notes: what is not in the new file.
    """

    source: str
    target: str
    save: SaveReport
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join([f"converted {self.source} to {self.target}", str(self.save), *(f"  {n}" for n in self.notes)])
