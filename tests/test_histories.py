"""Histories: who wrote them is recognised by content, names are recognised, and what is odd is put in order and said."""

from __future__ import annotations

import json
import math
import random
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchkeep as tk
from torchkeep.core.curves import Curves, Series
from torchkeep.core.curving import curves_of
from torchkeep.core.history import History
from torchkeep.core.roles import is_rate, read_name
from torchkeep.core.rows import Gathering, Rows, number_in, rows_of
from torchkeep.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    SelectorError,
    TorchkeepError,
    UnknownFormatError,
)
from torchkeep.histories import HISTORIES
from torchkeep.histories.tensorboard import _checksums
from torchkeep.reading import setting_of

DATA = Path(__file__).parent / "data" / "histories"


def written(folder: Path, text: str, name: str = "metrics.log", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def curves(records: Sequence[dict[str, Any]], **options: Any) -> Curves:
    return curves_of(History(tuple(records)), **options)


def y(series: Series | None) -> list[float]:
    assert series is not None
    return series.y.tolist()


def x(series: Series | None) -> list[float]:
    assert series is not None
    return series.x.tolist()


# -- files that the libraries themselves wrote ------------------------------------------------------------------------


def test_torch_scalars() -> None:
    history = tk.read_history(DATA / "torch_events")
    assert history.source == "tensorboard" and history.notes == ()
    assert history[2] == {"step": 2, "Loss/train": pytest.approx(2 / 3), "Loss/val": pytest.approx(2.5 / 3),
                          "Accuracy/val": pytest.approx(2 / 12)}  # fmt: skip
    read = curves_of(history)
    assert read.unit == "step" and y(read.train_loss) == pytest.approx([2 / (step + 1) for step in range(12)])
    assert x(read.val_loss) == [2, 5, 8, 11] and math.isnan(y(read.val_loss)[-1]) and read.val_loss.best == 2
    assert y(read.val_metric) == pytest.approx([2 / 12, 5 / 12, 8 / 12, 11 / 12]) and read.val_metric.mode == "max"
    (file,) = (DATA / "torch_events").iterdir()
    assert str(list(tk.read_history(file))) == str(list(history))  # as text, for it has a NaN


def test_a_second_process_goes_on_from_an_earlier_step() -> None:
    history = tk.read_history(DATA / "torch_resumed")
    assert history.metric("train_loss") == [1, 2, 3, 4, 6, 7]
    assert any("went back" in note for note in history.notes)


def test_add_scalars_and_the_folders_of_keras() -> None:
    read = curves_of(tk.read_history(DATA / "torch_add_scalars"))
    assert read.train_loss.name == "Loss_train/Loss" and y(read.val_loss) == pytest.approx([1.5, 0.75, 0.5, 0.375, 0.3])
    keras = curves_of(tk.read_history(DATA / "keras_events"))
    assert keras.unit == "epoch" and y(keras.train_loss) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert y(keras.val_loss) == pytest.approx([1.5, 0.75, 0.5, 0.375])


def test_keras() -> None:
    history = tk.read_history(DATA / "keras.csv")
    assert history.source == "csv" and len(history) == 7
    read = curves_of(history)
    assert x(read.val_loss) == [0, 1, 2] and any("went back" in note for note in read.notes)
    dumped = tk.read_history(DATA / "keras_history.json")
    assert dumped.source == "json" and dumped.metric("val_loss") == pytest.approx(y(read.val_loss))
    given = tk.read_history(json.loads((DATA / "keras_history.json").read_text()))
    assert given.records == dumped.records
    assert (read.train_metric.name, read.val_metric.name) == ("accuracy", "val_accuracy")


def test_lightning_twice_the_same() -> None:
    csv, events = (curves_of(tk.read_history(DATA / name)) for name in ("lightning_csv", "lightning_events"))
    for read in (csv, events):
        assert read.unit == "epoch" and x(read.train_loss) == x(read.val_loss) == [0, 1, 2, 3]
        assert read.train_loss.name == "train_loss_epoch" and read.val_metric.name == "val_acc"
        assert y(read.rate) == pytest.approx([0.05] * 4) and x(read.rate) == [0, 1, 2, 3]
    assert y(csv.val_loss) == pytest.approx(y(events.val_loss))


def test_hugging_face(tmp_path: Path) -> None:
    history = tk.read_history(DATA / "hf")
    assert history.source == "hf" and not any("train_runtime" in record for record in history)
    read = curves_of(history)
    assert read.unit == "epoch" and read.train_loss.name == "loss" and read.val_loss.name == "eval_loss"
    assert x(read.train_loss) == [0.5, 1, 1.5, 2, 2.5, 3] and x(read.val_loss) == [1, 2, 3]
    assert read.val_metric.name == "eval_accuracy" and read.rate.name == "learning_rate"
    assert len(tk.read_history(DATA / "hf" / "checkpoint-10")) < len(history)
    assert tk.read_history(DATA / "hf" / "checkpoint-20" / "trainer_state.json").source == "hf"
    for name in ("checkpoint-9", "checkpoint-10"):
        (tmp_path / name).mkdir()
        text = (DATA / "hf" / "checkpoint-20" / "trainer_state.json").read_text()
        (tmp_path / name / "trainer_state.json").write_text(text if name == "checkpoint-9" else text[:-50])
    torn = tk.read_history(tmp_path)
    assert len(torn) == 6 and any("checkpoint-10" in note for note in torn.notes)
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{")
    with pytest.raises(CorruptCheckpointError):
        tk.read_history(tmp_path)


def test_several_at_once() -> None:
    found = tk.read_histories(DATA)
    assert {"hf", "keras.csv", "keras_events", "lightning_csv/version_0/metrics.csv", "torch_events"} <= found.keys()
    assert all(curves_of(history).train_loss is not None for history in found.values())
    assert not any(name.startswith("hf/") for name in found)
    with pytest.raises(UnknownFormatError, match=r"histories: .*hf"):
        tk.read_history(DATA)
    assert list(tk.read_histories(DATA / "keras.csv")) == ["keras.csv"]


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_as_object_folder_and_file(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model)
        for epoch in range(3):
            run.log(epoch=epoch, train_loss=1 / (epoch + 1), val_loss=float("nan") if epoch == 1 else 0.5)
            run.save(epoch)
        run.resume(model=model, snapshot=2)
        run.log(epoch=2, train_loss=0.25, val_loss=0.4)
        for read in (
            tk.read_history(run),
            tk.read_history(tmp_path / "run"),
            tk.read_history(tmp_path / "run" / "history.jsonl"),
            tk.read_history(run.history),
        ):
            assert list(read)[2] == {"epoch": 2, "train_loss": 0.25, "val_loss": 0.4} and len(read) == 3
            assert math.isnan(read[1]["val_loss"])
    assert tk.read_history(tmp_path / "run").source == "run"
    assert tk.read_history(tmp_path).title.endswith("run")
    new = tk.Run(tmp_path / "new")
    assert len(tk.read_history(new)) == 0
    assert curves_of(tk.read_history(new)).train_loss is None


def test_a_damaged_line_of_a_run_is_counted(tmp_path: Path) -> None:
    with tk.Run(tmp_path / "run") as run:
        for epoch in range(3):
            run.log(epoch=epoch, val_loss=0.5)
    file = tmp_path / "run" / "history.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"epoch":1', b'"epoch":7') + b'{"epo')
    history = tk.read_history(tmp_path / "run")
    assert history.metric("epoch") == [0, 2] and history.damaged == (2,) and "1 damaged" in history.notes[0]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Dropout(0.3), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)
    )


def test_the_setting_of_a_run(tmp_path: Path) -> None:
    model = network()
    tk.freeze(model, "0")
    decays = [{"params": model[3].weight, "weight_decay": 0.1}, {"params": model[3].bias, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(decays)
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model, optimizer=optimizer)
        for epoch in range(2):
            run.log(epoch=epoch + 10, val_loss=1.0)
            run.save(epoch)
        live = setting_of(run)
    setting = setting_of(tmp_path / "run")
    total = sum(one.numel() for one in model.parameters())
    assert setting.parameters == total and setting.trainable == pytest.approx(26 / total)
    assert setting.weight_decay == pytest.approx(0.1) and setting.snapshots == (10, 11)
    assert (setting.optimizer, setting.rate, setting.momentum) == ("adam", pytest.approx(1e-3), None)
    assert setting.dropout is None and live.dropout == pytest.approx(0.3)
    assert setting_of(tmp_path / "run", unit="step").snapshots == (0, 1)
    assert setting.phases == ()  # one and the same all the time


def test_the_rate_of_a_run_is_the_one_before_its_schedule(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model, optimizer=optimizer, scheduler=scheduler)
        optimizer.step()
        scheduler.step()
        run.save(0)
    setting = setting_of(tmp_path / "run")
    assert (setting.optimizer, setting.rate, setting.momentum) == ("sgd", pytest.approx(0.4), pytest.approx(0.9))


def test_dropout_that_freezing_holds_is_not_in_force(tmp_path: Path) -> None:
    held = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.7)), torch.nn.Linear(4, 2))
    tk.freeze(held, "0")
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=held)
        run.save(0)
        assert run.setting().dropout == 0.0 and run.setting().weight_decay is None


def test_freeze_phases_of_a_run(tmp_path: Path) -> None:
    model = network()
    spec = tk.FreezeSpec([tk.Phase("3", epochs=2), tk.Phase("*")])
    tk.freeze(model, spec)
    with tk.Run(tmp_path / "planned") as run:
        run.resume(model=model)
        for epoch in range(4):
            tk.enter_phase(model, epoch)
            run.log(epoch=epoch, val_loss=1.0)
            run.save(epoch)
    setting = setting_of(tmp_path / "planned")
    assert setting.phases == ((0, "3"), (2, "*")) and setting.trainable == 1.0
    model = network()
    with tk.Run(tmp_path / "by hand") as run:
        run.resume(model=model)
        for epoch in range(4):
            model[0].requires_grad_(epoch != 2)
            run.save(epoch)
    assert setting_of(tmp_path / "by hand").phases == ((0, "*"), (2, "4 of 6 parameters"), (3, "*"))
    with tk.Run(tmp_path / "none") as run:
        run.resume(model=network())
        run.save(0)
    assert setting_of(tmp_path / "none").phases == ()


def test_the_setting_of_nothing(tmp_path: Path) -> None:
    with tk.Run(tmp_path / "run") as run:
        run.log(val_loss=1.0)
        assert run.setting() == setting_of(tmp_path / "run") and run.setting().parameters is None
    with pytest.raises(TorchkeepError, match="is no run"):
        setting_of(tmp_path)


def test_an_abandoned_branch_is_not_the_setting(tmp_path: Path) -> None:
    model = network()
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model)
        for epoch in range(4):
            run.save(epoch)
        run.resume(model=model, snapshot=2)
        run.save(2)
    assert setting_of(tmp_path / "run").snapshots == (0, 1, 2)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["val_loss", "eval_loss", "valid/loss", "validation_loss", "val/loss_epoch", "Loss/val", "Loss/valid", "valLoss",
     "dev.loss", "Validation Loss", "valloss", "train/val_loss", "val_loss/dataloader_idx_0", "VAL_LOSS", "loss_val",
     "epoch_val_loss", "validation/epoch_loss", "Loss_val/Loss", "avg_val_loss"],
)  # fmt: skip
def test_the_validation_loss_by_any_name(name: str) -> None:
    for train in ("train_loss", "loss", "Loss/train", "training_loss", "train/loss_epoch"):
        read = curves([{"epoch": epoch, train: 1.0, name: 2.0} for epoch in range(3)])
        assert read.val_loss.name == name and read.train_loss.name == train and read.notes == ()
        assert read.val_loss.mode == "min" and not read.others


@pytest.mark.parametrize(
    ("name", "base"),
    [("val_accuracy", "accuracy"), ("val_acc", "accuracy"), ("eval/accuracy", "accuracy"), ("valid_f1", "f1"),
     ("val_acc@1", "accuracy"), ("valacc", "accuracy"), ("val_MulticlassAccuracy", "multiclass accuracy"),
     ("val/mAP50", "map50"), ("val_r2", "r2"), ("eval_f1_score", "f1 score")],
)  # fmt: skip
def test_metrics_by_any_name(name: str, base: str) -> None:
    assert " ".join(read_name(name).base) == base
    read = curves([{"epoch": epoch, "loss": 1.0, "val_loss": 1.0, name: 0.5} for epoch in range(3)])
    assert read.val_metric.name == name and read.val_metric.mode == "max" and read.train_metric is None


@pytest.mark.parametrize("name", ["lr", "learning_rate", "lr-AdamW", "lr-SGD/pg1", "train/learning_rate", "LR", "lr0"])
def test_rates_by_any_name(name: str) -> None:
    assert is_rate(name)
    assert curves([{"step": 1, name: 0.1, "loss": 1.0}]).rate.name == name


def test_words_that_only_look_alike_are_no_roles() -> None:
    assert not any(map(is_rate, ("clear", "alr", "color", "later", "tlr2")))
    read = curves([{"epoch": 0, "lossy": 1.0, "evaluator": 2.0, "gloss": 1.0, "trainer": 1.0}])
    assert read.train_loss is read.val_loss is read.val_metric is None and len(read.others) == 4


def test_accuracy_beside_other_metrics_and_on_which_set_it_is() -> None:
    both = curves([{"epoch": 0, "loss": 1.0, "val_loss": 1.0, "f1": 0.1, "val_f1": 0.2, "acc": 0.3, "val_acc": 0.4}])
    assert (both.train_metric.name, both.val_metric.name) == ("acc", "val_acc") and set(both.others) == {"f1", "val_f1"}
    asked = curves([{"epoch": 0, "loss": 1.0, "val_f1": 0.2, "val_acc": 0.4}], metric="f1")
    assert asked.val_metric.name == "val_f1"
    bare = curves([{"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "accuracy": 0.3}])
    assert bare.val_metric.name == "accuracy" and bare.train_metric is None and "validation" in bare.notes[0]
    keras = curves([{"epoch": 0, "loss": 1.0, "val_loss": 1.0, "accuracy": 0.3}])
    assert keras.train_metric.name == "accuracy" and keras.val_metric is None
    alone = curves([{"epoch": 0, "accuracy": 0.3}])
    assert alone.train_metric.name == "accuracy"
    regression = curves([{"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "val_mae": 0.3}])
    assert regression.val_metric.name == "val_mae" and regression.val_metric.mode == "min"


def test_test_sets_count_only_where_there_is_no_validation_set() -> None:
    read = curves([{"epoch": 0, "train_loss": 1.0, "test_loss": 2.0, "test_acc": 0.5}])
    assert read.val_loss.name == "test_loss" and read.val_metric.name == "test_acc" and "validation" in read.notes[0]
    read = curves([{"epoch": 0, "train_loss": 1.0, "val_loss": 1.5, "test_loss": 2.0}])
    assert read.val_loss.name == "val_loss" and set(read.others) == {"test_loss"} and read.notes == ()
    read = curves(
        [{"epoch": 0, "train_total_loss": 1.0, "val_total_loss": 1.5, "test_loss": 2.0, "acc": 0.1, "val_f1": 0.2}]
    )
    assert read.val_loss.name == "val_total_loss" and read.val_metric.name == "val_f1" and read.train_metric is None


def test_the_summary_of_a_training_is_not_its_loss() -> None:
    records: list[dict[str, Any]] = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(8)]
    read = curves([*records, {"step": 7, "eval_loss": 0.2}, {"step": 7, "train_loss": 0.4}])
    assert read.train_loss.name == "loss" and len(read.train_loss) == 8 and read.val_loss.name == "eval_loss"


def test_losses_in_parts_and_by_other_names() -> None:
    parts = curves(
        [{"epoch": 0, "train/box_loss": 1.0, "train/cls_loss": 2.0, "val/box_loss": 1.5, "val/cls_loss": 2.5}]
    )
    assert parts.train_loss.name == "train/box_loss" and parts.val_loss.name == "val/box_loss"
    assert any("cls loss" in note for note in parts.notes)
    mse = curves([{"epoch": 0, "train_mse": 1.0, "val_mse": 1.5, "val_r2": 0.2}])
    assert mse.val_loss.name == "val_mse" and mse.val_metric.name == "val_r2" and "taken for the loss" in mse.notes[0]
    total = curves([{"epoch": 0, "aux_loss": 1.0, "total_loss": 3.0, "val_total_loss": 4.0, "val_aux_loss": 1.0}])
    assert (total.train_loss.name, total.val_loss.name) == ("total_loss", "val_total_loss")


def test_two_names_for_the_same_are_said() -> None:
    read = curves([{"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "eval_loss": 2.0}])
    assert read.val_loss.name == "val_loss" and any("'eval_loss'" in note for note in read.notes)


def test_given_names_win_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    records = [{"epoch": 0, "t": 3, "loss": 1.0, "my/loss": 2.0, "val_loss": 3.0, "goodness": 0.5}]
    read = curves(records, names={"train_loss": "my/loss", "val_metric": "goodness", "step": "t"}, mode="max")
    assert read.train_loss.name == "my/loss" and read.val_loss.name == "val_loss" and "loss" in read.others
    assert read.val_metric.mode == "max" and not read.notes
    assert "goodness" in curves(records, names={"val_metric": "goodness"}).notes[-1]
    text = curves([{"epoch": 0, "loss": 1.0, "note": "x"}], names={"rate": "note"})
    assert text.rate is None and text.notes == ("'note', given for rate, has no numbers",)
    with pytest.raises(SelectorError, match="my/loss"):
        curves(records, names={"train_loss": "my/los"})
    with pytest.raises(SelectorError, match="train_loss"):
        curves(records, names={"train_los": "loss"})
    with pytest.raises(SelectorError, match="no metric 'accuracy'"):
        curves(records, metric="accuracy")
    with pytest.raises(ValueError, match="'min', 'max' or empty"):
        curves(records, mode="low")
    path = written(tmp_path, "epoch,a,b\n0,1,2\n")
    history = tk.read_history(path, names={"train_loss": "a", "val_loss": "b"})
    assert curves_of(history).val_loss.name == "b" and curves_of(history, names={"val_loss": "a"}).val_loss.name == "a"
    with pytest.raises(SelectorError, match="no 'c'"):
        tk.read_history(path, names={"train_loss": "c"})


def test_percent_and_shares() -> None:
    read = curves([{"epoch": e, "val_loss": 1.0, "train_acc": 90.0 + e, "val_acc": 93.1} for e in range(3)])
    assert y(read.val_metric) == pytest.approx([0.931] * 3) and y(read.train_metric) == pytest.approx([0.9, 0.91, 0.92])
    assert sum("percent" in note for note in read.notes) == 2
    for name, values in (("val_acc", [0.1, 1.0]), ("val_acc", [50.0, 120.0]), ("val_bleu", [20.0, 30.0]),
                         ("val_perplexity", [20.0, 30.0]), ("val_r2", [-5.0, 0.9])):  # fmt: skip
        assert y(curves([{"epoch": e, "val_loss": 1.0, name: v} for e, v in enumerate(values)]).val_metric) == values
    assert number_in("93.1 %") == pytest.approx(0.931)


# -- where points lie -------------------------------------------------------------------------------------------------


def test_steps_and_epochs_both() -> None:
    records: list[dict[str, Any]] = []
    for epoch in range(4):
        records += [{"epoch": epoch, "step": 10 * epoch + at, "train_loss": float(at)} for at in range(0, 10, 2)]
        records.append({"epoch": epoch, "step": 10 * epoch + 9, "val_loss": 1.0})
    read = curves(records)
    assert read.unit == "epoch" and y(read.train_loss) == [4.0] * 4 and any("mean" in note for note in read.notes)
    often = [one | {"val_loss": 1.0} for one in records]
    assert curves(often).unit == "step" and len(curves(often).val_loss) == 24
    short = [one for one in records if one["epoch"] < 1 and "train_loss" in one]
    assert curves(short).unit == "step" and len(curves(short).train_loss) == 5


def test_some_records_have_steps_and_others_epochs() -> None:
    records: list[dict[str, Any]] = []
    for epoch in range(1, 4):
        records += [{"step": 10 * (epoch - 1) + at, "loss": 1.0} for at in (2, 4, 6, 8, 10)]
        records.append({"epoch": epoch, "val_loss": 1.0})
    read = curves(records)
    assert read.unit == "epoch" and x(read.val_loss) == [1, 2, 3] and "steps are placed" in read.notes[0]
    assert x(read.train_loss) == pytest.approx([at / 10 for at in range(2, 31, 2)])
    read = curves(records[:6])
    assert read.unit == "step" and x(read.val_loss) == [10]


def test_a_batch_number_is_no_step() -> None:
    records = [{"epoch": e, "step": s, "loss": 1.0, "val_loss": 1.0} for e in range(4) for s in range(5)]
    read = curves(records)
    assert read.unit == "epoch" and len(read.train_loss) == 4 and any("anew in every epoch" in n for n in read.notes)


def test_no_axis_at_all() -> None:
    read = curves([{"loss": 1.0, "note": "warm-up"}, {"note": "nothing"}, {"loss": 0.5, "val_loss": 0.7}])
    assert x(read.train_loss) == [1, 2] and x(read.val_loss) == [2] and "counted from 1" in read.notes[0]


def test_unsorted_and_doubled_and_resumed() -> None:
    shuffled = [3, 1, 2, 0]
    read = curves([{"epoch": e, "loss": float(e)} for e in shuffled])
    assert x(read.train_loss) == y(read.train_loss) == [0, 1, 2, 3] and "sorted" in read.notes[0]
    resumed = curves([{"epoch": e, "loss": float(n)} for n, e in enumerate([0, 1, 2, 3, 4, 5, 2, 3])])
    assert x(resumed.train_loss) == [0, 1, 2, 3] and y(resumed.train_loss) == [0, 1, 6, 7]
    assert "went back to an earlier epoch once" in resumed.notes[0] and "4 records" in resumed.notes[0]
    thrice = curves([{"epoch": e, "loss": float(n)} for n, e in enumerate([0, 1, 2, 1, 2, 3, 0, 1, 2, 3, 4])])
    assert y(thrice.train_loss) == [6, 7, 8, 9, 10]
    several = curves([{"epoch": e, "loss": float(n)} for n, e in enumerate([0, 0, 1, 1])])
    assert y(several.train_loss) == [0.5, 2.5]
    apart = [{"epoch": e, "loss": 1.0} for e in range(3)] + [{"epoch": e, "val_loss": 2.0} for e in range(3)]
    assert curves(apart).notes == () and len(curves(apart).train_loss) == 3
    chaos = random.Random(0)
    read = curves([{"epoch": chaos.randrange(50), "loss": float(n)} for n in range(2000)])
    assert x(read.train_loss) == list(range(50)) and "no order" in read.notes[0]


def test_the_later_record_counts_for_each_curve() -> None:
    """A run that goes back is followed record by record: steps and validation go back together."""
    records: list[dict[str, Any]] = []
    for branch, (begin, end) in enumerate([(0, 8), (3, 6)]):
        for epoch in range(begin, end):
            records += [{"epoch": epoch, "train_loss": float(branch)}, {"epoch": epoch, "val_loss": float(branch)}]
    read = curves(records)
    assert y(read.train_loss) == y(read.val_loss) == [0, 0, 0, 1, 1, 1]


def test_what_is_no_number_stays_or_is_said() -> None:
    read = curves([{"epoch": 0, "loss": math.nan}, {"epoch": 1, "loss": "inf"}, {"epoch": 2, "loss": "oops"},
                   {"epoch": 3, "loss": None}, {"epoch": 4, "loss": True}, {"epoch": math.nan, "loss": 9.0},
                   {"epoch": 5, "loss": 0.5, "phase": "warm", "done": False, "more": [1, 2]}])  # fmt: skip
    assert (
        x(read.train_loss) == [0, 1, 5]
        and math.isnan(y(read.train_loss)[0])
        and y(read.train_loss)[1:] == [math.inf, 0.5]
    )
    assert any("'oops'" in note for note in read.notes) and any("no epoch" in note for note in read.notes)
    assert not read.others
    mean = curves([{"epoch": 0, "loss": 1.0}, {"epoch": 0, "loss": math.nan}, {"epoch": 1, "loss": math.inf}])
    assert math.isnan(y(mean.train_loss)[0]) and y(mean.train_loss)[1] == math.inf


def test_objects_in_records_are_laid_flat() -> None:
    read = curves([{"epoch": e, "train": {"loss": 1.0}, "val": {"loss": 2.0, "acc": 0.5}} for e in range(2)])
    assert (read.train_loss.name, read.val_loss.name, read.val_metric.name) == ("train/loss", "val/loss", "val/acc")


def test_nothing() -> None:
    for read in (curves([]), curves([{}]), curves([{"epoch": 1}]), curves([{"a": "b"}])):
        assert read.train_loss is read.val_loss is read.rate is None and not read.others and math.isnan(read.end)


# -- CSV --------------------------------------------------------------------------------------------------------------

TABLE = [{"epoch": 0, "loss": 1.5, "val_loss": 2.25}, {"epoch": 1, "loss": 0.5, "val_loss": 1.125}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_of_many_kinds(tmp_path: Path, encoding: str, end: str, separator: str, quote: str) -> None:
    rows = [["epoch", "loss", "val_loss"], ["0", "1.5", "2.25"], [], ["1", " 0.5", "1.125 "]]
    text = end.join(separator.join(f"{quote}{cell}{quote}" for cell in row) for row in rows) + end
    history = tk.read_history(written(tmp_path, text, encoding=encoding))
    assert history.source == "csv" and list(history) == TABLE and history.notes == ()


def test_decimal_commas_where_they_cannot_be_thousands(tmp_path: Path) -> None:
    history = tk.read_history(written(tmp_path, "epoch;loss;val_loss\n0;1,5;2,250\n1;0,5;1,125\n"))
    assert list(history) == TABLE
    assert list(tk.read_history(written(tmp_path, 'epoch,loss\n0,"0,5"\n'))) == [{"epoch": 0, "loss": 0.5}]
    unclear = tk.read_history(written(tmp_path, "epoch;loss\n0;1,500\n1;1,250\n"))
    assert "decimals or thousands" in unclear.notes[0] and curves_of(unclear).train_loss is None


def test_empty_cells_text_and_odd_rows(tmp_path: Path) -> None:
    text = "epoch,loss,val_loss,note\n0,1,,warm-up\n1,nan,NA,\n2,-inf,null,x,y\nepoch,loss,val_loss,note\n3,0.5\n4,1e-3,2,\n"
    history = tk.read_history(written(tmp_path, text))
    assert history[0] == {"epoch": 0, "loss": 1, "note": "warm-up"} and history[3] == {"epoch": 3, "loss": 0.5}
    assert math.isnan(history[1]["loss"]) and history[2]["loss"] == -math.inf and "val_loss" not in history[2]
    assert len(history) == 5 and len(history.notes) == 3 and history.metric("val_loss") == [2]


def test_columns_without_a_name_or_with_one_twice(tmp_path: Path) -> None:
    history = tk.read_history(written(tmp_path, ",epoch,loss,loss\n0,0,1,2\n1,1,3,4\n"))
    assert list(history.columns()) == ["column 1", "epoch", "loss", "loss.1"] and "'loss.1'" in history.notes[0]
    assert list(tk.read_history(written(tmp_path, "# epoch, loss\n0, 1\n"))) == [{"epoch": 0, "loss": 1}]


@pytest.mark.parametrize("torn", ["2", "2,0.3", "2,0.3,", '2,0.3,"0.1', "2,0.25,0."])
def test_a_torn_last_line_of_a_csv(tmp_path: Path, torn: str) -> None:
    rows = "".join(f"{epoch},0.51234,0.61234\n" for epoch in range(2))
    history = tk.read_history(written(tmp_path, f"epoch,loss,val_loss\n{rows}{torn}"))
    assert history.metric("epoch") == [0, 1] and "torn" in history.notes[0]
    whole = tk.read_history(written(tmp_path, f"epoch,loss,val_loss\n{rows}2,0.5,0.6123"))
    assert whole.metric("val_loss")[-1] == 0.6123 and "taken as whole" in whole.notes[0]


def test_zeros_that_a_crash_leaves(tmp_path: Path) -> None:
    assert len(tk.read_history(written(tmp_path, "epoch,loss\n0,1\n1,2\n" + "\0" * 500))) == 2
    assert len(tk.read_history(written(tmp_path, '{"epoch": 0, "loss": 1}\n' + "\0" * 500))) == 1


def test_only_a_header_and_nothing_at_all(tmp_path: Path) -> None:
    history = tk.read_history(written(tmp_path, "epoch,loss,val_loss\n"))
    assert len(history) == 0 and list(history.columns()) == ["epoch", "loss", "val_loss"]
    assert curves_of(history, names={"train_loss": "loss"}).train_loss is None
    for text in ("", "\n \n", "\ufeff"):
        with pytest.raises(UnknownFormatError, match="is empty"):
            tk.read_history(written(tmp_path, text))


def test_an_open_quotation_mark(tmp_path: Path) -> None:
    text = "epoch,loss\n0,1\n" + '1,"' + "2\n3,4\n" * 50000
    history = tk.read_history(written(tmp_path, text))
    assert history[0] == {"epoch": 0, "loss": 1} and any("nothing is read beyond" in note for note in history.notes)


def test_blocks_and_chunks_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(n, n / 7, "" if n % 3 else n / 9) for n in range(200)]
    text = "epoch,loss,val_loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    whole = list(tk.read_history(written(tmp_path, text)))
    lines = "".join(json.dumps(record) + "\n" for record in whole)
    for size in (7, 64, 1000):
        monkeypatch.setattr("torchkeep.histories.csv._BLOCK", size)
        monkeypatch.setattr("torchkeep.histories.csv._CHUNK", 3)
        monkeypatch.setattr("torchkeep.histories.jsonl._BLOCK", size)
        assert list(tk.read_history(written(tmp_path, text))) == whole
        assert list(tk.read_history(written(tmp_path, text.replace("\n7,", '\n"7",')))) == whole
        assert list(tk.read_history(written(tmp_path, lines))) == whole


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    text = '\ufeff{"epoch": 0, "loss": NaN}\n\n{"epoch": 1, "loss": -Infinity}\nnonsense\n[1]\n{"epoch": 2, "lo'
    history = tk.read_history(written(tmp_path, text))
    assert history.source == "jsonl" and history.metric("epoch") == [0, 1] and math.isnan(history[0]["loss"])
    assert history.damaged == (4, 5) and "torn" in history.notes[0] and "4, 5" in history.notes[1]
    assert len(tk.read_history(written(tmp_path, '{"epoch": 0, "lo'))) == 0
    long = "".join(json.dumps({"step": n, "loss": math.nan if n == 500 else 1.0}) + "\n" for n in range(1000))
    read = tk.read_history(written(tmp_path, long))
    assert read.metric("step") == list(range(1000)) and math.isnan(read[500]["loss"]) and read.notes == ()


def test_json_documents(tmp_path: Path) -> None:
    for value in (TABLE, {"epoch": [0, 1], "loss": [1.5, 0.5], "val_loss": [2.25, 1.125]}):
        for indent in (None, 2):
            history = tk.read_history(written(tmp_path, json.dumps(value, indent=indent)))
            assert history.source == "json" and list(history) == TABLE
    uneven = tk.read_history(written(tmp_path, '{"loss": [1, 2], "val_loss": [3]}'))
    assert list(uneven) == [{"loss": 1, "val_loss": 3}, {"loss": 2}] and "val_loss" in uneven.notes[0]
    with pytest.raises(UnknownFormatError, match="neither a list of objects"):
        tk.read_history(written(tmp_path, '{\n "lr": 0.1\n}'))
    with pytest.raises(CorruptCheckpointError, match="no whole JSON"):
        tk.read_history(written(tmp_path, '[{"loss": 1}, {"lo'))


def test_what_is_given_in_memory() -> None:
    assert list(tk.read_history(TABLE)) == TABLE
    assert list(tk.read_history({"loss": np.array([1.0, 2.0])})) == [{"loss": 1.0}, {"loss": 2.0}]
    assert list(tk.read_history(iter(TABLE))) == TABLE
    with pytest.raises(TypeError, match="has a int"):
        tk.read_history([1])  # type: ignore[list-item]


# -- what is no history -----------------------------------------------------------------------------------------------


def test_what_nobody_knows_says_what_was_looked_for(tmp_path: Path) -> None:
    others = {
        "a.csv": "Dear reader, this is a letter.\nIt has no numbers, and two lines.\n",
        "train.log": "Epoch 1, loss: 0.5, val_loss: 0.6\nEpoch 2, loss: 0.4, val_loss: 0.5\n",
        "hparams.yaml": "lr: 0.1\nbatch_size: 32\n",
        "numbers": "1,2,3\n4,5,6\n",
        "binary": "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0",
    }
    for name, text in others.items():
        with pytest.raises(UnknownFormatError, match=r"looked for: .*trainer_state.json.*TensorBoard.*JSON lines.*CSV"):
            tk.read_history(written(tmp_path, text, name))
    torch.save({"loss": 1}, tmp_path / "model.pth")
    with pytest.raises(UnknownFormatError):
        tk.read_history(tmp_path / "model.pth")
    with pytest.raises(UnknownFormatError, match="has no history in it"):
        tk.read_history(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        tk.read_history(tmp_path / "missing.csv")
    written(tmp_path, "epoch,val_loss\n0,1\n", "b.csv")
    written(tmp_path, "id,label\n0,1\n", "labels.csv")  # could be anything, and is not taken for a history
    (tmp_path / "loop").symlink_to(tmp_path)
    assert tk.read_history(tmp_path).metric("val_loss") == [1]
    with pytest.raises(UnknownFormatError):
        tk.read_history(tmp_path / "b.csv", formats=["jsonl"])
    with pytest.raises(ValueError, match="no kind of history"):
        tk.read_history(tmp_path / "b.csv", formats=["xml"])


def test_a_reader_of_ones_own(tmp_path: Path) -> None:
    class Lines:
        name, wants = "lines", "one loss a line"

        def sniff(self, path: Path, head: bytes) -> bool:
            return head.startswith(b"!")

        def read(self, path: Path) -> History:
            return History(tuple({"loss": float(line)} for line in path.read_text()[1:].split()))

    history = tk.read_history(written(tmp_path, "!1 2 3"), formats=[*HISTORIES, Lines()])
    assert history.source == "lines" and history.metric("loss") == [1, 2, 3]
    with pytest.raises(CorruptCheckpointError, match="as lines"):
        tk.read_history(written(tmp_path, "!x"), formats=[Lines()])


FILES = [path for path in sorted(DATA.rglob("*")) if path.is_file() and path.suffix not in {".py", ".md"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(DATA).as_posix())
def test_torn_anywhere_or_flipped_it_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    data, chance = path.read_bytes(), random.Random(path.name)
    whole = len(tk.read_history(path))
    for _ in range(25):
        cut = data[: chance.randrange(len(data))]
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        for number, damaged in enumerate((cut, bytes(flipped))):
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                history = tk.read_history(tmp_path / "damaged")
            except TorchkeepError:
                continue
            curves_of(history)
            assert len(history) <= whole + number


# -- event files ------------------------------------------------------------------------------------------------------


def record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        return struct.pack("<I", int(_checksums(np.frombuffer(part, dtype=np.uint8)[None])[0]))

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def member(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def scalar(tag: str, value: float, step: int) -> bytes:
    inner = member(1, member(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
    return record(b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + member(5, inner))


VERSION = record(b"\x09" + struct.pack("<d", 1.7e9) + member(3, b"brain.Event:2"))


def test_the_checksum_is_the_published_one() -> None:
    """CRC-32C of `123456789` is E3069283; the mask is TensorFlow's."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
    assert int(_checksums(np.frombuffer(b"123456789", dtype=np.uint8)[None])[0]) == masked


def test_event_files_of_all_steps_and_many_tags(tmp_path: Path) -> None:
    steps = [0, 1, 127, 128, 16383, 16384, 2**31, 2**40]
    data = VERSION + b"".join(
        scalar(tag, step % 1000, step) for step in steps for tag in ("train_loss", "val_loss", "lr")
    )
    (tmp_path / "events").write_bytes(data)
    history = tk.read_history(tmp_path / "events")
    assert history.metric("step") == steps and history.metric("lr") == [step % 1000 for step in steps]
    tags = VERSION + b"".join(scalar(f"loss/{tag:04}", tag, 1) for tag in range(700))
    (tmp_path / "events").write_bytes(tags)
    assert tk.read_history(tmp_path / "events")[0] == {"step": 1} | {f"loss/{tag:04}": tag for tag in range(700)}


def test_event_files_that_are_damaged(tmp_path: Path) -> None:
    parts = [VERSION, *(scalar("loss", step, step) for step in range(5))]
    flipped = bytearray(parts[2])
    flipped[-6] ^= 1  # in the value
    path = tmp_path / "events"
    path.write_bytes(b"".join([*parts[:2], bytes(flipped), *parts[3:]]))
    history = tk.read_history(path)
    assert history.metric("step") == [0, 2, 3, 4] and "1 records are damaged" in history.notes[0]
    broken = bytearray(parts[3])
    broken[9] ^= 1  # in the checksum of the length
    path.write_bytes(b"".join([*parts[:3], bytes(broken), *parts[4:]]))
    history = tk.read_history(path)
    assert history.metric("step") == [0, 1] and "nothing is read beyond record 3" in history.notes[0]
    path.write_bytes(b"".join(parts)[:-3])
    assert tk.read_history(path).metric("step") == [0, 1, 2, 3]
    path.write_bytes(VERSION + record(b"\xff" * 40) + record(b"\x2a\x02\x0a\x7f") + scalar("loss", 1, 1))
    assert tk.read_history(path).metric("loss") == [1]


def test_scalars_that_were_logged_without_a_step(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(VERSION + b"".join(scalar("loss", value, 0) for value in range(5)))
    history = tk.read_history(tmp_path / "events")
    assert history.metric("loss") == [0, 1, 2, 3, 4] and "counted from 0" in history.notes[0]


def test_folders_of_several_runs_are_several_histories(tmp_path: Path) -> None:
    for name in ("lr=0.1", "lr=0.01"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "events.1").write_bytes(VERSION + scalar("loss", 1, 1))
    assert sorted(tk.read_histories(tmp_path / "runs")) == ["lr=0.01", "lr=0.1"]
    assert sorted(tk.read_histories(tmp_path)) == ["runs/lr=0.01", "runs/lr=0.1"]
    with pytest.raises(UnknownFormatError, match="2 histories"):
        tk.read_history(tmp_path / "runs")
    assert tk.read_history(tmp_path / "runs" / "lr=0.1").metric("loss") == [1]


# -- rows, and how fast it is -----------------------------------------------------------------------------------------


def test_rows_are_a_sequence_of_dicts() -> None:
    records = [{"a": 1, "b": 2.5}, {}, {"b": math.inf}, {"a": 2**70, "c": "text"}, {"a": True}, {"a": 1.0}, {"a": 7}]
    rows = rows_of(records)
    assert isinstance(rows, Rows) and list(rows) == records and rows == records and len(rows) == 7
    assert rows[-1] == {"a": 7} and rows[1:3] == records[1:3] and rows[::-2] == records[::-2] and rows[5:2] == []
    assert [type(value) for value in History(rows).metric("a")] == [int, int, bool, float, int]
    assert rows != records[:-1] and rows != 7 and rows_of(rows) is rows
    with pytest.raises(IndexError):
        rows[7]
    assert rows.columns["a"].numbers()[1] == (True,)
    assert len(Gathering().rows()) == 0
    assert "7 records" in str(History(rows, title="x")) and "text" in str(History(rows))


def test_a_million_points(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    path.write_text("epoch,train_loss,val_loss\n" + ",0.12345678,1.23456789\n".join(map(str, range(500_000))))
    with path.open("a") as file:
        file.write(",,0.5\n500000,0.5,\n")  # columns with a gap
    before = time.process_time()
    read = curves_of(tk.read_history(path))
    seconds = time.process_time() - before
    assert len(read.train_loss) == len(read.val_loss) == 500_000 and read.notes == ()
    assert seconds < 5, f"{seconds:.1f} s"


# -- tables as other tools write them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("epoch,train_loss,valid_loss,accuracy,time\n0,1.5,1.2,0.4,00:05\n1,1.1,1.0,0.6,00:05\n",  # fastai
         {"train_loss": "train_loss", "val_loss": "valid_loss", "val_metric": "accuracy"}),
        ("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.1,1.9,41.5,80.1,0.1\n1,1.9,1.7,51.5,85.1,0.1\n",  # timm
         {"train_loss": "train_loss", "val_loss": "eval_loss", "val_metric": "eval_top1", "rate": "lr"}),
        ("   epoch,  train/box_loss,  metrics/mAP50(B),  val/box_loss,  lr/pg0\n  0,  1.1,  0.2,  1.4,  0.01\n",  # YOLO
         {"train_loss": "train/box_loss", "val_loss": "val/box_loss", "val_metric": "metrics/mAP50(B)", "rate": "lr/pg0"}),
        ('[{"batches": [{"train_loss": 1}], "epoch": 1, "train_loss": 0.7, "valid_acc": 0.5, "valid_acc_best": true, "valid_loss": 0.6}]',  # skorch
         {"train_loss": "train_loss", "val_loss": "valid_loss", "val_metric": "valid_acc"}),
        ('{"iteration": 19, "total_loss": 2.5, "loss_cls": 1.0, "lr": 0.1}\n{"iteration": 39, "total_loss": 2.0, "lr": 0.1}\n',  # detectron2
         {"train_loss": "total_loss", "rate": "lr", "val_metric": None}),
    ],
    ids=["fastai", "timm", "YOLO", "skorch", "detectron2"],
)  # fmt: skip
def test_what_other_tools_write(tmp_path: Path, text: str, roles: dict[str, str | None]) -> None:
    read = curves_of(tk.read_history(written(tmp_path, text)))
    found = {role: getattr(read, role) for role in roles}
    assert {role: one and one.name for role, one in found.items()} == roles
    assert read.val_metric is None or read.val_metric.y.max() <= 1
