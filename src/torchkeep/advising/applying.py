"""Doing to a model what a plan says, and the plan that stays with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..core.checkpoint import Checkpoint
from ..core.names import selection_of
from ..core.table import Table, human_count
from ..core.transfer_plan import Step, TransferPlan, as_operation, plan_in, trained
from ..engines.files import read_file, write_file
from ..errors import SurgeryError
from ..freezing import freeze
from ..pointing import checkpoint_of
from ..surgery import Change, adapt_input, history, reinitialise, resize_head
from ..surgery.initialising import seeded
from ..surgery.recording import record, settle
from ..surgery.trial import Values, target_of, undone_on_failure


@dataclass(frozen=True)
class ApplyReport:
    """What applying a plan did.

    Attributes:
        plan: the plan.
        changes: what each step of its surgery did, in order; with `scratch` the fresh weights are the last.
        trainable, total: elements that are trained in the first phase, and all.
    """

    plan: TransferPlan
    changes: tuple[Change, ...]
    trainable: int
    total: int

    def table(self) -> Table:
        """One row a change."""
        share = f" ({self.trainable / self.total:.1%})" if self.total else ""
        return Table(
            title=f"applied: {self.plan.said}",
            facts=(
                ("trains", trained(self.plan.freeze)),
                ("trainable", f"{human_count(self.trainable)} of {human_count(self.total)} elements{share}"),
            ),
            columns=("step", "where", "before", "after"),
            rows=tuple((one.verb, one.name, one.before, one.after) for one in self.changes),
            notes=tuple(one.note for one in self.changes if one.note),
        )

    def __str__(self) -> str:
        return str(self.table())


def apply(plan: TransferPlan, model: nn.Module, *, seed: int | None = None) -> ApplyReport:
    """Do to a model what a plan says: surgery, what it starts from, and what is frozen in the first phase.

    >>> report = tk.apply(tk.read_plan("plan.yaml"), model)                             # doctest: +SKIP
    >>> optimizer = torch.optim.AdamW(tk.param_groups(model, lr=report.plan.recipe.lr))  # doctest: +SKIP

    The plan stays with the model: copies have it, `tk.save` and the snapshots of a run keep it, and `tk.plan_of` gives
    it back. Do this before making the optimizer.

    Args:
        plan: what `tk.advise` or `tk.read_plan` gives.
        model: with the weights to start from; wrappers are seen through.
        seed: of fresh values, which leaves the global generators alone; None draws from those.

    Raises:
        SurgeryError: a step does not apply, or the model has a plan already.
        SelectorError: a selector of the freeze spec chooses nothing. In either case the model is untouched.
    """
    if not isinstance(plan, TransferPlan):
        raise SurgeryError(f"the first argument is a {type(plan).__name__}, not a plan", hint="tk.apply(plan, model)")
    model = target_of(model)
    if plan_in(history(model)) is not None:
        raise SurgeryError(
            "a plan was applied to the model already", hint="make it anew, load its weights, and apply the other plan"
        )
    steps = [*plan.surgery, *([Step("reinitialise")] if plan.start == "scratch" else [])]
    inplace = any(step.verb == "reinitialise" for step in steps)
    values = Values((*model.parameters(), *model.buffers()) if inplace else ())
    try:
        with undone_on_failure(model):
            return _applied(plan, steps, model, seed)
    except BaseException:
        values.restore()
        raise


def _applied(plan: TransferPlan, steps: list[Step], model: nn.Module, seed: int | None) -> ApplyReport:
    settle(model)
    changes = []
    for number, step in enumerate(steps, start=1):
        try:
            with seeded(model, None if seed is None else seed + number):
                changes.append(_DO[step.verb](model, step))
        except SurgeryError as error:
            error.message = f"step {number} of {len(steps)}, {step}, does not apply: {error.message}"
            raise
    frozen = freeze(model, plan.freeze)
    record(model, as_operation(plan))
    return ApplyReport(plan, tuple(changes), frozen.trainable, frozen.total)


_DO: dict[str, Callable[[nn.Module, Step], Change]] = {
    "resize_head": lambda model, step: resize_head(model, step.classes or 0, name=step.name or None),
    "adapt_input": lambda model, step: adapt_input(model, step.channels or 0, name=step.name or None),
    "reinitialise": lambda model, step: reinitialise(model, selection_of(step.name) if step.name else "*"),
}


def plan_of(source: Any) -> TransferPlan | None:
    """The plan that was applied to a model; None if none was.

    >>> print(tk.plan_of("runs/flowers"))                                               # doctest: +SKIP

    Args:
        source: a model; or a file, a run, a snapshot or a Checkpoint that was saved of one.

    Raises:
        OpenError: the file cannot be read.
    """
    if isinstance(source, nn.Module):
        return plan_in(history(source))
    return plan_in((source if isinstance(source, Checkpoint) else checkpoint_of(source)).surgery)


def read_plan(path: str | os.PathLike[str]) -> TransferPlan:
    """A plan from a YAML file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        SelectorError: it cannot be read; the message says where.
    """
    return TransferPlan.from_yaml(read_file(Path(path)), file=str(path))


def write_plan(plan: TransferPlan, path: str | os.PathLike[str]) -> None:
    """Write a plan as YAML, to be reviewed and changed.

    Raises:
        SaveError: the file cannot be written.
    """
    write_file(Path(path), [f"# torchkeep transfer plan\n{plan.to_yaml()}".encode()])
