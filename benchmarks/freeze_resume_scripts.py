"""One training script, as a user of each tool would write it; benchmarks/freeze_resume.py plays them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

import torchkeep as tk

EPOCHS, BATCHES, ROWS, CLASSES = 4, 4, 16, 8
SECOND = 1  # the epoch with the unfreezing, counted from 0
KILLED = 2 * BATCHES  # the step before which the process dies: the first of the third epoch


@dataclass(frozen=True)
class Script:
    """What a user's script says, for whichever tool."""

    folder: Path  # of the checkpoints
    freeze: bool = True  # a script that is started again may leave it out
    unfreeze: str = ""  # "once": in the second epoch; "from": in every epoch from the second one on
    swapped: bool = False  # the two layers of the head are registered in the other order
    seeded: bool = False  # the generator is seeded before every forward pass
    again: bool = False  # the script was started before

    def unfreezes(self, epoch: int) -> bool:
        """Whether the script unfreezes the backbone at the start of this epoch."""
        return {"": False, "once": epoch == SECOND, "from": epoch >= SECOND}[self.unfreeze]


class NoWay(Exception):
    """The tool cannot express the script."""


class Net(nn.Module):
    """The network; the last one that was made is the one that is watched."""

    latest: ClassVar[Net]

    def __init__(self, swapped: bool = False, seeded: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.25), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        order = ("out", "hidden") if swapped else ("hidden", "out")
        self.head = nn.ModuleDict({name: nn.Linear(8, CLASSES) for name in order})
        self.seeded = seeded
        self.start = weights(self)
        Net.latest = self

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """The logits, with the loss if there are labels."""
        if self.seeded:
            torch.manual_seed(7)
        logits = self.head["out"](self.head["hidden"](self.backbone(x)).relu())
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything in the state dict."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def data() -> Any:
    """The rows, the same in every process."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(BATCHES * ROWS, 1, 6, 6, generator=generator) * 2 + 1
    return [*zip(images, torch.randint(CLASSES, (BATCHES * ROWS,), generator=generator), strict=True)]


def lightning(script: Script, way: str) -> None:
    """Flags and a hook of the module, without and with eval mode, or one of the finetuning callbacks."""
    pl: Any = importlib.import_module("lightning.pytorch")
    callbacks: Any = importlib.import_module("lightning.pytorch.callbacks")
    flags = way in {"flags", "eval"}

    class Lit(Net, pl.LightningModule):  # type: ignore[misc]
        def training_step(self, batch: Any, _: int) -> Any:
            return self(*batch)["loss"]

        def on_train_epoch_start(self: Any) -> None:
            if flags and script.unfreezes(self.current_epoch):
                self.backbone.requires_grad_(True).train()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([one for one in self.parameters() if flags or one.requires_grad], lr=0.01)

    class Whole(callbacks.BaseFinetuning):  # type: ignore[misc]
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.backbone, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if script.unfreezes(epoch):
                self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)

    if way == "backbone" and script.unfreeze == "from":
        raise NoWay
    model = Lit(script.swapped, script.seeded)
    chosen = [callbacks.ModelCheckpoint(dirpath=script.folder, save_last=True, save_top_k=-1)]
    if script.freeze and flags:
        model.backbone.requires_grad_(False).train(way == "flags")
    elif script.freeze:
        backbone = callbacks.BackboneFinetuning(SECOND if script.unfreeze else EPOCHS)
        chosen.append(backbone if way == "backbone" else Whole())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=chosen, **quiet)
    trainer.fit(model, DataLoader(data(), batch_size=ROWS), ckpt_path="last")


def skorch(script: Script, every: bool) -> None:
    """Freezer (in the first epoch, or in every one) and Unfreezer; the user counts the epochs that are left."""
    if every and script.unfreeze == "once":
        raise NoWay
    package: Any = importlib.import_module("skorch")
    callbacks: Any = importlib.import_module("skorch.callbacks")
    checkpoint = callbacks.Checkpoint(dirname=script.folder, monitor=None)
    chosen = [checkpoint, callbacks.LoadInitState(checkpoint)]
    if script.freeze:
        chosen.append(callbacks.Freezer("backbone.*", at=(lambda net: True) if every else 1))
    if script.unfreeze:  # len(net.history) is the number of the epoch that begins, counted from 1
        at = SECOND + 1 if script.unfreeze == "once" else lambda net: script.unfreezes(len(net.history) - 1)
        chosen.append(callbacks.Unfreezer("backbone.*", at=at))
    net = package.NeuralNet(
        Net,
        criterion=nn.CrossEntropyLoss,
        module__swapped=script.swapped,
        module__seeded=script.seeded,
        optimizer=torch.optim.Adam,
        lr=0.01,
        batch_size=ROWS,
        max_epochs=EPOCHS - 2 if script.again else EPOCHS,
        train_split=None,
        callbacks=chosen,
        verbose=0,
    )
    images, labels = zip(*data(), strict=True)
    net.fit(torch.stack(images), torch.stack(labels))


def transformers(script: Script, own: bool) -> None:
    """Flags that are set before the Trainer is made; with the optimizer that it makes, or with the user's."""
    package: Any = importlib.import_module("transformers")

    class Phases(package.TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if script.unfreezes(round(state.epoch)):
                rest["model"].backbone.requires_grad_(True)

    model = Net(script.swapped, script.seeded)
    model.backbone.requires_grad_(not script.freeze)
    options = package.TrainingArguments(
        output_dir=str(script.folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=ROWS,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        logging_strategy="no",
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        use_cpu=True,
    )
    given = {} if own else {"optimizers": (torch.optim.Adam(model.parameters(), lr=0.01), None)}
    rows = [{"x": image, "labels": label} for image, label in data()]
    trainer = package.Trainer(model=model, args=options, train_dataset=rows, callbacks=[Phases()], **given)
    trainer.train(resume_from_checkpoint=script.again)


def torchkeep(script: Script, whole: bool) -> None:
    """A loop by hand; the optimizer holds all parameters, or the frozen ones come as a group when they are unfrozen."""
    model = Net(script.swapped, script.seeded)
    if script.freeze:
        tk.freeze(model, "backbone")
    optimizer = torch.optim.Adam([one for one in model.parameters() if whole or one.requires_grad], lr=0.01)
    with tk.Run(script.folder) as run:
        for epoch in range(run.resume(model=model, optimizer=optimizer), EPOCHS):
            if script.unfreezes(epoch):
                tk.unfreeze(model)
                if not whole and len(optimizer.param_groups) == 1:
                    optimizer.add_param_group({"params": [*model.backbone.parameters()]})
            model.train()
            for images, labels in DataLoader(data(), batch_size=ROWS):
                optimizer.zero_grad()
                model(images, labels)["loss"].backward()
                optimizer.step()
            run.save(epoch)


def torchkeep_spec(script: Script) -> None:
    """The phases as data; the optimizer has groups that last through all of them."""
    model = Net(script.swapped, script.seeded)
    if script.freeze:
        phases = [tk.Phase("head", epochs=SECOND), tk.Phase("*")] if script.unfreeze else [tk.Phase("head")]
        tk.freeze(model, tk.FreezeSpec(phases))
    optimizer = torch.optim.Adam(tk.param_groups(model, lr=0.01))
    with tk.Run(script.folder) as run:
        for epoch in range(run.resume(model=model, optimizer=optimizer), EPOCHS):
            tk.enter_phase(model, epoch, optimizer)
            model.train()
            for images, labels in DataLoader(data(), batch_size=ROWS):
                optimizer.zero_grad()
                model(images, labels)["loss"].backward()
                optimizer.step()
            run.save(epoch)


Play = Callable[[Script], None]
TOOLS: dict[str, Play] = {
    "lightning: `requires_grad_(False)`": lambda script: lightning(script, "flags"),
    "lightning: the same and `eval()`": lambda script: lightning(script, "eval"),
    "lightning: `BackboneFinetuning`": lambda script: lightning(script, "backbone"),
    "lightning: `BaseFinetuning`, `train_bn=False`": lambda script: lightning(script, "whole"),
    "skorch: `Freezer`": lambda script: skorch(script, every=False),
    "skorch: `Freezer` for every epoch": lambda script: skorch(script, every=True),
    "transformers: the optimizer of the Trainer": lambda script: transformers(script, own=True),
    "transformers: an optimizer given to it": lambda script: transformers(script, own=False),
    "torchkeep: all parameters in the optimizer": lambda script: torchkeep(script, whole=True),
    "torchkeep: the frozen ones left out of it": lambda script: torchkeep(script, whole=False),
    "torchkeep: a freeze spec with phases": torchkeep_spec,
}
