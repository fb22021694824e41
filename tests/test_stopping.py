"""Stopping early: the criteria, exact resuming in the middle of patience, and the best weights put back."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits, train_epoch
from torchkeep import stopping
from torchkeep.core.criterion import Criterion
from torchkeep.core.registry import part_named
from torchkeep.criteria import CRITERIA, Budget, GeneralizationLoss, NotANumber, Patience, Rising, TargetReached
from torchkeep.errors import IncompatibleCheckpointError, ResumeWarning, StopWarning, UnsavableError
from torchkeep.stopping import Judge

Records = list[dict[str, Any]]
CALMLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -- what is drawn --------------------------------------------------------------------------------------------------

# Few values, so that ties, small steps and returns to the best are frequent.
FINITE = st.one_of(st.sampled_from([0.25, 0.5, 0.5, 0.625, 0.75, 1.0, 1.5, 2, -1.0, 0.0]), st.floats(-4, 4, width=16))
VALUES = st.one_of(FINITE, FINITE, FINITE, st.sampled_from([math.nan, math.inf, -math.inf]))
METRICS = st.sampled_from(["val_loss", "val_accuracy"])


def patiences(metrics: Any = METRICS) -> st.SearchStrategy[Patience]:
    return st.builds(
        Patience,
        st.integers(0, 4),
        metrics,
        st.sampled_from([0.0, 0.0, 0.125, 0.3]),
        st.sampled_from([None, "min", "max"]),
        st.integers(0, 3),
        st.one_of(st.none(), FINITE),
    )


LEAVES = st.one_of(
    patiences(),
    st.builds(GeneralizationLoss, st.sampled_from([0.0, 5.0, 60.0]), METRICS),
    st.builds(Rising, st.integers(1, 2), st.integers(1, 3), METRICS),
    st.builds(NotANumber, st.sampled_from([None, "val_loss"])),
    st.builds(TargetReached, METRICS, FINITE),
    st.builds(Budget, epochs=st.integers(1, 9)),
)
RULES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.builds(Criterion.__or__, inner, inner), st.builds(Criterion.__and__, inner, inner)),
    max_leaves=4,
)


@st.composite
def histories(draw: st.DrawFn, longest: int = 16) -> Records:
    """Records with an epoch each, from which metrics may be missing."""
    return [
        {"epoch": epoch} | {name: draw(VALUES) for name in ("val_loss", "val_accuracy") if draw(st.integers(0, 5))}
        for epoch in range(draw(st.integers(1, longest)))
    ]


def stop_of(criterion: Criterion, records: Records) -> tuple[int, str] | None:
    """The index of the first record at which a criterion says stop, and why."""
    judge = Judge(criterion)
    for number, record in enumerate(records):
        judge.see(record, 0.0)
        if judge.reason:
            return number, judge.reason
    return None


def place(criterion: Criterion, records: Records) -> float:
    found = stop_of(criterion, records)
    return math.inf if found is None else found[0]


def best_of(records: Records, metric: str, mode: str) -> int | None:
    """The first of the best finite values, told again."""
    values = [record.get(metric, math.nan) for record in records]
    numbers = [value for value in values if math.isfinite(value)]
    return values.index((min if mode == "min" else max)(numbers)) if numbers else None


# -- criteria -------------------------------------------------------------------------------------------------------


@CALMLY
@given(RULES, histories(), st.data())
def test_resumed_at_any_point_equals_uninterrupted(criterion: Criterion, records: Records, data: st.DataObject) -> None:
    expected = stop_of(criterion, records)
    cuts = data.draw(st.sets(st.integers(0, len(records))))
    judge = Judge(criterion)
    for number, record in enumerate(records):
        if number in cuts:
            text = json.dumps(judge.state_dict(), allow_nan=False)  # nothing but JSON is remembered
            judge = Judge(pickle.loads(pickle.dumps(criterion)))
            judge.load_state_dict(json.loads(text))
        judge.see(record, 0.0)
        if judge.reason:
            assert (number, judge.reason) == expected
            return
    assert expected is None


@CALMLY
@given(RULES, histories())
def test_looking_changes_neither_the_criterion_nor_the_state(criterion: Criterion, records: Records) -> None:
    state, hashed = criterion.begin(), hash(criterion)
    for record in records:
        before = copy.deepcopy(state)
        after = criterion.look(state, record)
        assert state == before and hash(criterion) == hashed and criterion.begin() == criterion.begin()
        state = after


@CALMLY
@given(RULES, RULES, histories())
def test_either_stops_at_the_earlier_and_both_where_both_say_so(a: Criterion, b: Criterion, records: Records) -> None:
    assert place(a | b, records) == min(place(a, records), place(b, records)) == place(b | a, records)
    assert place(a & b, records) == place(b & a, records) >= max(place(a, records), place(b, records))
    assert place(a | a, records) == place(a, records) == place(a & a, records)
    states, first = [a.begin(), b.begin()], math.inf
    for number, record in enumerate(records):
        states = [part.look(state, record) for part, state in zip((a, b), states, strict=True)]
        if all(part.why(state, 0.0) for part, state in zip((a, b), states, strict=True)):
            first = number
            break
    assert place(a & b, records) == first


@CALMLY
@given(histories(), st.data())
def test_minimising_is_maximising_the_negative(records: Records, data: st.DataObject) -> None:
    negative = [{name: -value if name == "val_loss" else value for name, value in one.items()} for one in records]
    count, delta, start = (
        data.draw(st.integers(0, 4)),
        data.draw(st.sampled_from([0.0, 0.125, 0.3])),
        data.draw(st.integers(0, 3)),
    )
    base = data.draw(st.one_of(st.none(), FINITE))
    pairs: list[Callable[[str, float], Criterion]] = [
        lambda mode, sign: Patience(
            count, min_delta=delta, mode=mode, start=start, baseline=None if base is None else sign * base
        ),
        lambda mode, sign: GeneralizationLoss(20 * delta, mode=mode),
        lambda mode, sign: Rising(count + 1, start + 1, mode=mode),
        lambda mode, sign: TargetReached("val_loss", sign * (base or 0.0), mode=mode),
    ]
    for make in pairs:
        assert place(make("min", 1), records) == place(make("max", -1), negative)


def keras(
    values: list[float], patience: int, min_delta: float, mode: str, baseline: float | None, start: int
) -> tuple[int | None, int | None]:
    """What the documentation of Keras's EarlyStopping says, one value an epoch: where it stops, and what is best.

    "Number of epochs with no improvement after which training will be stopped"; an absolute change of no more than
    min_delta counts as no improvement; "training will stop if the model doesn't show improvement over the baseline";
    start_from_epoch is the number of epochs to wait before monitoring begins.
    """

    def improves(value: float, reference: float | None) -> bool:
        if reference is None:
            return True
        return value + min_delta < reference if mode == "min" else value - min_delta > reference

    best, best_epoch, wait = None, None, 0
    for epoch, value in enumerate(values):
        if epoch < start:
            continue
        wait += 1
        if improves(value, best):
            best, best_epoch = value, epoch
            if baseline is None or improves(value, baseline):
                wait = 0
        elif wait >= patience:
            return epoch, best_epoch
    return None, best_epoch


@settings(CALMLY, max_examples=200)
@given(st.lists(FINITE, min_size=1, max_size=24), patiences(st.just("val_loss")))
def test_patience_is_that_of_keras_wherever_values_are_finite(values: list[float], patience: Patience) -> None:
    told = keras(values, patience.count, patience.min_delta, str(patience.mode), patience.baseline, patience.start)
    for records in (
        [{"val_loss": value} for value in values],
        [{"val_loss": value, "epoch": epoch} for epoch, value in enumerate(values)],
    ):
        found = stop_of(patience, records)
        assert (None if found is None else found[0]) == told[0]
        model = nn.Linear(1, 1)
        stopper = tk.EarlyStopping(model, patience)
        for epoch, record in enumerate(records):
            nn.init.constant_(model.weight, epoch)
            if stopper.update(**record):
                break
        stopper.restore_best()
        if not patience.min_delta and not patience.start:  # else other weights are meant: the best of all
            assert model.weight.item() == told[1]


def test_the_comparison_with_keras_can_fail() -> None:
    assert keras([1, 2, 2, 0.5], 2, 0.0, "min", None, 0) == (2, 0)
    assert keras([1, 2, 2, 0.5], 3, 0.0, "min", None, 0) == (None, 3)
    assert keras([1, 2, 3, 4], 2, 0.0, "min", 0.5, 0) == (1, 0), (
        "what misses the baseline does not begin the count anew"
    )


@CALMLY
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.floats(0.1, 50), st.integers(1, 3), st.integers(1, 4))
def test_prechelt_as_the_paper_has_it(errors: list[float], alpha: float, successive: int, strip: int) -> None:
    def loss(t: int) -> float:
        return 100 * (errors[t] / min(errors[: t + 1]) - 1)

    def rises(s: int, t: int) -> bool:
        """UP_s at the end of a strip: UP_(s-1) a strip before, and a larger error than there."""
        return t - strip >= 0 and errors[t] > errors[t - strip] and (s == 1 or rises(s - 1, t - strip))

    times = range(len(errors))
    assume(all(abs(loss(t) - alpha) > 1e-9 for t in times))
    records = [{"val_loss": error} for error in errors]
    assert place(GeneralizationLoss(alpha), records) == next((t for t in times if loss(t) > alpha), math.inf)
    ends = [t for t in times if (t + 1) % strip == 0]
    assert place(Rising(successive, strip), records) == next((t for t in ends if rises(successive, t)), math.inf)


def stops(criterion: Criterion, *values: float, metric: str = "val_loss") -> int | None:
    found = stop_of(criterion, [{metric: value, "epoch": epoch} for epoch, value in enumerate(values)])
    return None if found is None else found[0]


def test_nan_and_infinity_are_no_improvement() -> None:
    nan, inf = math.nan, math.inf
    assert stops(Patience(2), nan, nan) == 1 and stops(Patience(2), nan, 1, 2, 2) == 3
    assert stops(Patience(2), 1, -inf, -inf) == 2 and stops(Patience(2, mode="max"), 1, inf, inf) == 2
    assert stops(Patience(2), 1, nan, 0.5, nan, 0.4) is None
    assert (
        stops(GeneralizationLoss(5), 1, nan, inf, -inf, 1.04) is None
        and stops(GeneralizationLoss(5), 1, nan, 1.06) == 2
    )
    assert stops(Rising(1, 1), 1, nan, inf, 1) is None and stops(Rising(1, 1), 1, nan, 2) == 2
    assert stops(TargetReached("val_loss", 0.5), nan, -inf, 0.6, 0.5) == 3
    assert stops(TargetReached("acc", 0.5), nan, inf, 0.4, 0.5, metric="acc") == 3
    assert stops(NotANumber(), 1, 2, nan) == 2 and stops(NotANumber(), 1, -inf) == 1
    assert stops(NotANumber("train_loss"), nan, inf) is None
    assert stops(Patience(1), 10**400, 1, 1) == 0, "an integer that no float can hold is no finite value"


def test_a_zero_or_negative_best_has_a_generalisation_loss_too() -> None:
    assert stops(GeneralizationLoss(5), 0.0, 0.0, 1e-12) == 2
    assert stops(GeneralizationLoss(5), -100.0, -96.0, -94.0) == 2
    assert stops(GeneralizationLoss(5, "val_accuracy"), 0.8, 0.77, 0.75, metric="val_accuracy") == 2


def test_both_are_asked_about_the_same_record() -> None:
    values = (1, 2, 2, 0.5, 0.6, 0.7)  # patience is over at 2, and again at 5
    epochs = Budget(epochs=4)
    assert stops(Patience(2) & epochs, *values) == 5 and stops(Patience(2) | epochs, *values) == 2


def test_budgets() -> None:
    records = [{"epoch": epoch, "step": 100 * epoch} for epoch in range(1, 9)]
    assert place(Budget(epochs=5), records) == 4 and place(Budget(steps=450), records) == 4
    assert place(Budget(epochs=5), [{"epoch": number // 3} for number in range(30)]) == 12
    assert place(Budget(epochs=5), [{"loss": 1.0}] * 9) == math.inf
    hours = Budget(hours=2)
    assert (
        hours.why(hours.begin(), 7199) == ""
        and hours.why(hours.begin(), 7200) == "2 hours of training have passed, of 2"
    )


def test_each_says_why_with_figures() -> None:
    def why(criterion: Criterion, *values: float, metric: str = "val_loss") -> str:
        found = stop_of(criterion, [{metric: value, "epoch": epoch} for epoch, value in enumerate(values)])
        assert found is not None
        return found[1]

    assert why(Patience(2, min_delta=0.01), 0.5, 0.495, 0.6) == (
        "val_loss has not fallen by more than 0.01 below its best for 2 values: best 0.5 at epoch 0, now 0.6"
    )
    assert why(Patience(1, "acc", baseline=0.9), 0.5, 0.25, metric="acc") == (
        "acc has not risen above its best and the baseline 0.9 for 2 values: best 0.5 at epoch 0, now 0.25"
    )
    assert why(Patience(1), math.nan) == "val_loss has had no finite value in 1 value: now nan"
    assert why(GeneralizationLoss(5), 0.5, 0.6) == (
        "val_loss is 20 % worse than its best, which is more than 5 %: 0.6 now, 0.5 at epoch 0"
    )
    assert why(Rising(2, 1), 1, 2, 3) == "val_loss has risen 2 times in succession, seen every 1 values: 1, 2, 3"
    assert why(NotANumber(), math.inf) == "val_loss is inf at epoch 0"
    assert why(TargetReached("acc", 0.9), 0.95, metric="acc") == "acc is 0.95 at epoch 0, and 0.9 was the target"
    assert why(Budget(steps=3, epochs=1), 1) == "1 epochs are done, of 1"
    assert why(NotANumber() | Patience(1), 1, math.nan) == (
        "val_loss is nan at epoch 1; val_loss has not fallen below its best for 1 value: best 1 at epoch 0, now nan"
    )
    assert why(Patience(1) & Budget(epochs=2), 1, 1).endswith("now 1, and 2 epochs are done, of 2")
    assert stop_of(NotANumber(), [{"x": 1}, {"x": math.nan}]) == (1, "x is nan at record 2")
    assert stop_of(NotANumber(), [{"x": math.nan, "step": 1200}]) == (0, "x is nan at step 1200")


SAMPLES: dict[str, Criterion] = {
    "patience": Patience(5, "acc", 0.1, None, 2, 0.5),
    "generalization-loss": GeneralizationLoss(),
    "rising": Rising(),
    "not-a-number": NotANumber(),
    "target-reached": TargetReached("val_accuracy", 0.95),
    "budget": Budget(hours=2, epochs=5),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_row_of_the_table_is_a_criterion(name: str) -> None:
    sample = SAMPLES[name]
    assert part_named(CRITERIA, name, "criterion") is type(sample) and type(sample).__name__ in tk.criteria.__all__
    assert pickle.loads(pickle.dumps(sample)) == sample == copy.deepcopy(sample)
    assert len({sample, copy.copy(sample)}) == 1 and (type(sample).__doc__ or "").startswith("Stop ")
    assert sample.look(sample.begin(), {"nothing": "of it"}).keys() == sample.begin().keys()
    assert not sample.why(sample.begin(), 0.0)


def test_joining_is_flat_and_prints() -> None:
    a, b, c = Patience(5), NotANumber(), Budget(epochs=9)
    assert (a | b) | c == a | (b | c) and (a & b) & c == a & (b & c) and (a | b) != (a & b)
    assert str((a | b) & c) == f"({a} | {b}) & {c}" and str(a & b | c) == f"{a} & {b} | {c}"
    assert (b | a | TargetReached("acc", 1.0)).watched == (("val_loss", "min"), ("acc", "max"))
    assert (a | c).needed == {"val_loss", "epoch"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Patience(-1), "a number of epochs"),
        (lambda: Patience(1.5), "a number of epochs"),
        (lambda: Patience(True), "a number of epochs"),
        (lambda: Patience(5, min_delta=-1.0), "min_delta"),
        (lambda: Patience(5, min_delta=math.nan), "min_delta"),
        (lambda: Patience(5, baseline=math.inf), "baseline"),
        (lambda: Patience(5, "goodness"), "high or a low"),
        (lambda: Patience(5, mode="auto"), "'min' or 'max'"),
        (lambda: GeneralizationLoss(-5), "per cent"),
        (lambda: Rising(0), "integers from 1"),
        (lambda: Rising(1, 0), "integers from 1"),
        (lambda: TargetReached("val_loss", math.nan), "must be a number"),
        (Budget, "no budget"),
        (lambda: Budget(hours=0), "no budget"),
        (lambda: Budget(epochs=math.nan), "no budget"),
        (lambda: tk.EarlyStopping(nn.Linear(1, 1), Budget(epochs=3)), "compares no metric"),
        (lambda: tk.EarlyStopping(nn.Linear(1, 1), Patience(3)).update(), "nothing to look at"),
        (lambda: tk.Run("nowhere").should_stop(), "has no criterion"),
    ],
)
def test_misuse_is_named(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


@pytest.mark.parametrize(
    "wrong", [lambda: Patience(5) | 3, lambda: Patience(5) & "b", lambda: tk.Run("nowhere", stop="patience")]
)
def test_what_is_no_criterion_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        wrong()


# -- runs -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of a process."""


def processes(
    store: tk.memory_store, records: Records, kills: list[tuple[int, str]], back: int, **settings: Any
) -> tuple[int, str, float, int]:
    """Train through the records, beginning again after each kill; the last epoch, the reason, the weight, epochs done."""
    done, kills = 0, [*kills, (-1, "")]
    for kill in kills:
        model = nn.Linear(1, 1)
        try:
            with tk.Run("memory", store=tk.memory_store(store), **settings) as run:
                known = [one.sequence for one in run.snapshots]
                older = known[-1 - back] if back and len(known) > back else None
                start = run.resume(model=model, snapshot=older)
                epoch = start - 1
                for epoch in range(start, len(records)):
                    nn.init.constant_(model.weight, epoch)
                    done += 1
                    for event in ("trained", "logged", "saved"):
                        if event == "logged":
                            run.log(**records[epoch])
                        elif event == "saved":
                            run.save(epoch)
                        if (epoch, event) == kill:
                            raise Killed
                    if run.should_stop():
                        break
        except Killed:
            continue
        return epoch, run.stopped, model.weight.item(), done
    raise AssertionError


@settings(CALMLY, max_examples=40)
@given(
    RULES,
    histories(8),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["trained", "logged", "saved"])), max_size=4),
    st.integers(0, 2),
    st.sampled_from([None, tk.keep_last(1), tk.keep_every(3) | tk.keep_last(2)]),
)
def test_a_killed_run_stops_where_the_uninterrupted_does_with_the_same_weights(
    criterion: Criterion, records: Records, kills: list[tuple[int, str]], back: int, keep: Any
) -> None:
    monitor = None if criterion.watched else "val_loss"
    settings_of_run = {"stop": criterion, "monitor": monitor, "mode": None if criterion.watched else "min"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StopWarning)
        warnings.simplefilter("ignore", ResumeWarning)
        whole = processes(tk.memory_store(), records, [], 0, **settings_of_run)
        killed = processes(tk.memory_store(), records, kills, back if keep is None else 0, keep=keep, **settings_of_run)
    found = stop_of(criterion, records)
    assert whole[:2] == (found or (len(records) - 1, "")), "it stops as the criterion says"
    metric, mode = criterion.watched[0] if criterion.watched else ("val_loss", "min")
    best = best_of(records[: whole[0] + 1], metric, mode)
    assert whole[2] == (whole[0] if best is None else best)
    assert killed[1] == whole[1]
    assert killed[0] == whole[0] or (found and killed[0] == whole[0] + 1), "killed before it was asked: one epoch more"
    assert best is None or killed[2] == whole[2]
    assert killed[3] >= whole[3]


def digits() -> tuple[torch.Tensor, ...]:
    sklearn = pytest.importorskip("sklearn.datasets")
    images, classes = sklearn.load_digits(return_X_y=True)
    data = torch.tensor(images[:500], dtype=torch.float32) / 16, torch.tensor(classes[:500])
    noisy = data[1].clone()
    noisy[:150:3] = (noisy[:150:3] + 3) % 10  # so that it overfits
    return data[0][:150], noisy[:150], data[0][150:], data[1][150:]


def train_digits(
    folder: Path, data: tuple[torch.Tensor, ...], kill: tuple[str, int] = ("", -1)
) -> tuple[str, int, list[tuple[str, bytes]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data[:2]), batch_size=30, shuffle=True)
    events = 0

    def event(name: str) -> None:
        nonlocal events
        if name == kill[0]:
            events += 1
            if events > kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    stop = Patience(4, min_delta=1e-3) | NotANumber() | Budget(epochs=40)
    with tk.Run(folder, stop=stop, keep=tk.keep_last(1), durable=False) as run:
        run.resume(model=model, optimizer=optimizer)
        for epoch in itertools.count(run.epoch):
            model.train()
            for inputs, targets in run.batches(loader):
                event("batch")
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                if run.position().steps % 4 == 0:
                    run.save(epoch)  # in the middle of an epoch
            model.eval()
            with torch.no_grad():
                val_loss = nn.functional.cross_entropy(model(data[2]), data[3])
            run.log(epoch=epoch, val_loss=val_loss)
            event("logged")
            run.save(epoch)
            event("saved")
            if run.should_stop():
                break
    best = run.best
    assert best is not None
    return run.stopped, best.step, state_bits(model)


def test_a_training_that_is_killed_stops_at_the_same_epoch_with_the_same_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no threads of its parent
    try:
        data = digits()
        reason, step, bits = train_digits(tmp_path / "whole", data)
        assert reason.startswith("val_loss has not fallen by more than 0.001 below its best for 4 values: best "), (
            reason
        )
        kills = [("batch", 7), ("logged", 1), ("saved", 2), ("batch", 11), ("logged", 0), ("saved", 0)]
        killed = 0
        for kill in kills:
            child = os.fork()
            if child == 0:
                try:
                    train_digits(tmp_path / "killed", data, kill)
                finally:
                    os._exit(0)
            killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert killed >= 3
        assert train_digits(tmp_path / "killed", data) == (reason, step, bits)
    finally:
        torch.set_num_threads(threads)


def weights_by_epoch(run: tk.Run, model: nn.Module, values: list[float], start: int = 0, **more: Any) -> int:
    """Log, save and ask; the weights of an epoch are its number. The epoch at which it stopped, or -1."""
    for epoch in range(start, len(values)):
        for parameter in model.parameters():
            nn.init.constant_(parameter, epoch)
        run.log(epoch=epoch, val_loss=values[epoch])
        run.save(epoch, model=model, **more)
        if run.should_stop():
            return epoch
    return -1


def test_everything_but_the_weights_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ema = TinyNet(), TinyNet()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    tk.freeze(model, "conv")
    states = []
    with tk.Run(tmp_path, stop=Patience(2)) as run:
        run.resume(model=model, optimizer=optimizer, scheduler=scheduler, ema=ema)
        for epoch, loss in enumerate([3.0, 1.0, 2.0, 2.0]):
            train_epoch(model, optimizer, scheduler)
            with torch.no_grad():
                for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
                    average.lerp_(parameter, 0.5)
            states.append(state_bits(model, ema))
            run.log(epoch=epoch, val_loss=loss)
            run.save(epoch)
            rest = state_bits(optimizer, scheduler), torch.get_rng_state()
            flags = [(one.requires_grad, one.grad) for one in model.parameters()]
            if run.should_stop():
                break
    assert epoch == 3 and state_bits(model, ema) == states[1] != states[3], "buffers and the average too"
    assert (state_bits(optimizer, scheduler), rest[1].tolist()) == (rest[0], torch.get_rng_state().tolist())
    assert [one.requires_grad for one in model.parameters()] == [flag for flag, _ in flags]
    assert all(one.grad is grad for one, (_, grad) in zip(model.parameters(), flags, strict=True))
    assert model.tied.weight is model.fc.weight


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_do_not_show(tmp_path: Path, wrap: Any) -> None:
    inner = nn.Linear(2, 2)
    model = wrap(inner)
    with tk.Run(tmp_path, stop=Patience(1)) as run:
        assert weights_by_epoch(run, model, [1, 2]) == 1
    assert inner.weight[0, 0] == 0
    stopper = tk.EarlyStopping(model, Patience(1))
    assert not stopper.update(val_loss=1)
    nn.init.ones_(inner.weight)
    assert stopper.update(val_loss=2) and inner.weight[0, 0] == 0


def test_the_best_stays_whatever_keep_says(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(3), keep=tk.keep_last(1).at_most(1)) as run:
        assert weights_by_epoch(run, model, [3, 1, 2, 2, 2]) == 4
        nn.init.constant_(model.weight, 5)
        assert run.should_stop() and model.weight == 5, "once is enough as long as nothing is logged or saved"
        assert run.restore_best().step == 1
        assert [one.step for one in run.snapshots] == [1, 4]
        assert model.weight == 1
    with tk.Run(tmp_path / "accuracy", stop=Patience(3, "val_accuracy"), keep=tk.keep_best(1, "val_loss")) as run:
        for epoch, accuracy in enumerate([0.5, 0.9, 0.8, 0.7]):
            run.log(val_loss=-epoch, val_accuracy=accuracy)
            run.save(epoch, model=nn.Linear(1, 1))
        assert run.best.step == 1, "the metric of the criterion decides"
        assert [one.step for one in run.snapshots] == [1, 3]


def test_who_asks_late_gets_the_best_before_the_stop(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(2), keep=tk.keep_last(1)) as run:
        for epoch, loss in enumerate([3, 1, 2, 2, 0, 0]):
            nn.init.constant_(model.weight, epoch)
            run.log(epoch=epoch, val_loss=loss)
            run.save(epoch, model=model)
        assert run.should_stop() and model.weight == 1
        assert run.stopped.endswith("best 1 at epoch 1, now 2")


def test_a_loop_that_comes_to_its_end_leaves_the_best_too(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(9)) as run:
        assert weights_by_epoch(run, model, [3, 1, 2, 2]) == -1 and model.weight == 3
    assert model.weight == 1 and run.stopped == ""
    nn.init.constant_(model.weight, 5)
    assert run.restore_best().step == 1 and model.weight == 1, "whoever asks gets it again"
    run.close()
    again = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(9)) as run:
        assert run.resume(model=again) == 4 and again.weight == 3, "resumed is the last, not the best"
    assert again.weight == 1, "a script that is run again ends as it had"


def test_an_error_leaves_the_weights_where_they_were(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt), tk.Run(tmp_path, stop=Patience(9)) as run:
        weights_by_epoch(run, model, [3, 1, 2, 2])
        raise KeyboardInterrupt
    assert model.weight == 3
    with tk.Run(tmp_path) as run:
        weights_of_last = run.resume(model=model)
    assert weights_of_last == 4 and model.weight == 3, "without stop= nothing is put back"


def test_an_abandoned_branch_does_not_count(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(3)) as run:
        weights_by_epoch(run, model, [3, 2, 1, 0.5])
    with tk.Run(tmp_path, stop=Patience(3), keep=tk.keep_last(4)) as run:
        assert run.resume(model=model, snapshot=2) == 2
        assert weights_by_epoch(run, model, [3, 2, 2, 2, 2], start=2) == 4
        assert run.stopped.endswith("for 3 values: best 2 at epoch 1, now 2") and model.weight == 1
        assert run.restore_best().sequence == 2
        assert run.best.step == 3, "run.best is that of all snapshots"


def test_a_run_that_had_stopped_says_so(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    values = [3, 1, 2, 2, 0, 0]
    with tk.Run(tmp_path, stop=Patience(2)) as run:
        assert weights_by_epoch(run, model, values) == 3 and run.stopped
    with tk.Run(tmp_path, stop=Patience(2)) as run:
        run.resume(model=model)
        assert run.stopped and run.last_resume.notes == (f"it had stopped: {run.stopped}",)
        assert weights_by_epoch(run, model, values, start=4) == 4, (
            "trained on all the same: what comes later is not best"
        )
    assert model.weight == 1
    with tk.Run(tmp_path, stop=Patience(4), keep=tk.keep_last(9)) as run:
        start = run.resume(model=model)
        assert start == 5 and not run.stopped, "a patience that was raised goes on"
        assert weights_by_epoch(run, model, values, start) == -1
    assert model.weight == 4


def test_what_was_logged_and_not_saved_is_told(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path / "lost", stop=Patience(2)) as run:
        run.save(0, model=model)
        for epoch, (loss, saved) in enumerate([(3, True), (1, False), (2, True), (2, True)]):
            nn.init.constant_(model.weight, epoch)
            run.log(epoch=epoch, val_loss=loss)
            if saved:
                run.save(epoch)
        with pytest.warns(StopWarning, match=r"the best val_loss, 1 at epoch 1, has no intact snapshot.*step 2"):
            assert run.should_stop()
        assert model.weight == 2
    with tk.Run(tmp_path / "live", stop=TargetReached("val_loss", 0.5)) as run:
        run.log(epoch=0, val_loss=2.0)
        run.save(0, model=model)
        nn.init.constant_(model.weight, 7)
        run.log(epoch=1, val_loss=0.4)
        assert run.should_stop() and model.weight == 7 and run.restore_best() is None, "the model has the best already"


def test_without_a_finite_value_nothing_is_put_back(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=NotANumber() | Patience(5)) as run:
        with pytest.warns(StopWarning, match="no snapshot has a finite val_loss, so there are no best weights"):
            assert weights_by_epoch(run, model, [math.nan]) == 0
        with pytest.warns(StopWarning, match="no snapshot has a finite"):
            assert model.weight == 0 and run.restore_best() is None
    with tk.Run(tmp_path / "none", stop=Budget(epochs=1)) as run:
        run.log(epoch=0, other=1.0)
        run.save(0, model=model)
        with pytest.warns(StopWarning, match="no snapshot has a metric to compare"):
            assert run.should_stop()
    with tk.Run(tmp_path / "infinite", stop=Patience(2)) as run:
        assert weights_by_epoch(run, model, [-math.inf, 2, 1, 1, 1]) == 4 and model.weight == 2
        assert run.best.step == 2


def test_a_metric_that_never_comes_is_named(tmp_path: Path) -> None:
    with tk.Run(tmp_path, stop=Patience(1) | NotANumber()) as run:
        run.save(0, model=nn.Linear(1, 1))
        for step in range(2):
            run.log(step=step, train_loss=1.0)
            assert not run.should_stop()
        run.log(step=2, train_loss=1.0)
        with pytest.warns(
            StopWarning, match=r"waits for 'val_loss', which no record has had so far; logged were: step, train_loss"
        ):
            run.should_stop()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run.should_stop()
        run.log(val_loss=1.0)
        run.save(1)
    with (
        pytest.warns(StopWarning, match="no snapshot has a finite val_loss"),
        pytest.warns(StopWarning, match="waits for 'val_loss'"),
        tk.Run(tmp_path / "short", stop=Patience(1)) as run,
    ):
        run.log(loss=1.0)
        run.save(0, model=nn.Linear(1, 1))


def test_a_damaged_best_is_passed_over(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(2)) as run:
        for epoch, loss in enumerate([3, 1, 2, 2]):
            nn.init.constant_(model.weight, epoch)
            run.log(val_loss=loss)
            before = set((tmp_path / "packs").glob("*"))
            run.save(epoch, model=model)
            if epoch == 1:
                (pack,) = set((tmp_path / "packs").glob("*")) - before
        pack.write_bytes(pack.read_bytes()[:-1])
        with pytest.warns(StopWarning) as told:
            assert run.should_stop()
        assert model.weight == 2
        texts = [str(one.message) for one in told]
        assert "snapshot 2 has better weights and is damaged" in texts[0] and "has no intact snapshot" in texts[1]


def test_a_model_that_was_changed_is_refused_and_the_run_is_let_go(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with (
        pytest.raises(IncompatibleCheckpointError, match="not the one that was saved"),
        tk.Run(tmp_path, stop=Patience(9)) as run,
    ):
        weights_by_epoch(run, model, [1, 2])
        tk.surgery.resize_head(model, classes=3)
    with tk.Run(tmp_path) as run:
        run.log(val_loss=1.0)  # the lock is free


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_budget_of_time_counts_what_led_to_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(stopping, "time", clock)
    model = nn.Linear(1, 1)
    stop = Budget(hours=1) | Patience(9)

    def epoch(run: tk.Run, number: int) -> bool:
        clock.now += 1000
        run.log(epoch=number, val_loss=1.0 / (number + 1))
        run.save(number)
        return run.should_stop()

    with tk.Run(tmp_path, stop=stop) as run:
        run.resume(model=model)
        assert not epoch(run, 0) and not epoch(run, 1)
    clock.now += 50_000  # nothing ran
    with pytest.raises(Killed), tk.Run(tmp_path, stop=stop) as run:
        assert run.resume(model=model) == 2
        clock.now += 1500  # lost in a crash
        raise Killed
    clock.now += 50_000
    with tk.Run(tmp_path, stop=stop) as run:
        assert run.resume(model=model) == 2
        assert not epoch(run, 2)
        clock.now += 599
        assert not run.should_stop() and not run.stopped
        clock.now += 1
        assert run.should_stop() and run.stopped == "1 hours of training have passed, of 1"
    with tk.Run(tmp_path, stop=stop) as run:  # goes on without resuming, from what is newest
        run.log(epoch=3, val_loss=0.1)
        clock.now += 500
        run.save(3, model=model)
        assert not run.should_stop()
        clock.now += 100
        assert run.should_stop()
    with tk.Run(tmp_path, stop=stop) as run:
        run.resume(model=model, snapshot=1)
        clock.now += 2500
        assert not run.should_stop(), "an older snapshot has its own time"


def test_a_run_that_is_used_again_or_goes_back_has_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time()
    monkeypatch.setattr(stopping, "time", clock)
    model = nn.Linear(1, 1)
    run = tk.Run(tmp_path, stop=Budget(hours=1) | Patience(9))
    with run:
        run.resume(model=model)
        run.log(val_loss=1.0)
        run.save(0)
    clock.now += 50_000
    with run:
        assert not run.should_stop(), "nothing ran while it was closed"
        clock.now += 3600
        assert run.should_stop()
        run.resume()
        assert not run.stopped and not run.should_stop(), "what it goes back to had taken no time"


def test_patience_and_time_is_not_judged_by_the_time_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(stopping, "time", clock)
    stop = Patience(1) & Budget(hours=1)
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=stop) as run:
        run.resume(model=model)
        assert weights_by_epoch(run, model, [1, 2, 0.5]) == -1
        clock.now += 4000
        run.save(3)
        assert not run.should_stop()
    with tk.Run(tmp_path, stop=stop) as run:
        run.resume(model=model)
        assert not run.should_stop(), "patience was over when the time was not"
        run.log(val_loss=0.6)
        assert run.should_stop()


def test_saves_in_the_background(tmp_path: Path) -> None:
    model = nn.Linear(300, 300)
    with tk.Run(tmp_path, stop=Patience(2), keep=tk.keep_last(1), trust_frozen=True) as run:
        for epoch, loss in enumerate([3, 1, 2, 2]):
            nn.init.constant_(model.weight, epoch)
            run.log(epoch=epoch, val_loss=loss)
            run.save(epoch, model=model, blocking=False)
            if run.should_stop():
                break
        assert epoch == 3 and (model.weight == 1).all()
    assert tk.verify(tmp_path).ok
    assert (tk.Run(tmp_path).open()["weight"].load() == 3).all(), "the last snapshot has its own weights"


def test_a_snapshot_that_is_under_way_may_be_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 1)
    with tk.Run(tmp_path, stop=Patience(9)) as run:
        assert weights_by_epoch(run, model, [3, 2]) == -1
        commit = run._archive.commit
        monkeypatch.setattr(run._archive, "commit", lambda *a, **b: time.sleep(0.3) or commit(*a, **b))
        run.log(val_loss=1)
        run.save(2, blocking=False)
        assert run.restore_best().step == 2


# -- without a run --------------------------------------------------------------------------------------------------


@given(RULES, histories(), st.data())
@CALMLY
def test_a_stopper_ends_with_the_best_weights_wherever_it_was_resumed(
    criterion: Criterion, records: Records, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(records)))
    decides = {} if criterion.watched else {"metric": "val_loss"}
    model = nn.Linear(1, 1)
    stopper = tk.EarlyStopping(model, criterion, **decides)
    last = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StopWarning)
        for epoch, record in enumerate(records):
            if epoch == cut:
                state = pickle.loads(pickle.dumps(stopper.state_dict()))
                model = nn.Linear(1, 1)
                stopper = tk.EarlyStopping(model, criterion, **decides)
                stopper.load_state_dict(state)
            nn.init.constant_(model.weight, epoch)
            last = epoch
            if stopper.update(**record):
                break
        else:
            stopper.restore_best()
    found = stop_of(criterion, records)
    assert (last, stopper.stopped) == (found or (len(records) - 1, ""))
    metric, mode = criterion.watched[0] if criterion.watched else ("val_loss", "min")
    best = best_of(records[: last + 1], metric, mode)
    assert stopper.best == (None if best is None else records[best]) or math.isnan(
        sum(v for v in records[best].values())
    )
    assert model.weight.item() == (last if best is None else best)


class Odd(nn.Module):
    """What makes copying difficult."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a b": nn.Linear(2, 2), "ü/$": nn.Linear(2, 2, dtype=torch.bfloat16)})
        self.layers["tied"] = nn.Linear(2, 2)
        self.layers["tied"].weight = self.layers["a b"].weight
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.seen = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(value)
    model.seen = int(value)


def test_an_odd_model_comes_back_whole() -> None:
    model = Odd()
    with tk.EarlyStopping(model, Patience(9)) as stopper:
        for epoch, loss in enumerate([3, 1, 2]):
            fill(model, epoch)
            model.cache = torch.zeros(epoch + 1)  # grows, and is no part of the state
            stopper.update(epoch=torch.tensor(epoch), val_loss=torch.tensor([loss]))
    assert all((tensor == 1).all() for tensor in model.parameters()) and model.steps == 1 and model.seen == 1
    assert model.layers["tied"].weight is model.layers["a b"].weight
    assert stopper.nbytes == 4 * (4 + 2) + 2 * (4 + 2) + 4 * 2 + 8, "a tied weight is kept once"
    assert stopper.best == {"epoch": 1, "val_loss": 1} and stopper.stopped == ""


def test_an_error_in_the_block_leaves_the_weights() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(Killed), tk.EarlyStopping(model, Patience(9)) as stopper:
        stopper.update(val_loss=1.0)
        nn.init.constant_(model.weight, 5)
        raise Killed
    assert model.weight == 5
    with tk.EarlyStopping(model, Patience(9)):
        pass  # nothing was looked at, so there is nothing to say


def test_what_comes_after_the_stop_is_not_the_best() -> None:
    model = nn.Linear(1, 1)
    stopper = tk.EarlyStopping(model, Patience(1))
    for epoch, loss in enumerate([1, 2, 0]):
        nn.init.constant_(model.weight, epoch)
        assert stopper.update(val_loss=loss) == (epoch > 0)
    assert model.weight == 0 and stopper.best == {"val_loss": 1}


def test_the_copy_is_made_at_improvements_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = stopping._copies
    monkeypatch.setattr(stopping, "_copies", lambda *given: made.append(1) or original(*given))
    stopper = tk.EarlyStopping(nn.Linear(1, 1), Patience(9))
    for loss in (3, 2, 2, 2.5, math.nan, 1, 1):
        stopper.update(val_loss=loss)
    assert len(made) == 3


def test_a_state_that_was_taken_does_not_change() -> None:
    model = nn.Linear(1, 1)
    stopper = tk.EarlyStopping(model, Patience(9))
    nn.init.constant_(model.weight, 1)
    stopper.update(val_loss=2)
    state = stopper.state_dict()
    nn.init.constant_(model.weight, 7)
    stopper.update(val_loss=1)
    assert state["weights"]["weight"] == 1 and state["best"] == {"val_loss": 2}


def test_a_stopper_is_pickled_with_its_model() -> None:
    model = nn.Linear(1, 1)
    stopper = tk.EarlyStopping(model, Patience(2) | Budget(hours=1))
    nn.init.constant_(model.weight, 1)
    stopper.update(val_loss=1)
    nn.init.constant_(model.weight, 2)
    stopper.update(val_loss=2)
    for other in (pickle.loads(pickle.dumps(stopper)), copy.deepcopy(stopper)):
        assert other.model is not model and other.criterion == stopper.criterion
        assert other.update(val_loss=3) and other.model.weight == 1
    assert model.weight == 2 and not stopper.stopped


def test_time_of_a_stopper_goes_on_in_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(stopping, "time", clock)
    stopper = tk.EarlyStopping(nn.Linear(1, 1), Patience(9) | Budget(hours=1))
    clock.now += 3000
    state, pickled = stopper.state_dict(), pickle.dumps(stopper)
    clock.now += 50_000
    other = tk.EarlyStopping(nn.Linear(1, 1), Patience(9) | Budget(hours=1))
    other.load_state_dict(state)
    third = pickle.loads(pickled)
    for one in (other, third):
        assert not one.update(val_loss=3)
    clock.now += 599
    assert not other.update(val_loss=3) and not third.update(val_loss=3)
    clock.now += 1
    assert other.update(val_loss=3) and third.update(val_loss=3)


def test_a_run_tracks_a_stopper(tmp_path: Path) -> None:
    model = Odd()
    values = [3, 1, 2, 2, 2]

    def train(stop_after: int) -> tk.EarlyStopping:
        fill(model, -1)
        stopper = tk.EarlyStopping(model, Patience(3) | NotANumber())
        with tk.Run(tmp_path) as run:
            for epoch in range(run.resume(model=model, stopper=stopper), stop_after):
                fill(model, epoch)
                stop = stopper.update(epoch=epoch, val_loss=values[epoch])
                report = run.save(epoch)
                assert epoch != 2 or report.tensors_written < 12
                if stop:
                    break
        return stopper

    train(3)
    stopper = train(5)
    assert stopper.stopped.endswith("for 3 values: best 1 at epoch 1, now 2")
    assert model.steps == 1 and model.seen == 1 and stopper.nbytes == 4 * 6 + 2 * 6 + 4 * 2 + 8


def test_a_state_of_something_else_is_refused() -> None:
    model = nn.Linear(1, 1)
    stopper = tk.EarlyStopping(model, Patience(5))
    stopper.update(val_loss=1.0)
    state = stopper.state_dict()
    with pytest.raises(IncompatibleCheckpointError, match=r"the criterion is Patience\(count=6"):
        tk.EarlyStopping(model, Patience(6)).load_state_dict(state)
    with pytest.raises(IncompatibleCheckpointError, match="compares val_loss min, and the stopper val_loss max"):
        tk.EarlyStopping(model, Patience(5), mode="max").load_state_dict(state)
    with pytest.raises(IncompatibleCheckpointError, match="not the one whose weights were kept: bias, weight differ"):
        tk.EarlyStopping(nn.ReLU(), Patience(5)).load_state_dict(state)
    stopper.model = nn.Linear(1, 2)
    with pytest.raises(IncompatibleCheckpointError, match="not the one whose weights were kept"):
        stopper.restore_best()


def test_a_model_without_values_is_refused() -> None:
    stopper = tk.EarlyStopping(nn.Linear(1, 1, device="meta"), Patience(5))
    with pytest.raises(UnsavableError, match="on the meta device"):
        stopper.update(val_loss=1.0)
    with pytest.raises(UnsavableError, match=r"tensor of shape \(2,\)"):
        stopper.update(val_loss=torch.zeros(2))


def test_a_stopper_says_what_it_misses() -> None:
    stopper = tk.EarlyStopping(nn.Linear(1, 1), Patience(5))
    stopper.update(loss=1.0)
    stopper.update(loss=1.0)
    with pytest.warns(StopWarning, match="waits for 'val_loss', which no record has had so far; logged were: loss"):
        stopper.update(loss=1.0)
    with pytest.warns(StopWarning, match="val_loss has had no finite value, so no weights are best"):
        assert not stopper.restore_best()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
