"""Trying a model out without disturbing it, and putting its structure back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core.live import named_modules, named_parameters, spec_of, unwrapped
from ..core.operations import Operation
from ..core.table import shorten
from ..errors import SurgeryError
from .recording import record, settle

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Structure:
    """Which objects the modules of a model hold, to be put back; not the values in them."""

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._held = [
            (module, dict(module.__dict__), {key: module.__dict__[key].copy() for key in _TABLES}) for module in modules
        ]

    def eval(self) -> None:
        """Set the modules to eval mode, past their own methods, held ones too."""
        for module, _, _ in self._held:
            module.__dict__["training"] = False

    def restore(self) -> None:
        """Put it back."""
        for module, attributes, tables in self._held:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for key, table in tables.items():
                attributes[key].clear()
                attributes[key].update(table)


@contextmanager
def undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Whatever fails inside leaves the structure of the model as it was."""
    structure = Structure(model)
    try:
        yield
    except BaseException:
        structure.restore()
        raise


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, without gradients and in eval mode, leaves the model and all generators as they were.

    Raises:
        SurgeryError: what ran has changed a parameter in place.
    """
    lazy = [name for name, parameter in named_parameters(model) if is_lazy(parameter)]
    if lazy:
        raise SurgeryError(f"{shorten(lazy, 3)} have no shape yet", hint="run one batch through the model first")
    structure = Structure(model)
    values = Values((*model.buffers(), *_renormalised(model)))
    others = {name: (one, version_of(one)) for name, one in named_parameters(model) if id(one) not in values.ids}
    with kept_generators(model), torch.no_grad():
        structure.eval()
        try:
            yield
        finally:
            structure.restore()
            values.restore()
    changed = [name for name, (tensor, version) in others.items() if version_of(tensor) != version]
    if changed:
        raise SurgeryError(
            f"the forward of the model changes {shorten(changed, 3)} in place, even in eval mode",
            hint="go without example=",
        )


def _renormalised(model: nn.Module) -> Iterator[torch.Tensor]:
    """Weights that a forward may change in place."""
    for module in model.modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            yield module.weight


@contextmanager
def kept_generators(model: nn.Module) -> Iterator[dict[str, list[int]]]:
    """Keep the global generators of Python, NumPy, the CPU and the devices of the model, which are given by kind."""
    devices: dict[str, set[int]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type not in {"cpu", "meta"}:
            devices.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    by_kind = {kind: sorted(indices) for kind, indices in devices.items()}
    plain, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in by_kind.items():
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        try:
            yield by_kind
        finally:
            random.setstate(plain)
            np.random.set_state(numpy)


class Values:
    """The values of some tensors, to be put back where they were written since."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        held = {id(tensor): tensor for tensor in tensors if not is_lazy(tensor)}
        self.ids = held.keys()
        self._held = [(tensor, tensor.detach().clone(), version_of(tensor)) for tensor in held.values()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for tensor, value, version in self._held:
            if version_of(tensor) != version:
                tensor.copy_(value)


def version_of(tensor: torch.Tensor) -> int:
    """How often it was written in place; inference tensors, which cannot be, have 0."""
    return 0 if tensor.is_inference() else tensor._version


def run(model: nn.Module, example: Any) -> Any:
    """What the model gives for an example: a tensor, a tuple of arguments or a dict of keyword arguments.

    Tensors are copied, and moved where the model is, if all of it is in one place.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    device = devices.pop() if len(devices) == 1 else None

    def own(value: Any) -> Any:
        return mapped(value, lambda tensor: tensor.detach().clone().to(tensor.device if device is None else device))

    if isinstance(example, Mapping):
        return model(**{key: own(value) for key, value in example.items()})
    return model(*own(example)) if isinstance(example, (tuple, list)) else model(own(example))


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A nested value with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if type(value) in {tuple, list}:
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        with suppress(TypeError):  # a class of its own, whose constructor wants something else
            return type(value)({key: mapped(item, change) for key, item in value.items()})
    return value


def dry(model: nn.Module, example: Any, after: Operation | None = None) -> Any:
    """What the model gives for an example; it and the generators are as they were afterwards.

    Raises:
        SurgeryError: the model fails, as it is or after an operation.
    """
    with undisturbed(model):
        try:
            return run(model, example)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
            if after is not None:
                hint = "change what depends on it too, or first"
                raise SurgeryError(f"after {after} the model fails on the example: {said}", hint=hint) from error
            hint = "example= is one input of the model: a tensor, a tuple of arguments, or a dict of keyword arguments"
            raise SurgeryError(f"the model fails on the example: {said}", hint=hint) from error


def shapes(value: Any) -> str:
    """A nested value by the dtypes and shapes of its tensors: `float32[1, 10]`."""
    if isinstance(value, torch.Tensor):
        return str(spec_of(value)) if value.layout is torch.strided and not value.is_nested else type(value).__name__
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shapes(item)}' for key, item in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(shapes, value))})"
    return type(value).__name__


@dataclass(frozen=True)
class Call:
    """When a module was called in a dry forward, counted in beginnings and ends of calls.

    Attributes:
        path: of the module.
        started, ended: of its first call and of its last.
        times: how often it was called.
        took, gave: the first positional argument of the last call, and the result, by dtypes and shapes.
    """

    path: str
    started: int
    ended: int
    times: int
    took: str
    gave: str

    @property
    def keeps_kind(self) -> bool:
        """Whether it gave a tensor for a tensor: nothing else can be handed on in its place."""
        return self.took[:1] not in "({" and self.gave[:1] not in "({"


def calls(model: nn.Module, example: Any) -> dict[str, Call]:
    """The modules that a dry forward calls, by their first path."""
    paths: dict[int, str] = {}
    for path, module in named_modules(model):
        if not isinstance(module, torch.jit.ScriptModule):
            paths.setdefault(id(module), path)
    found: dict[str, Call] = {}
    clock = count()
    running: list[int] = []

    def begin(module: nn.Module, args: Any) -> None:
        running.append(next(clock))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        path, started = paths[id(module)], running.pop()
        before = found.get(path)
        first, times = (before.started, before.times + 1) if before else (started, 1)
        found[path] = Call(path, first, next(clock), times, shapes(args[0]) if args else "", shapes(output))

    with ExitStack() as stack:
        for module in {id(module): module for _, module in named_modules(model) if id(module) in paths}.values():
            stack.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
            stack.callback(module.register_forward_hook(end, always_call=True).remove)
        dry(model, example)
    return found


def carried_out(
    model: nn.Module, operation: Operation, change: Callable[[], Any], example: Any = None, *, then: Any = None
) -> str:
    """Change a model and remember it; where that or a dry forward after it fails, the model is as it was.

    Args:
        model: the model.
        operation: what is remembered.
        change: does it.
        example: an input of the model before.
        then: an input after, for which it should give the same; the same one if None.

    Returns:
        What the model gave before and after; empty without an example.

    Raises:
        SurgeryError: the model fails on the example, before or after.
    """
    before = None if example is None else dry(model, example)
    after: Any = None
    with undone_on_failure(model):
        settle(model)
        change()
        if example is not None:
            after = dry(model, example if then is None else then, operation)
        record(model, operation)
    if example is None:
        return ""
    said = f"{shapes(before)} -> {shapes(after)}"
    if then is None or not isinstance(before, torch.Tensor) or before.is_meta or before.shape != after.shape:
        return said
    return f"{said}, different by {float((before - after).abs().max()) if before.numel() else 0.0:.1g} at most"


def target_of(model: nn.Module) -> nn.Module:
    """The user's module, seen through wrappers.

    Raises:
        SurgeryError: it cannot be changed.
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"the first argument is a {type(model).__name__}, not a model", hint="the model comes first")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise SurgeryError(
            "the model is wrapped by DistributedDataParallel, which would go on with the old parameters",
            hint="change the model first and wrap it then",
        )
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise SurgeryError("the model is compiled TorchScript, whose structure is fixed", hint="change it before")
    return model
