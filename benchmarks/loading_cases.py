"""Ugly checkpoints, made here, each with the values that are right. The networks are never run."""

from __future__ import annotations

import io
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import torchkeep as tk

State = dict[str, Tensor]


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution as it stands before a batch norm."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class Block(nn.Module):
    """Two convolutions, with a way around them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(width, inner), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, width), nn.BatchNorm2d(width)


class Net(nn.Module):
    """A small residual network."""

    def __init__(self, classes: int = 10, channels: int = 3, inner: Iterable[int] = (8, 24, 48)) -> None:
        super().__init__()
        self.stem, self.norm = conv(channels, 16), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(16, width) for width in inner))
        self.fc = nn.Linear(16, classes)


class Other(nn.Module):
    """The same network, nested otherwise, under names that share nothing."""

    def __init__(self, classes: int = 10, inner: Iterable[int] = (8, 24, 48)) -> None:
        super().__init__()
        self.entry = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.unit = nn.ModuleList()
        for width in inner:
            self.unit.append(
                nn.Sequential(conv(16, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, 16), nn.BatchNorm2d(16))
            )
        self.answer = nn.Linear(16, classes)


class Vit(nn.Module):
    """Patches, a class token, positions on a square, and layers."""

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, 32))
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2)))
        self.head = nn.Linear(32, 10)


class Text(nn.Module):
    """Attention whose projections are registered in some order, under some names."""

    def __init__(self, *projections: str) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(50, 32), nn.ModuleList()
        for _ in range(3):
            parts = {name: nn.Linear(32, 32) for name in projections}
            parts |= {"inner": nn.Linear(32, 64), "outer": nn.Linear(64, 32)}
            self.blocks.append(nn.ModuleDict(parts))


class Segmenter(nn.Module):
    """A bigger model that has the residual network in it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Net(), nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))


def normed(apply: Callable[..., nn.Module]) -> nn.Module:
    """A small network with weight norm, old or new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old one is deprecated
        return nn.Sequential(
            apply(nn.Conv1d(4, 16, 3)), nn.ReLU(), apply(nn.Conv1d(16, 16, 3)), nn.ReLU(), nn.Conv1d(16, 1, 1)
        )


def feed_forward() -> nn.Module:
    """Two layers, of which each has the other's shape turned round."""
    return nn.ModuleDict({"up": nn.Linear(16, 64), "down": nn.Linear(64, 16), "out": nn.Linear(16, 10)})


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Random values everywhere, so that no right value is there by chance."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *model.buffers()):
        value = torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(seed)
        tensor.data.copy_(value)
    return model


# -- checkpoints --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One ugly checkpoint.

    Attributes:
        title: what is ugly.
        make: makes the model to load into.
        saved: what `torch.save` gets, or the bytes of a file.
        truth: names of the model and the values that are right there; no other name may change.
        cfg: what timm's `load_pretrained` is told of the model; `filter`: its filter_fn.
        adapt: what torchkeep is told instead.
        base: the attribute that has the base model, as transformers and MONAI are told.
        choice: what must be said where the file has several right answers.
    """

    title: str
    make: Callable[[], nn.Module]
    saved: Any
    truth: Mapping[str, tuple[Tensor, ...]]
    cfg: Mapping[str, Any] = field(default_factory=dict)
    filter: Callable[[State, Any], State] | None = None
    adapt: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    choice: str = ""

    def write(self, path: Path) -> Path:
        """Make the file."""
        if isinstance(self.saved, bytes):
            path.write_bytes(self.saved)
        else:
            torch.save(self.saved, path)
        return path


def as_truth(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """One right value for each name."""
    return {name: (tensor.float(),) for name, tensor in state.items()}


def without(truth: Mapping[str, Any], *leads: str) -> dict[str, Any]:
    """The names that do not begin so."""
    return {name: value for name, value in truth.items() if not name.startswith(leads)}


def renamed(state: State, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> State:
    """The state dict with its names rewritten."""
    return {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}


def gone(model: nn.Module) -> bytes:
    """The model, pickled as a whole, as an instance of a class that nobody can import."""
    module = types.ModuleType("project_of_last_year")
    kind = type("NetOfLastYear", (type(model),), {"__module__": module.__name__})
    module.NetOfLastYear = model.__class__ = kind  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    written = io.BytesIO()
    try:
        torch.save(model, written)
    finally:
        del sys.modules[module.__name__]
    return written.getvalue()


def interpolated(positions: Tensor, side: int) -> tuple[Tensor, ...]:
    """Position embeddings on a larger square, in the usual ways."""
    old = int((positions.shape[1] - 1) ** 0.5)
    square = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    ways = [
        functional.interpolate(square, (side, side), mode=mode, antialias=antialias)
        for mode in ("bicubic", "bilinear")
        for antialias in (False, True)
    ]
    return tuple(torch.cat([positions[:, :1], way.flatten(2).transpose(1, 2)], 1) for way in ways)


def resampled(state: State, model: Any) -> State:
    """The filter that timm's vision transformers come with, in short."""
    from timm.layers import resample_abs_pos_embed

    side = int((model.pos_embed.shape[1] - 1) ** 0.5)
    return state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], new_size=[side, side], num_prefix_tokens=1)}


KEYS_FIRST = {"k_lin": "key", "v_lin": "value", "q_lin": "query", "out_lin": "merge"}


def cases() -> list[Case]:
    """All of them."""
    net = randomised(Net(), 1)
    state = net.state_dict()
    truth = as_truth(state)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict()
    average = randomised(Net(), 2).state_dict()
    training = {"epoch": 7, "state_dict": state, "optimizer": optimizer}
    lightning = renamed(state, "^", "model.") | {"loss.weight": torch.ones(10)}
    larger = randomised(Other(classes=4, inner=(8, 24, 36, 48)), 1).state_dict()
    matching = [name for name in larger if not name.startswith("unit.2.")]
    old_norm = randomised(normed(torch.nn.utils.weight_norm), 1).state_dict()
    new_norm = {
        name: old_norm[name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")]
        for name in normed(parametrizations.weight_norm).state_dict()
    }  # fmt: skip
    vit = randomised(Vit(), 1).state_dict()
    text = randomised(Text(*KEYS_FIRST), 1).state_dict()
    query_first = renamed(text, r"\w+_lin", lambda found: KEYS_FIRST[found[0]])
    layers = randomised(feed_forward(), 1).state_dict()
    swapped = layers | {"up.weight": layers["down.weight"], "down.weight": layers["up.weight"]}
    grey = truth | {"stem.weight": (state["stem.weight"].sum(1, keepdim=True),)}
    return [
        Case("`module.` before each name", Net, renamed(state, "^", "module."), truth),
        Case("`_orig_mod.` before each name", Net, renamed(state, "^", "_orig_mod."), truth),
        Case("`_fsdp_wrapped_module` within the names", Net, renamed(state, r"^(blocks\.\d)", r"\1._fsdp_wrapped_module"), truth),
        Case("a training checkpoint with optimizer", Net, training, truth),
        Case("of Lightning: `model.` and a loss with a buffer", Net, {"state_dict": lightning, "epoch": 7, "pytorch-lightning_version": "2.6.6"}, truth),
        Case("a head of other classes", lambda: Net(classes=4), state, without(truth, "fc."), {"num_classes": 10, "classifier": "fc"}, adapt={"fc": "rows"}),
        Case("a stem of 3 channels for 1", lambda: Net(channels=1), state, grey, {"first_conv": "stem"}, adapt={"stem": "channels"}),
        Case("weight norm under its old names", lambda: normed(parametrizations.weight_norm), old_norm, as_truth(new_norm)),
        Case("entirely other names", Net, randomised(Other(), 1).state_dict(), truth),
        Case("other names, another head, a block more", Net, larger, without(as_truth(dict(zip(state, (larger[name] for name in matching), strict=True))), "fc.")),
        Case("other names, keys before queries", lambda: Text("query", "key", "value", "merge"), text, as_truth(query_first)),
        Case("raw weights and their average side by side", Net, {"state_dict": state, "state_dict_ema": average}, {name: (state[name], average[name]) for name in state}, choice="state_dict"),
        Case("a pickled model, its class gone", Net, gone(randomised(Net(), 1)), truth),
        Case("saved in bf16", Net, {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, as_truth({name: tensor.bfloat16() for name, tensor in state.items()})),
        Case("two tensors with each other's shapes", feed_forward, swapped, without(as_truth(layers), "up.weight", "down.weight")),
        Case("an encoder for a bigger model", Segmenter, state, as_truth(renamed(state, "^", "encoder.")), base="encoder"),
        Case("positions on a smaller square", lambda: Vit(6), vit, as_truth(vit) | {"pos_embed": interpolated(vit["pos_embed"], 6)}, filter=resampled, adapt={"pos_embed": tk.adapters.positions(prefix=1)}),
    ]  # fmt: skip
