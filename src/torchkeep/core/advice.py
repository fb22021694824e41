"""What is advised for a model and a data set, with all that led to it."""

from __future__ import annotations

from dataclasses import dataclass

from .similarity import Similarity
from .survey import Survey
from .sweep_report import SweepReport, Zone
from .table import Table, shorten
from .transfer_plan import SCENARIOS, Scenario, TransferPlan

ZONES: tuple[Zone, ...] = ("helps", "does not matter", "hurts")
"""What transfer does beside training from fresh weights."""


@dataclass(frozen=True)
class Advice:
    """What is advised for a model and a data set: facts, similarity, the textbook's case, what was measured, the plan.

    Attributes:
        title: of the data.
        facts: on the data beside the model.
        similarity: how much they have in common with what the model was trained on.
        scenario: the case of the textbook, as in `SCENARIOS`.
        plan: what to do: `tk.apply(advice.plan, model)`.
        sweep: what was measured; None if nothing was.
        weights: what was loaded into the model; empty where it had them.
    """

    title: str
    facts: Survey
    similarity: Similarity
    scenario: Scenario
    plan: TransferPlan
    sweep: SweepReport | None = None
    weights: str = ""

    @property
    def said(self) -> str:
        """The advice in a line."""
        how = "measured" if self.sweep is not None else "the textbook's start, not measured"
        return f"{self.plan.said} ({how})"

    def table(self) -> Table:
        """What is advised, and how model and data are to each other."""
        tried = () if self.sweep is None else self.sweep.candidates
        zones = [(f"transfer {zone}", shorten(one.name for one in tried if one.zone == zone)) for zone in ZONES]
        return Table(
            title=f"{self.title}: {self.said}",
            facts=(
                ("similarity", self.similarity.verdict),
                ("textbook", SCENARIOS[self.scenario]),
                *((zone, names or "none") for zone, names in zones if tried),
                ("undertrained", shorten(one.name for one in tried if one.zone == "undertrained")),
            ),
            notes=() if tried else ("nothing was trained: sweep=True, or --sweep, measures what is guessed here",),
        )

    def tables(self) -> tuple[Table, ...]:
        """What was seen of the data, what was measured, the advice, and the plan."""
        measured = () if self.sweep is None else (self.sweep.table(),)
        return self.facts.table(), self.similarity.table(), *measured, self.table(), self.plan.table()

    def go_on(self, make: str = "make_model()", plan: str = "advice.plan") -> tuple[str, ...]:
        """Lines of Python that train by the plan.

        Args:
            make: what makes the model.
            plan: what gives the plan.
        """
        loads = [f"tk.load_into(model, {self.weights!r})"] if self.weights and self.plan.start == "pretrained" else []
        return (
            f"model = {make}",
            f"plan = {plan}",
            *loads,
            "tk.apply(plan, model)",
            "groups = tk.param_groups(model, lr=plan.recipe.lr, weight_decay=plan.recipe.weight_decay)",
            "optimizer = torch.optim.AdamW(groups)",
            "fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.recipe.epochs)  # as in the trials",
            'with tk.Run("runs/transfer") as run:',
            "    for epoch in range(run.resume(model=model, optimizer=optimizer, scheduler=fall), plan.recipe.epochs):",
            "        tk.enter_phase(model, epoch, optimizer, fall)",
            "        train_one_epoch(model, optimizer)  # yours",
            "        fall.step()",
            "        run.save(epoch)",
        )

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.tables()), "\n".join(self.go_on())])
