"""A plan as a file that a person can review and edit: JSON with one move a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters import ADAPTERS
from ..core.names import Selector, nearest
from ..core.plan import Adapter, LoadPlan, Match, Specs, plan_of
from ..core.registry import part_named
from ..core.report import LoadReport as Report
from ..engines.files import write_file
from ..errors import LoadError

FORMAT, VERSION = "torchkeep-plan", 1
_KEYS = {"format", "version", "source", "allow", "moves", "unloaded"}
_MOVE_KEYS = {"target", "source", "rule", "confidence", "adapter", "options", "does"}


class LoadReport(Report):
    """What was loaded into a model and what was not; what `plan_load` answers can be kept as a file."""

    def save_plan(self, path: str | os.PathLike[str], *, allow: Any = None) -> None:
        """Write the plan as JSON to review, to edit, and to give to `load_into(..., plan=path)`.

        The file appears in one step. Its `moves` say which name of the source goes to which of the model, by which
        adapter; `allow` what may stay unloaded; `unloaded` is for the reader alone.

        Args:
            path: an existing file is replaced.
            allow: selectors that go into the file; if None, those that were given when it was loaded.

        Raises:
            SaveError: it cannot be written there.
        """
        allowed = list(self.allowed if allow is None else Selector.of(allow).texts)
        write_file(Path(path), [_written(self, allowed).encode()])


def _written(report: Report, allow: list[str]) -> str:
    plan = report.plan
    head = {"format": FORMAT, "version": VERSION, "source": report.source, "allow": allow}
    unloaded = {
        "missing": list(plan.missing),
        "unexpected": list(plan.unexpected),
        "mismatched": [
            {"target": one.target, "source": one.source, "reason": one.reason} for one in plan.mismatched
        ],
    }  # fmt: skip
    lines = [f"  {_json(key)}: {_json(value)}," for key, value in head.items()]
    moves = ",\n".join(f"    {_json(_move(move, plan))}" for move in plan.moves)
    lines += ['  "moves": [', *([moves] if moves else []), "  ],", f'  "unloaded": {_json(unloaded)}']
    return "\n".join(["{", *lines, "}", ""])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def _move(move: Any, plan: LoadPlan) -> dict[str, Any]:
    row: dict[str, Any] = {"target": move.target, "source": move.source, "rule": move.rule}
    if move.confidence < 1:
        row["confidence"] = move.confidence
    if move.adapter:
        row |= {"adapter": move.adapter, "options": dict(plan.adapters[move.target].options), "does": move.says}
    return row


def read_plan(
    path: str | os.PathLike[str], target: Specs, source: Specs, tied: Mapping[str, str], own: Mapping[str, Adapter]
) -> tuple[LoadPlan, list[str]]:
    """A plan from its file, held against both sides, and what it allows to stay unloaded.

    Args:
        path: of the file.
        target, source: of the model and of what it is loaded from.
        tied: names of the model that are another one's tensor.
        own: adapters of the caller, by name.

    Raises:
        LoadError: it is no plan, of another version, or an entry does not fit; the message names file and entry.
    """
    file = os.fspath(path)
    document = _document(file)
    paired: dict[str, Match] = {}
    adapting: list[tuple[Selector, Adapter]] = []
    for number, entry in enumerate(document["moves"]):
        place = f"{file}: moves[{number}]"
        to, match = _pair(entry, place, target, source)
        if to in paired:
            raise LoadError(f"{place}: {to!r} is the target of an earlier move too", hint="take one of the two out")
        paired[to] = match
        if entry.get("adapter"):
            adapting.append((_only(to), _adapter(entry, place, own)))
        elif entry.get("options"):
            raise LoadError(f"{place}: there are options and no adapter", hint=f"adapters are {', '.join(ADAPTERS)}")
    plan = plan_of(target, source, paired, tied, adapting)
    if plan.mismatched:
        wrong = plan.mismatched[0]
        number = list(paired).index(wrong.target)
        raise LoadError(
            f"{file}: moves[{number}]: {wrong.source!r} does not fit {wrong.target!r}: {wrong.reason}",
            hint="give the entry an adapter, or take it out and allow the name",
        )
    return plan, document["allow"]


def _document(file: str) -> dict[str, Any]:
    """The file as far as it can be checked without a model."""
    hint = "tk.plan_load(model, source).save_plan(path) writes one"
    try:
        document = json.loads(Path(file).read_bytes())
    except FileNotFoundError as error:
        raise LoadError(f"{file}: there is no such plan", hint=hint) from error
    except OSError as error:
        raise LoadError(f"{file}: cannot be read: {error.strerror or error}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file}: is no plan: {error}", hint=hint) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LoadError(f'{file}: is no plan: it does not say "format": "{FORMAT}"', hint=hint)
    if document.get("version") != VERSION:
        raise LoadError(
            f"{file}: is a plan of version {document.get('version')!r}, and this torchkeep reads {VERSION}",
            hint="make it anew, or use the torchkeep that wrote it",
        )
    _no_others(document, _KEYS, file)
    allow, moves = document.setdefault("allow", []), document.get("moves")
    if isinstance(allow, str):
        allow = document["allow"] = [allow]
    if not isinstance(allow, list) or not all(isinstance(text, str) for text in allow):
        raise LoadError(f"{file}: allow is no list of names", hint='as in "allow": ["fc.*"]')
    if not isinstance(moves, list) or not all(isinstance(entry, dict) for entry in moves):
        raise LoadError(f"{file}: moves is no list of objects", hint=hint)
    return document


def _no_others(entry: Mapping[str, Any], known: set[str], place: str) -> None:
    others = sorted(entry.keys() - known)
    if others:
        close = nearest(others[0], known, 1)
        raise LoadError(
            f"{place}: {others[0]!r} means nothing here", hint=f"did you mean {close[0]!r}?" if close else "take it out"
        )


def _pair(entry: Mapping[str, Any], place: str, target: Specs, source: Specs) -> tuple[str, Match]:
    _no_others(entry, _MOVE_KEYS, place)
    for key, names, what in (("target", target, "the model"), ("source", source, "the source")):
        name = entry.get(key)
        if not isinstance(name, str):
            raise LoadError(f"{place}: has no {key}", hint='a move is {"target": ..., "source": ...}')
        if name not in names:
            close = nearest(name, names)
            hint = f"the nearest are {', '.join(map(repr, close))}" if close else "tk.plan_load shows what there is"
            raise LoadError(f"{place}: {what} has no {name!r}", hint=hint)
    rule, confidence = entry.get("rule", "plan"), entry.get("confidence", 1.0)
    if not isinstance(rule, str) or isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        raise LoadError(f"{place}: rule is a name and confidence a number", hint="leave both out")
    return entry["target"], Match(entry["source"], rule, float(confidence))


def _adapter(entry: Mapping[str, Any], place: str, own: Mapping[str, Adapter]) -> Adapter:
    name, options = entry["adapter"], entry.get("options", {})
    if isinstance(name, str) and name in own:
        return own[name]
    if not isinstance(name, str) or name not in ADAPTERS:
        raise LoadError(
            f"{place}: there is no adapter {name!r}",
            hint=f"known are {', '.join(ADAPTERS)}; one of your own is given as adapt={{name: instance}} too",
        )
    try:
        made: Adapter = part_named(ADAPTERS, name, "adapter")(**options)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"{place}: {name} takes other options: {error}", hint="tk.plan_load(...).save_plan writes them as they are"
        ) from error
    return made


def _only(name: str) -> Selector:
    """A selector of one name alone, whatever characters it has."""
    return Selector(re.compile(rf"\A{re.escape(name)}\Z"))
