"""Trials: one training for each candidate and seed, done once and remembered."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.digests import digest_bytes, digest_tensor
from ..core.live import named_buffers, named_parameters, spec_of
from ..core.table import shorten
from ..core.transfer import Candidate, Examples, Outcome, Recipe
from ..errors import DataError, RunLockedError
from ..running import Run, local_store
from ..surgery import reinitialise
from ..surgery.trial import version_of
from .caching import Cache
from .study import Study, outcome_of, told
from .training import try_out

_NAP = 0.2  # seconds between two looks at trials that other processes do


class Trials:
    """One training for each candidate and seed.

    With a folder each is a run in `trials/<name>-<seed>`, with its history and its last weights; what it gave is in
    the study beside. A trial that is finished there is not done again. Processes that share the folder share the work.

    Attributes:
        notes: what was not as it should be, in sentences.
    """

    def __init__(
        self,
        folder: Path | None,
        model: nn.Module,
        head: str,
        examples: Examples,
        candidates: Sequence[Candidate],
        recipe: Recipe,
        *,
        cache: Cache | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare them.

        Args:
            folder: where they are kept; None for in memory.
            model: pretrained, with a head that fits; it is copied for each trial, and is not changed.
            head: path of the head, which gets fresh values in each trial.
            examples: on the device of the model.
            candidates: the ways of training.
            recipe: the same for all of them.
            cache: of activations of this model over these examples.
            progress: is called with a line about each trial that was done.

        Raises:
            MissingDependencyError: Optuna is not installed.
            DataError: the folder has trials of something else.
        """
        self.notes: list[str] = []
        self._folder, self._model, self._head = folder, model, head
        self._examples, self._recipe, self._cache = examples, recipe, cache
        self._progress = progress
        self._candidates = {candidate.name: candidate for candidate in candidates}
        made_of = {
            "weights": _digest({**dict(named_parameters(model)), **dict(named_buffers(model))}),
            "examples": _digest(
                {**{f"inputs.{name}": tensor for name, tensor in examples.tensors.items()}, "labels": examples.labels}
            ),
            "candidates": digest_bytes(repr(list(candidates)).encode(errors="backslashreplace")),
            "recipe": digest_bytes(repr(recipe).encode()),
            "layers": digest_bytes(re.sub(r"\b0x[0-9a-f]+", "", repr(model)).encode(errors="backslashreplace")),
        }
        if any(candidate.start == "scratch" for candidate in candidates):
            left = fresh(copy.deepcopy(model), 0)
            if left:
                note = f"no module makes fresh values for {shorten(left, 3)}; from scratch they got what is usual"
                self.notes.append(note)
        self._made_of = made_of
        self._study = Study(folder, list(self._candidates), made_of)
        self._known = self._study.finished()

    def outcome(self, name: str, seed: int) -> Outcome:
        """What one trial gave: it is done, or waited for where another process does it, or remembered."""
        return self.outcomes([(name, seed)])[name, seed]

    def outcomes(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Outcome]:
        """What some trials gave, by name of the candidate and seed.

        Raises:
            TorchkeepError, or what the model raises: a trial broke off; a note on the error names it.
        """
        left = list(dict.fromkeys(wanted))
        while left := [pair for pair in left if pair not in self._known]:
            done = sum(self._try(name, seed) for name, seed in left)
            if not done:
                time.sleep(_NAP)
                self._known |= self._study.finished()
        return {pair: self._known[pair] for pair in wanted}

    def path(self, name: str, seed: int) -> Path | None:
        """The folder of a trial's run; None where there is none."""
        if self._folder is None:
            return None
        plain = re.sub(r"[^\w.\-]+", "-", name)[:40].strip("-.") or "trial"  # letters may take four bytes
        place = list(self._candidates).index(name)
        return self._folder / "trials" / f"{place}-{plain}-{seed}"

    def _try(self, name: str, seed: int) -> bool:
        """Do one trial, unless another process does; whether it is finished."""
        path = self.path(name, seed)
        if path is None:
            self._do(name, seed, None)
            return True
        store = local_store(path)
        try:
            store.lock()
        except RunLockedError:
            return False
        with Run(path, store=store) as run:
            self._known |= self._study.finished()  # who had the lock may have finished it
            if (name, seed) not in self._known:
                self._do(name, seed, run)
        return True

    def _do(self, name: str, seed: int, run: Run | None) -> None:
        trial = self._study.begin(name, seed)
        try:
            outcome = self._trained(self._candidates[name], seed, run)
        except BaseException as error:
            self._study.fail(trial)
            error.add_note(f"in the trial of {name!r} with seed {seed}")
            raise
        self._study.finish(trial, outcome, "" if run is None else run.path.name)
        self._known[name, seed] = outcome
        if self._progress is not None:
            self._progress(f"{name}, seed {seed}: {outcome.score:.1%} held out, {outcome.seconds:.1f} s")

    def _trained(self, candidate: Candidate, seed: int, run: Run | None) -> Outcome:
        model = self.start(candidate, seed)
        if run is not None and run.resume(model=model):
            return self._saved(run)
        outcome = try_out(
            model,
            self._examples,
            candidate,
            self._recipe,
            seed=seed,
            log=None if run is None else lambda row: run.log(**row),
            scores=None if self._cache is None else self._cache.scores(model),
        )
        if run is not None:
            run.log(
                epoch=self._recipe.epochs - 1,
                train_loss=outcome.train_loss,
                train_accuracy=outcome.train_accuracy,
                val_loss=outcome.loss,
                val_accuracy=outcome.score,
            )
            extra = {"made of": self._made_of, "outcome": told(outcome), "candidate": candidate.name, "seed": seed}
            run.save(self._recipe.epochs - 1, model=model, extra=extra)
        return outcome

    def _saved(self, run: Run) -> Outcome:
        """What a trial gave that a process finished and did not live to tell."""
        extra: Any = None if run.last_resume is None else run.last_resume.extra
        if not isinstance(extra, dict) or extra.get("made of") != self._made_of:
            raise DataError(f"{run.path} is a run of something else", hint="give this sweep a folder of its own")
        return outcome_of(extra["candidate"], extra["seed"], extra["outcome"])

    def start(self, candidate: Candidate, seed: int) -> nn.Module:
        """The model that a trial starts from: a copy with a fresh head, or fresh altogether."""
        model = copy.deepcopy(self._model)
        reinitialise(model, self._head, seed=seed)
        if candidate.start == "scratch":
            fresh(model, seed)
        return model


def fresh(model: nn.Module, seed: int) -> list[str]:
    """Give a model fresh values throughout, in place; answers the names of parameters that a rule of thumb gave theirs.

    Each module initialises what it can. What none does, such as a class token, gets what is usual for its kind: small
    random numbers, or 1 where it is a vector that scales, or 0 where it is a bias.
    """
    before = {id(one): version_of(one) for one in model.parameters()}
    reinitialise(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    left = []
    for name, parameter in named_parameters(model):
        if version_of(parameter) != before[id(parameter)] or not parameter.is_floating_point():
            continue
        left.append(name)
        with torch.no_grad():
            if sum(size > 1 for size in parameter.shape) > 1 or 1 in parameter.shape:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return left


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """One digest of tensors by name."""
    listed = [(name, str(spec_of(tensor)), digest_tensor(tensor.detach().cpu())) for name, tensor in tensors.items()]
    return digest_bytes(repr(sorted(listed)).encode())
