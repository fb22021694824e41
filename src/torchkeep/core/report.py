"""What happened: reports that verbs return, made to be printed, tested and sent as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import IncompatibleCheckpointError
from .names import Selector, fold
from .plan import LoadPlan, Mismatch, Move, not_allowed
from .table import Table, human_bytes, human_count, shorten


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a model and what was not.

    Attributes:
        source: the file or object the weights came from.
        plan: the decision it follows.
        applied: False for a dry run or a refused load.
        notes: what else the caller should know.
    """

    source: str
    plan: LoadPlan
    applied: bool = False
    notes: tuple[str, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        """Each copied tensor with the rule that paired it."""
        return self.plan.moves

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Each tensor that does not fit, with the reason."""
        return self.plan.mismatched

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the model that get their values from the source, those of tied tensors included."""
        reached = {self.plan.tied.get(move.target, move.target) for move in self.plan.moves}
        return tuple(name for name in self.plan.target if self.plan.tied.get(name, name) in reached)

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
        """Names of the model that were loaded from a tensor of another shape. No adapter exists yet, so none."""
        return ()

    @property
    def coverage(self) -> float:
        """Share of the model's elements, parameters and buffers, that were loaded; tied tensors count once."""
        own = {name: spec for name, spec in self.plan.target.items() if name not in self.plan.tied}
        total = sum(spec.numel for spec in own.values())
        loaded = sum(own[name].numel for name in self.loaded if name in own)
        return loaded / total if total else 1.0

    def refused(self, allow: Selector | None) -> tuple[list[str], list[str], list[str]]:
        """What would stay unloaded without having been allowed: missing, unexpected, mismatched."""
        return (
            not_allowed(self.missing, allow),
            not_allowed(self.unexpected, allow),
            not_allowed(self.mismatched, allow),
        )

    def check(self, allow: Any = None) -> None:
        """Refuse what the caller did not allow.

        Args:
            allow: selectors of names that may stay unloaded.

        Raises:
            IncompatibleCheckpointError: something else would stay unloaded; it names an `allow` that would pass.
        """
        missing, unexpected, mismatched = self.refused(Selector.of(allow) if allow else None)
        if not (missing or unexpected or mismatched):
            return
        parts = [
            f"{len(names)} {what} ({shorten(names, 3)})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
            if names
        ]
        raise IncompatibleCheckpointError(
            f"{self.source} does not fit the model: {', '.join(parts)}. Nothing was loaded.\n{self}",
            report=self,
            hint=self._advice([*missing, *unexpected, *mismatched]),
        )

    def _advice(self, names: list[str]) -> str:
        if not self.loaded:
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
        rows = []
        rule_of = {move.target: move for move in self.moves}
        for text, members in fold(self.loaded):
            moves = [rule_of[name] for name in members if name in rule_of]
            size = sum(self.plan.target[name].numel for name in members if name not in self.plan.tied)
            casts = sorted({f"cast from {move.cast_from}" for move in moves if move.cast_from})
            rules = sorted({move.rule for move in moves}) or ["tied"]
            rows.append(
                (
                    text,
                    "copied" if self.applied else "copy",
                    str(len(members)),
                    human_count(size),
                    ", ".join(rules + casts),
                )
            )
        for reason in dict.fromkeys(mismatch.reason for mismatch in self.mismatches):
            for text, members in fold(one.target for one in self.mismatches if one.reason == reason):
                rows.append((text, "MISMATCHED", str(len(members)), "", reason))
        for text, members in fold(self.missing):
            size = sum(self.plan.target[name].numel for name in members)
            rows.append((text, "MISSING", str(len(members)), human_count(size), "the source does not have it"))
        for text, members in fold(self.unexpected):
            rows.append((text, "UNEXPECTED", str(len(members)), "", "the model does not have it"))
        return Table(
            title=f"{'loaded' if self.applied else 'plan for loading'} {self.source}",
            facts=(("coverage", f"{_percent(self.coverage)} of the model's elements"),),
            columns=("name", "what", "count", "elements", "why"),
            rows=tuple(rows),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


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
