"""Wrote the files in this folder, each by the library that users have: run `python write.py` in an empty folder.

Versions: tensorboard 2.21.0, torch 2.13.0, keras 3.15.1 (KERAS_BACKEND=torch), lightning 2.6.6, transformers 5.24.0.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import lightning as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

ROOT = Path.cwd()


def write_torch_scalars() -> None:
    """Scalars of two sets, a picture and a histogram beside them, a NaN, and one curve that was logged less often."""
    with SummaryWriter(ROOT / "torch_events") as writer:
        for step in range(12):
            writer.add_scalar("Loss/train", 2 / (step + 1), step)
            if step % 3 == 2:
                writer.add_scalar("Loss/val", 2.5 / (step + 1) if step < 11 else math.nan, step)
                writer.add_scalar("Accuracy/val", step / 12, step, new_style=True)
        writer.add_histogram("weights", torch.arange(1000.0), 3)
        writer.add_image("picture", torch.zeros(3, 64, 64), 3)
        writer.add_text("note", "hello", 3)


def write_torch_resumed() -> None:
    """Two processes: the second one goes on from step 4."""
    for begin, end, value in ((0, 8, 1.0), (4, 6, 2.0)):
        with SummaryWriter(ROOT / "torch_resumed", purge_step=begin, filename_suffix=f".{begin}") as writer:
            for step in range(begin, end):
                writer.add_scalar("train_loss", value + step, step)


def write_add_scalars() -> None:
    """Curves of one picture, for which torch makes folders."""
    with SummaryWriter(ROOT / "torch_add_scalars") as writer:
        for step in range(5):
            writer.add_scalars("Loss", {"train": 1.0 / (step + 1), "val": 1.5 / (step + 1)}, step)


def write_keras_folders() -> None:
    """Folders and tags as Keras's TensorBoard callback makes them, which needs TensorFlow; values as tensors."""
    for folder, value in (("train", 1.0), ("validation", 1.5)):
        with SummaryWriter(ROOT / "keras_events" / folder) as writer:
            for epoch in range(4):
                writer.add_scalar("epoch_loss", value / (epoch + 1), epoch, new_style=True)
                if folder == "validation":
                    writer.add_scalar("evaluation_loss_vs_iterations", value / (epoch + 1), 10 * epoch, new_style=True)


def write_keras() -> None:
    """The CSVLogger of Keras, twice into one file, and the history that `fit` returns."""
    keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    targets = (inputs[:, 0] > 0).astype("int64")
    model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    for epochs in (4, 3):
        logger = keras.callbacks.CSVLogger(str(ROOT / "keras.csv"), append=True)
        fitted = model.fit(
            inputs, targets, validation_split=0.3, epochs=epochs, batch_size=16, callbacks=[logger], verbose=0
        )
    (ROOT / "keras_history.json").write_text(json.dumps(fitted.history))


class Net(pl.LightningModule):
    """Logs training values in steps and epochs, validation values and an epoch's learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits = self.layer(batch[0])
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def write_lightning() -> None:
    """The CSVLogger and the TensorBoardLogger of Lightning, with a LearningRateMonitor."""
    pl.seed_everything(0)
    inputs = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    trainer = pl.Trainer(
        max_epochs=4,
        logger=[CSVLogger(ROOT, "lightning_csv"), TensorBoardLogger(ROOT, "lightning_events")],
        log_every_n_steps=2,
        callbacks=[pl.pytorch.callbacks.LearningRateMonitor("epoch")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Net(), loader, loader)


def write_transformers() -> None:
    """A Trainer's state of a tiny model: losses every five steps, an evaluation an epoch, checkpoints."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    rows = [{"input_ids": torch.randint(20, (6,)), "labels": torch.tensor(place % 2)} for place in range(40)]
    arguments = TrainingArguments(
        output_dir=str(ROOT / "hf"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        logging_steps=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )

    def measure(prediction: object) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}  # type: ignore[attr-defined]

    trainer = Trainer(
        BertForSequenceClassification(config), arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=measure
    )
    trainer.train()
    trainer.save_state()
    for file in (ROOT / "hf").rglob("*"):  # the states only, not the weights
        if file.is_file() and file.name != "trainer_state.json":
            file.unlink()


if __name__ == "__main__":
    write_torch_scalars()
    write_torch_resumed()
    write_add_scalars()
    write_keras_folders()
    write_keras()
    write_lightning()
    write_transformers()
    shutil.rmtree(ROOT / "hf" / "runs", ignore_errors=True)
