"""Reading curves: each check sees what it is for and nothing else, and the verdict reaches people, programs and pages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import torchkeep as tk
from torchkeep.checks import CHECKS
from torchkeep.cli.app import app
from torchkeep.core.trend import fisher, noise, power_law, slope

T = np.arange(40.0)
Curve = Callable[[], list[dict[str, float]]]


def records(**columns: Any) -> list[dict[str, float]]:
    rows = zip(*columns.values(), strict=True)
    return [{"epoch": epoch, **dict(zip(columns, map(float, row), strict=True))} for epoch, row in enumerate(rows)]


def wobble(size: float, seed: int = 0) -> Any:
    return size * np.random.default_rng(seed).normal(size=len(T))


FALL = 2.3 * np.exp(-T / 6)
HEALTHY = records(train_loss=FALL + 0.05, val_loss=FALL + 0.1 + wobble(0.005), val_accuracy=0.97 - 0.8 * np.exp(-T / 5))
RISING = FALL + 0.3 + 0.03 * np.maximum(T - 12, 0) + wobble(0.01)

RUNS: dict[str, tuple[list[dict[str, float]], str, str]] = {
    "healthy": (HEALTHY, "healthy", ""),
    "learned by heart": (
        records(
            train_loss=FALL, val_loss=RISING, val_accuracy=0.9 - 0.6 * np.exp(-T / 4) - 0.005 * np.maximum(T - 12, 0)
        ),
        "overfit",
        "",
    ),
    "too sure": (
        records(train_loss=FALL, val_loss=RISING, val_accuracy=0.9 - 0.6 * np.exp(-T / 4) + wobble(0.002)),
        "over-confident",
        "",
    ),
    "overfit, no metric": (records(train_loss=FALL, val_loss=RISING), "overfit", ""),
    "still falling": (
        records(train_loss=2.3 - 0.02 * T, val_loss=2.3 - 0.02 * T + wobble(0.002)),
        "underfit",
        "too-short",
    ),
    "too small": (
        records(train_loss=1.5 + 0.8 * np.exp(-T / 3), val_loss=1.52 + 0.8 * np.exp(-T / 3) + wobble(0.005)),
        "underfit",
        "capacity",
    ),
    "nothing learned": (
        records(train_loss=2.3 + wobble(0.001), val_loss=2.3 + wobble(0.001, 1)),
        "underfit",
        "optimisation",
    ),
    "a gap": (
        records(train_loss=FALL + 0.01, val_loss=0.6 + 1.7 * np.exp(-T / 5) + wobble(0.005)),
        "generalisation-gap",
        "",
    ),
    "not a number": (records(train_loss=[*FALL[:20], *[np.nan] * 20], val_loss=FALL), "unstable", ""),
    "blown up": (records(train_loss=[*FALL[:30], *np.linspace(1, 30, 10)], val_loss=FALL + 1), "unstable", ""),
    "two points": (records(train_loss=[2, 1], val_loss=[2, 1.5]), "cannot-say", ""),
}


@pytest.mark.parametrize("name", RUNS)
def test_plain_cases_get_their_verdict(name: str) -> None:
    history, verdict, cause = RUNS[name]
    found = tk.diagnose(history, classes=10, n_val=1000)
    assert (found.verdict, found.cause) == (verdict, cause), str(found)
    assert 0 <= found.confidence <= 1 and found.verdict in tk.VERDICTS
    assert all(one.message and "{" not in one.message for one in found.findings)
    assert all(isinstance(value, (int, float, bool)) for one in found.findings for value in one.evidence.values())
    if verdict not in {"healthy"}:
        assert found.remedies


def test_every_check_is_seen_by_some_run() -> None:
    seen = {
        one.code for history, _, _ in RUNS.values() for one in tk.diagnose(history, classes=10, n_val=1000).findings
    }
    jumping = records(
        train_loss=np.where(T % 2, 2.0, 0.8) + wobble(0.1), val_loss=np.where(T % 2, 2.0, 1.0) + wobble(0.4)
    )
    below = records(train_loss=FALL + 0.3, val_loss=FALL + 0.1, val_accuracy=np.full(40, 0.9))
    middling = records(train_loss=FALL + 0.4, val_loss=FALL + 0.42, val_accuracy=np.full(40, 0.85))
    slow = {"parameters": 500, "optimizer": "SGD", "rate": 1e-3, "batch": 500, "n_train": 1000}
    for more, known in ((jumping, {"n_val": 1000}), (below, {"n_val": 20}), (middling, slow)):
        seen |= {one.code for one in tk.diagnose(more, classes=10, **known).findings}
    assert seen == set(CHECKS)


def test_a_small_validation_set_says_little() -> None:
    """18 right of 20 against 20 of 20: p = 0.49."""
    accuracy = np.where(T < 20, 1.0, 0.9)
    history = records(
        train_loss=FALL + 0.01, val_loss=FALL + 0.1 + 0.002 * np.maximum(T - 12, 0), val_accuracy=accuracy
    )
    found = tk.diagnose(history, classes=3, n_val=20)
    assert found.verdict in {"cannot-say", "healthy", "over-confident"} and found.confidence < 0.95, str(found)
    assert "small-validation" in {one.code for one in found.findings}


def test_how_far_training_went_tells_the_cause() -> None:
    """The same curves: a rate that is usual and few steps, a rate far below it, many steps, and a rate far above it."""
    history = records(train_loss=1.3 + np.exp(-T / 10), val_loss=1.32 + np.exp(-T / 10) + wobble(0.002))

    def cause(**known: Any) -> tuple[str, str]:
        found = tk.diagnose(history, classes=10, n_val=500, n_train=100, **known)
        assert found.confidence < 0.8
        return found.cause, found.remedies[0].code

    assert cause(optimizer="AdamW", rate=1e-3, batch=100) == ("too-short", "train-longer")
    assert cause(optimizer="AdamW", rate=1e-4, batch=10) == ("optimisation", "raise-rate")
    assert cause(optimizer="AdamW", rate=1e-3, batch=1)[0] == "capacity"
    assert cause(optimizer="SGD", rate=1.0, momentum=0.9, batch=1) == ("optimisation", "lower-rate")
    assert cause(optimizer="SGD", rate=1.0, momentum=0.0, batch=1)[0] == "capacity"
    assert cause(optimizer="Rprop", rate=1.0, batch=100)[0] == cause()[0] == "capacity"
    decayed = tk.Setting(classes=10, optimizer="sgd", rate=0.05, weight_decay=0.2, batch=100, n_train=100)
    assert tk.diagnose(history, setting=decayed).cause == "capacity"


def test_a_training_loss_that_jumps_alone_is_no_matter_of_the_rate() -> None:
    jumps = 0.8 + 0.3 * (T % 2)
    alone = records(train_loss=jumps, val_loss=0.6 + wobble(0.005), val_accuracy=np.full(40, 0.8))
    both = records(train_loss=jumps, val_loss=jumps + 0.1, val_accuracy=np.full(40, 0.8))
    assert tk.diagnose(both, classes=10, n_val=500).verdict == "unstable"
    found = tk.diagnose(alone, classes=10, n_val=500)
    assert (found.verdict, found.cause) == ("underfit", "capacity"), str(found)


def test_a_metric_that_falls_far_is_overfit_though_the_loss_holds() -> None:
    """As it is where some labels are wrong in training alone."""
    accuracy = 0.9 - 0.6 * np.exp(-T / 3) - 0.003 * np.maximum(T - 8, 0)
    history = records(train_loss=0.6 + FALL, val_loss=0.62 + FALL + wobble(0.002), val_accuracy=accuracy)
    assert tk.diagnose(history, classes=10, n_val=500).verdict == "overfit"
    assert tk.diagnose(history, classes=10, n_val=40).verdict != "overfit"


def test_a_tiny_model_that_fits_neither_set_is_too_small() -> None:
    history = records(train_loss=0.3 + FALL, val_loss=0.45 + FALL + wobble(0.002), val_accuracy=0.86 - np.exp(-T / 2))
    assert tk.diagnose(history, classes=10, n_val=500, parameters=50_000).verdict == "healthy"
    found = tk.diagnose(history, classes=10, n_val=500, parameters=300)
    assert (found.verdict, found.cause) == ("underfit", "capacity")


@pytest.mark.parametrize("facts", [{}, {"classes": 2, "n_val": 98}])
def test_a_loss_that_overflowed_is_unstable_though_it_came_back(facts: dict[str, Any]) -> None:
    losses = [2.4e9, 5.4e145, 5.4e71, *(2.5 + n % 3 for n in range(20))]
    rows = [
        {"epoch": n, "train_loss": loss, "val_loss": loss / 2, "val_accuracy": 0.6 - 0.2 * (n % 2)}
        for n, loss in enumerate(losses)
    ]
    found = tk.diagnose(rows, **facts)
    assert found.verdict == "unstable" and found.confidence >= 0.9
    assert "5.4e+145" in next(one.message for one in found.findings if one.code == "diverged")


def test_a_metric_that_may_be_either_way_round_is_left_out(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{0.4 + 1.9 * 0.8**n},{0.4 + 1.9 * 0.81**n},{0.9 - 0.5 * 0.8**n}" for n in range(30))
    (tmp_path / "odd.csv").write_text(f"epoch,train_loss,val_loss,goodness\n{rows}\n")
    names = {"val_metric": "goodness"}
    found = tk.diagnose(tmp_path / "odd.csv", classes=10, names=names)
    assert found.verdict != "overfit" and any("goodness" in note for note in found.notes), str(found)
    told = tk.diagnose(tmp_path / "odd.csv", classes=10, names=names, mode="min")
    assert any("goodness" in one.message for one in told.findings)
    arguments = ["doctor", str(tmp_path / "odd.csv"), "--classes", "10", "--name", "val_metric=goodness", "--mode"]
    assert CliRunner().invoke(app, [*arguments, "max"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "up"]).exit_code == 2


def test_impossible_facts_are_refused() -> None:
    for known in ({"rate": 0.0}, {"batch": 0}, {"parameters": -1}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=next(iter(known))):
            tk.diagnose(HEALTHY, **known)


def test_what_is_frozen_and_in_force_changes_the_advice() -> None:
    history = RUNS["too small"][0]

    def codes(**known: Any) -> list[str]:
        return [one.code for one in tk.diagnose(history, setting=tk.Setting(classes=10, **known)).remedies]

    assert codes()[0] == "more-capacity"
    assert codes(trainable=0.01)[0] == "unfreeze"
    assert "unfreeze" not in codes(trainable=1.0)
    assert codes(dropout=0.6)[0] == "less-dropout" and codes(weight_decay=0.1)[0] == "less-decay"
    overfit = RUNS["learned by heart"][0]
    given = [one.code for one in tk.diagnose(overfit, setting=tk.Setting(classes=10, dropout=0.6)).remedies]
    assert "dropout" not in given and given[0] == "stop-early"


def test_a_power_law_is_found_again_and_says_how_sure_it_is() -> None:
    t = np.arange(1.0, 31)
    law = power_law(t, 0.4 + 2 * t**-0.7 + 0.002 * np.random.default_rng(0).normal(size=30))
    assert law is not None
    value, low, high = law.at(100)
    assert low <= 0.4 + 2 * 100**-0.7 <= high and abs(value - 0.4796) < 0.02 and high - low < 0.2
    assert power_law(t, np.linspace(1, 2, 30)) is None and power_law(t[:4], t[:4]) is None


def test_small_statistics_agree_with_known_ones() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(50):
        of, other = (int(n) for n in rng.integers(5, 200, 2))
        a, b = int(rng.integers(0, of + 1)), int(rng.integers(0, other + 1))
        assert fisher(a, of, b, other) == pytest.approx(stats.fisher_exact([[a, of - a], [b, other - b]])[1], rel=1e-9)
    x, y = rng.normal(size=30), rng.normal(size=30)
    line = stats.linregress(x, y)
    assert slope(x, y) == pytest.approx((line.slope, line.stderr))
    curve = np.exp(-np.arange(400) / 50)
    assert noise(curve + 0.01 * rng.normal(size=400)) == pytest.approx(0.01, rel=0.25) and noise(curve) < 1e-3


def test_the_settings_of_a_run_are_taken_from_its_snapshots(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 2))
    tk.freeze(model, "0")
    optimizer = torch.optim.AdamW(model[1].parameters(), weight_decay=0.05)
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model, optimizer=optimizer)
        for row in RUNS["too small"][0]:
            run.log(**row)
        run.save(39)
    codes = [one.code for one in tk.diagnose(tmp_path / "run", classes=10).remedies]
    assert codes[:2] == ["unfreeze", "less-decay"]


# The command line


def csv_of(history: list[dict[str, float]], path: Path) -> Path:
    lines = [",".join(history[0]), *(",".join(map(str, row.values())) for row in history)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_answers_people_and_programs(tmp_path: Path) -> None:
    path = csv_of(RUNS["learned by heart"][0], tmp_path / "log.csv")
    code, out = run("doctor", path, "--classes", 10, "--n-val", 1000)
    assert code == 0 and "overfit" in out and "stop-early" in out
    code, out = run("doctor", path, "--classes", 10, "--n-val", 1000, "--metric", "accuracy", "--json")
    answer = json.loads(out)
    assert answer["verdict"] == "overfit" and 10 <= answer["since"] <= 18 and 0.5 < answer["confidence"] <= 1
    assert {"code", "severity", "message", "evidence"} <= answer["findings"][0].keys()
    assert answer["remedies"][0]["code"] == "stop-early"
    under = csv_of(RUNS["still falling"][0], tmp_path / "under.csv")
    answer = json.loads(run("doctor", under, "--classes", 10, "--json")[1])
    assert (answer["verdict"], answer["cause"]) == ("underfit", "too-short")
    facts = (
        "--optimizer",
        "sgd",
        "--rate",
        0.001,
        "--momentum",
        0,
        "--batch",
        10,
        "--n-train",
        100,
        "--parameters",
        9999,
    )
    answer = json.loads(run("doctor", under, "--classes", 10, *facts, "--json")[1])
    assert (answer["verdict"], answer["cause"]) == ("underfit", "optimisation")


def test_a_verdict_can_fail_a_pipeline(tmp_path: Path) -> None:
    path = csv_of(RUNS["learned by heart"][0], tmp_path / "log.csv")
    assert run("doctor", path, "--classes", 10, "--fail-on", "overfit,unstable")[0] == 78
    assert run("doctor", path, "--classes", 10, "--fail-on", "unstable")[0] == 0
    assert run("doctor", path, "--rate", 0)[0] == 2 and run("doctor", path, "--momentum", 1)[0] == 2
    assert run("doctor", path, "--fail-on", "overfitted")[0] == 2 and run("doctor", path, "--classes", 0)[0] == 2
    with pytest.raises(tk.errors.SelectorError, match="val_accuracy"):
        tk.diagnose(path, metric="acuracy")


# Pictures


def test_figures_are_written_and_say_the_verdict(tmp_path: Path) -> None:
    history = RUNS["learned by heart"][0]
    setting = tk.Setting(classes=10, n_val=1000, phases=((0, "head"), (6, "*")), snapshots=(0.0, 10.0, 20.0))
    drawn = tk.plot(history, tmp_path / "curves.png", setting=setting)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    texts = [text.get_text() for axis in drawn.axes for text in axis.texts]
    assert texts == ["trains head", "trains *"] and "overfit" in drawn.get_supxlabel()
    tk.plot(history, tmp_path / "curves.svg")
    with pytest.raises(tk.errors.SaveError, match="ending"):
        tk.plot(history, tmp_path / "curves.doc")
    with pytest.raises(tk.errors.SaveError):
        tk.plot(history, tmp_path / "nowhere" / "curves.png")
    tk.plot([{"epoch": 0, "train_loss": float("nan")}], tmp_path / "empty.png")


def test_lines_are_told_apart_without_colour() -> None:
    drawn = tk.plot(RUNS["learned by heart"][0])
    train, val = drawn.axes[0].get_lines()[:2]
    assert train.get_linestyle() != val.get_linestyle() and train.get_marker() != val.get_marker()


def test_a_chart_for_the_terminal() -> None:
    lines = tk.sketch(RUNS["learned by heart"][0]).splitlines()
    assert len(lines) == 11 and "train_loss" in lines[-1] and tk.sketch([{"epoch": 1, "note": "x"}]) == ""


def test_the_page_holds_everything_and_nothing_runs(tmp_path: Path) -> None:
    rows = [{**row, "<script>alert(1)</script>": 1.0} for row in RUNS["learned by heart"][0]]
    evil = csv_of(rows, tmp_path / "<img src=x onerror=alert(1)>.csv")
    tk.plot(evil, tmp_path / "report.html", classes=10, n_val=1000)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and "<img" not in text and not re.search(r'(src|href)="(?!#)', text)
    assert "overfit" in text and "<svg" in text and "stop by patience" in text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to open the page with")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    """Drawn by a real browser: the picture is there, as wide as the text, and nothing lies beside the page."""
    tk.plot(csv_of(RUNS["learned by heart"][0], tmp_path / "log.csv"), tmp_path / "report.html", classes=10, n_val=1000)
    probe = (
        (tmp_path / "report.html")
        .read_text()
        .replace(
            "</body>",
            "<script>const box = document.querySelector('svg').getBoundingClientRect();"
            "document.title = [box.width > 300, box.height > 200, document.documentElement.scrollWidth <= innerWidth,"
            "document.querySelectorAll('li').length, document.fonts.size].join(' ')</script></body>",
        )
    )
    (tmp_path / "probe.html").write_text(probe)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    done = subprocess.run(
        [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1400", "--dump-dom",
         (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert title is not None and title[1].startswith("true true true 5"), title
