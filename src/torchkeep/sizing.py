"""How much a model can hold: where its parameters are, what more would cost, and whether it can learn at all."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .core.capacity_report import CapacityReport, LayerShare, Lever, OverfitReport
from .core.live import module_at, named_modules, unwrapped
from .freezing.view import DROPOUTS, blocks_of, numel

_WIDTHS = ("out_features", "out_channels", "hidden_size", "embedding_dim", "embed_dim", "num_features")
_GOAL = 0.01


def capacity(model: nn.Module) -> CapacityReport:
    """Where a model's parameters are, which are trained, and what more width or depth would cost.

    >>> print(capacity(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))))    # doctest: +ELLIPSIS
    Sequential
      parameters  2.41 k
      trainable   2.41 k (100.0%)
      wider       every inner width doubled: 2.00 x the parameters
    ...

    Width is doubled between the layers: what comes in and what goes out stays, so that the first and the last layer
    grow twofold and those in between fourfold. Depth is one more of the block that the model repeats most often.

    Args:
        model: any module; wrappers are looked through. It is not changed.
    """
    inner = unwrapped(model)
    seen: set[int] = set()
    layers = []
    for path, module in named_modules(inner):
        owned = [one for one in module._parameters.values() if one is not None and id(one) not in seen]
        seen.update(map(id, owned))
        if owned:
            held = sum(map(numel, owned))
            trained = sum(numel(one) for one in owned if one.requires_grad)
            layers.append(LayerShare(path, type(module).__name__, held, trained, _width(module)))
    return CapacityReport(type(inner).__name__, tuple(layers), tuple(_levers(inner, layers)))


def can_overfit(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], torch.Tensor],
    *,
    steps: int = 200,
    lr: float = 1e-3,
    goal: float | None = None,
) -> OverfitReport:
    """Try to learn a few examples by heart: what a sound network with a sound loss can always do.

    >>> print(can_overfit(model, (images[:32], labels[:32]), nn.functional.cross_entropy))     # doctest: +SKIP

    A copy is trained, by Adam without weight decay, with dropout at 0 and everything trainable; the model, its
    gradients and the random generators stay as they are.

    Args:
        model: any module that gives one output for the inputs.
        batch: (inputs, targets), both on the model's device.
        loss: of (outputs, targets), a scalar.
        steps: at most; it stops where the goal is reached.
        lr: of Adam.
        goal: of the loss; a hundredth of the first loss if None.
    """
    inputs, targets = batch
    tried = copy.deepcopy(unwrapped(model))
    for parameter in tried.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    _drop_nothing(tried)
    tried.train()
    with torch.random.fork_rng(), torch.enable_grad():
        optimizer = torch.optim.Adam(tried.parameters(), lr=lr)
        start = end = float(loss(tried(inputs), targets).detach())
        wanted = _GOAL * start if goal is None else goal
        taken = 0
        while taken < steps and end > wanted:
            optimizer.zero_grad()
            value = loss(tried(inputs), targets)
            value.backward()
            optimizer.step()
            taken += 1
            end = float(value.detach())
    return OverfitReport(len(targets), taken, start, end, wanted)


def _width(module: nn.Module) -> int | None:
    found = (getattr(module, name, None) for name in _WIDTHS)
    return next((value for value in found if isinstance(value, int)), None)


def _levers(model: nn.Module, layers: list[LayerShare]) -> Iterator[Lever]:
    total = sum(layer.parameters for layer in layers)
    if not total:
        return
    weighing = [layer for layer in layers if _is_matrix(module_at(model, layer.path))]
    if len(weighing) > 1:
        ends = {weighing[0].path, weighing[-1].path}
        inner = {layer.path for layer in weighing} - ends
        grown = sum(layer.parameters * (4 if layer.path in inner else 2) for layer in layers)
        wide = grown + _kept(model, weighing[-1])
        yield Lever("wider", "every inner width doubled", wide / total)
    sizes = {path: sum(map(numel, module_at(model, path).parameters())) for path in blocks_of(model)}
    alike = Counter((type(module_at(model, path)).__name__, size) for path, size in sizes.items() if size)
    for (name, size), count in alike.most_common(1):
        if count > 1:
            yield Lever("deeper", f"one more {name} beside the {count} there are", 1 + size / total)


def _is_matrix(module: nn.Module) -> bool:
    return any(one is not None and one.dim() > 1 for one in module._parameters.values())


def _kept(model: nn.Module, last: LayerShare) -> int:
    """The bias of the last layer, which no width between the layers changes, was counted twice."""
    bias = module_at(model, last.path)._parameters.get("bias")
    return 0 if bias is None else -numel(bias)


def _drop_nothing(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            for name in ("p", "dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
