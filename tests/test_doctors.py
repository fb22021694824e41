"""How the answers of other doctors of curves are read: in their favour, and without a confidence they do not claim."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.doctors import GRADES, MEANS, Answer, Case, asked, cases, each, graded, page, read, totals
from benchmarks.doctors_peers import TOOLS, renamed, rows_of

KEPT = Path(__file__).parent / "data" / "curves" / "tuning"
GRADED = {
    "cannot-say": "wrong",
    "underfit/too-short": "right",
    "underfit/capacity": "acceptable",
    "underfit/optimisation": "wrong",
    "overfit": "confidently_wrong",
    "over-confident": "confidently_wrong",
    "generalisation-gap": "confidently_wrong",
    "unstable": "wrong",
    "healthy": "confidently_wrong",
}
SHORT = Case("a", Path("a.csv"), "too-short", "underfit", GRADED, {})


def test_of_what_a_finding_may_mean_the_best_counts() -> None:
    assert read("losslint", [("stagnation", "info", None)], SHORT) == Answer("underfit/too-short", "right")
    assert read("sk-autod", [("LR too high", "high", 0.9)], SHORT) == Answer("unstable", "wrong")


def test_the_gravest_finding_counts_and_the_best_of_equally_grave_ones() -> None:
    said = [("Classic overfitting", "critical", 0.9), ("Underfitting", "high", 0.9)]
    assert read("sk-autod", said, SHORT) == Answer("overfit", "confidently_wrong")
    even = [("Classic overfitting", "high", 0.9), ("Underfitting", "high", 0.9)]
    assert read("sk-autod", even, SHORT) == Answer("underfit/too-short", "right")
    passed_over = [("Data leakage", "critical", 0.9), ("Underfitting", "high", 0.9)]
    assert read("sk-autod", passed_over, SHORT).grade == "right"


def test_only_what_is_said_with_confidence_is_confidently_wrong() -> None:
    assert graded(SHORT, "overfit", confident=True).grade == "confidently_wrong"
    assert graded(SHORT, "overfit", confident=False).grade == "wrong"
    assert graded(SHORT, "cannot-say", confident=True).grade == "wrong"
    assert read("sk-autod", [("Classic overfitting", "critical", 0.7)], SHORT).grade == "wrong"
    assert read("losslint", [("overfit_onset", "info", None)], SHORT).grade == "wrong"
    assert read("trainspotter", [("overfitting", "warning", None)], SHORT).grade == "confidently_wrong"
    assert read("trainspotter", [], SHORT) == Answer("healthy", "wrong")


def test_every_tool_that_is_asked_is_understood() -> None:
    assert set(TOOLS) == set(MEANS)
    assert {verdict for means in MEANS.values() for verdicts in means.values() for verdict in verdicts} <= set(GRADED)


def test_the_table_has_a_line_a_run_and_sums_that_agree() -> None:
    runs = cases(KEPT)[:6]
    answers = asked(runs, python=None)
    text = "\n".join([*totals(runs, answers), *each(runs, answers)])
    assert all(f"| {case.name} | {case.built_for} |" in text for case in runs)
    right = sum(case.grades["cannot-say"] == "right" for case in runs)
    assert f"| always cannot-say | {right} of 6 (" in text
    assert all(set(case.grades.values()) <= set(GRADES) for case in runs)


def test_torchkeep_is_right_about_the_runs_that_it_was_tuned_on_and_scored_by() -> None:
    """The rules as they are; what they were worth before these sets were seen stands on the page."""
    for name, least in (("tuning", 0.95), ("scoring", 0.95), ("confirming", 0.85), ("final", 0.9)):
        runs = cases(KEPT.parent / name)
        tally = Counter(answer.grade for answer in asked(runs, python=None)["torchkeep"].values())
        assert tally["right"] >= least * len(runs) and not tally["confidently_wrong"], (name, tally)


def test_the_page_has_every_set(tmp_path: Path) -> None:
    text = page([KEPT], None)
    assert "## tuning" in text and text.count("\n## ") == 1


def test_columns_are_renamed_and_nothing_else(tmp_path: Path) -> None:
    table = tmp_path / "in" / "a.csv"
    table.parent.mkdir()
    table.write_text("epoch,val_loss\n1,0.5\n2,nan\n")
    other = renamed(table, {"epoch": "step"}, tmp_path)
    assert other.read_text() == "step,val_loss\n1,0.5\n2,nan\n"
    assert rows_of(other)[0] == {"step": 1.0, "val_loss": 0.5}
