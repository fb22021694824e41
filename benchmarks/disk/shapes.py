"""The states that are saved: real layouts, random values, the same in every process."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

State = dict[str, Any]
Sizes = dict[str, tuple[int, ...]]

SHAPES = {
    "mid": "292 tensors, 2.0 GB: a transformer of 24 layers, float32",
    "small": "20,000 tensors, 0.5 GB: 25 KB each",
    "train": "592 tensors, 1.3 GB: a transformer of 12 layers and its AdamW (exp_avg, exp_avg_sq, step)",
    "head": "a ResNet of 50 layers (25.6 million parameters) and the AdamW of its head; all but the head is frozen",
}
BLOCK = {  # of a transformer; sizes in units of its width
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "attn.c_attn.weight": (1, 3),
    "attn.c_attn.bias": (3,),
    "attn.c_proj.weight": (1, 1),
    "attn.c_proj.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (1, 4),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (4, 1),
    "mlp.c_proj.bias": (1,),
}


@functools.cache
def _noise() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1 << 22)


def noise(size: tuple[int, ...], number: int) -> torch.Tensor:
    """Normal values, other ones for every number; drawn once and then scaled, since drawing all of them takes longer."""
    out = torch.empty(size)
    whole = out.view(-1)
    for place in range(0, len(whole), len(_noise())):
        piece = whole[place : place + len(_noise())]
        torch.mul(_noise()[: len(piece)], 1 + 1e-4 * number + 1e-11 * place, out=piece)
    return out


def transformer(width: int, layers: int, words: int) -> Sizes:
    """Names and sizes as in GPT-2."""
    sizes: Sizes = {"wte.weight": (words, width), "wpe.weight": (1024, width)}
    for layer in range(layers):
        sizes |= {f"h.{layer}.{name}": tuple(width * n for n in units) for name, units in BLOCK.items()}
    return sizes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def sizes_of(shape: str, scale: float) -> Sizes:
    """Names and sizes of the tensors of a state dict; `scale` shrinks their bytes, for `small` their number."""
    side = math.sqrt(scale)
    if shape == "small":
        return {f"layer{i // 10}.part{i % 10}.weight": (6250,) for i in range(round(20_000 * scale))}
    width, layers = {"mid": (1240, 24), "train": (696, 12)}[shape]
    return transformer(8 * round(width * side / 8), layers, round(50_257 * side))


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose state dict has these names; nobody calls it."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        inner = root
        for part in path:
            if not hasattr(inner, part):
                inner.add_module(part, nn.Module())
            inner = getattr(inner, part)
        inner.register_parameter(last, nn.Parameter(tensor))
    return root


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut around them; four times as many channels come out."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if before != 4 * width:
            shortcut = nn.Conv2d(before, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """The parameters and buffers of a ResNet-50; nobody calls it."""
    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    before = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner = width << stage
        blocks = nn.Sequential()
        for block in range(depth):
            blocks.append(Bottleneck(before, inner, 2 if stage and not block else 1))
            before = 4 * inner
        net.add_module(f"layer{stage + 1}", blocks)
    net.fc = nn.Linear(before, classes)
    return net


def training(shape: str, scale: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its AdamW after one step; in `head` only `fc` trains, and the rest is in eval mode."""
    torch.manual_seed(0)
    if shape == "head":
        side = math.sqrt(scale)
        model = resnet50(8 * max(1, round(8 * side)), round(1000 * side))
        model.requires_grad_(False).eval()
        model.fc.requires_grad_(True)
    else:
        model = module_of(_filled(sizes_of(shape, scale)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    take_step(model, optimizer)
    return model, optimizer


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer with random gradients: all that trains changes."""
    first = int(torch.randint(1000, ()))
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.grad = noise(tuple(parameter.shape), first + number)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def state_of(shape: str, scale: float) -> State:
    """What is saved: a state dict, or that of a model beside that of its optimizer."""
    if shape in {"train", "head"}:
        model, optimizer = training(shape, scale)
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return _filled(sizes_of(shape, scale))


def _filled(sizes: Sizes) -> dict[str, torch.Tensor]:
    return {name: noise(size, number) for number, (name, size) in enumerate(sizes.items())}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nested state, each with its dotted name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{number}")


def flat(state: State) -> dict[str, torch.Tensor]:
    """The tensors of a state by dotted name, for what saves nothing but tensors."""
    return dict(leaves(state))


def nbytes(state: State) -> int:
    """The bytes of all tensors."""
    return sum(tensor.nbytes for _, tensor in leaves(state))


def bytes_of(shape: str, scale: float) -> int:
    """The bytes of a state, mostly without making it."""
    if shape == "head":
        return nbytes(state_of(shape, scale))
    sizes = sizes_of(shape, scale)
    once = 4 * sum(math.prod(size) for size in sizes.values())
    return 3 * once + 4 * len(sizes) if shape == "train" else once


def checksum(tensors: dict[str, torch.Tensor]) -> int:
    """The sum of all bytes, eight at a time; reads every byte on one thread."""
    total = 0
    for tensor in tensors.values():
        whole = tensor.detach().reshape(-1)
        wide = torch.int64 if whole.nbytes % 8 == 0 else torch.uint8
        total += int(whole.view(wide).numpy().sum(dtype="int64"))
    return total % (1 << 64)


def typical(tensors: dict[str, torch.Tensor]) -> str:
    """The name of the tensor whose size is nearest to the average."""
    average = sum(tensor.nbytes for tensor in tensors.values()) / len(tensors)
    return min(tensors, key=lambda name: abs(tensors[name].nbytes - average))
