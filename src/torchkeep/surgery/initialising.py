"""Fresh values for a part of a model: the structure of a pretrained one, and nothing of what it learned."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ..core.live import unwrapped
from ..core.names import Selector, nearest
from ..core.operations import Operation
from ..core.table import shorten
from ..errors import SurgeryError
from ..freezing import NORMS, View
from .describing import is_plain, listed
from .layers import OLD_HOOKS, Change
from .trial import Values, carried_out, kept_generators, target_of, version_of

_WAYS = ("reset_parameters", "_reset_parameters")


def reinitialise(
    model: nn.Module,
    selection: Any = "*",
    scheme: str | None = None,
    *,
    seed: int | torch.Generator | None = None,
    example: Any = None,
    **options: Any,
) -> Change:
    """Give parameters fresh values, in place: an optimizer goes on with the same parameters.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    >>> print(reinitialise(model, "last 1", "trunc_normal_", std=0.02, seed=0))
    reinitialise 2: 2 parameters -> fresh values

    Running statistics of a module all of whose parameters are chosen start anew too. A tied parameter gets its values
    once, from the first module that has it.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        selection: what `tk.Selector` takes; everything by default.
        scheme: None for each module's own `reset_parameters`; or the name of a scheme of torch.nn.init, for weights:
            then biases become 0, and weights of normalisation layers 1. The row of an embedding's padding becomes 0.
        seed: a number or a generator that decides the values and leaves the global generators alone; None draws from
            those.
        example: an input of the model to run it on before and after.
        options: for the scheme, e.g. `std=0.02`, `nonlinearity="relu"`.

    Raises:
        SelectorError: the selector chooses nothing.
        SurgeryError: there is no such scheme, nothing that was chosen could be initialised, or the model fails on the
            example. The model is untouched.
    """
    model = target_of(model)
    scheme, how = _scheme(scheme, options)
    view = View(model)
    chosen = view.chosen(Selector.of(selection))
    lazy = {key for key in chosen.parameters if is_lazy(view.parameters[key])}
    work = _Work(model, set(chosen.parameters) - lazy, how)
    backup = Values((*model.parameters(), *model.buffers())) if example is not None else None

    def change() -> None:
        with seeded(model, seed):
            work.go(chosen.modules)
        if not work.done and not work.restarted:
            raise SurgeryError(
                f"nothing of {chosen.selection!r} could be initialised: {_reasons(work, view)}",
                hint="pass a scheme of torch.nn.init that fits, such as 'normal_', or set the values yourself",
            )

    text = _texts(selection)
    arguments: dict[str, Any] = {"selector": text, "scheme": scheme, "options": listed(options)}
    arguments["seed"] = seed if isinstance(seed, int) else None
    operation = Operation(
        "reinitialise", "", {key: value for key, value in arguments.items() if value not in (None, {})}
    )
    try:
        check = carried_out(model, operation, change, example)
    except BaseException:
        if backup is not None:
            backup.restore()
        raise
    left = [key for key in chosen.parameters if key not in work.done]
    notes = [f"{len(left)} parameters stay as they were: {_reasons(work, view, left)}"] if left else []
    count = f"{len(work.done)} parameter{'' if len(work.done) == 1 else 's'}"
    what = count if work.done else f"statistics of {work.restarted} module{'' if work.restarted == 1 else 's'}"
    blocks = _tops(view.names[key] for key in work.done)
    return Change("reinitialise", shorten(blocks, 3) or chosen.selection, what, "fresh values", "; ".join(notes), check)


def _tops(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _texts(selection: Any) -> Any:
    """A selector as JSON has it."""
    if isinstance(selection, Selector):
        return _texts(selection.text)
    if isinstance(selection, (str, re.Pattern)):
        return selection if isinstance(selection, str) else f"re:{selection.pattern}"
    return [_texts(part) for part in selection]


def _scheme(name: str | None, options: dict[str, Any]) -> tuple[str | None, Callable[[torch.Tensor], Any] | None]:
    """The full name of a scheme, and what it does to a tensor."""
    odd = [key for key, value in options.items() if not is_plain(value)]
    if odd:
        raise SurgeryError(f"the option {odd[0]}={options[odd[0]]!r} is neither a number nor text")
    if name is None:
        if options:
            raise SurgeryError(f"{next(iter(options))!r} is for a scheme, and none is named", hint="pass scheme=")
        return None, None
    known = [one for one in dir(nn.init) if one.endswith("_") and not one.startswith("_")]
    full = name if str(name).endswith("_") else f"{name}_"
    if full not in known:
        close = nearest(full, known) or known
        raise SurgeryError(f"torch.nn.init has no scheme {name!r}", hint=f"it has {', '.join(map(repr, close))}")
    function = getattr(nn.init, full)
    try:
        inspect.signature(function).bind(None, **options)
    except TypeError as error:
        raise SurgeryError(f"torch.nn.init.{full} does not take these options: {error}") from error
    return full, lambda tensor: function(tensor, **options)


@contextmanager
def seeded(model: nn.Module, seed: int | torch.Generator | None) -> Iterator[None]:
    """Draw from a seed, and leave the global generators as they were; from those without one."""
    if seed is None:
        yield
        return
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(1 << 62, (1,), generator=seed, device=seed.device))
    with kept_generators(model) as devices:
        torch.default_generator.manual_seed(seed)
        for kind, indices in devices.items():
            accelerator: Any = torch.get_device_module(kind)
            for index in indices:
                with accelerator.device(index) if hasattr(accelerator, "device") else nullcontext():
                    accelerator.manual_seed(seed)
        yield


class _Work:
    """Initialises chosen parameters module by module.

    Attributes:
        done: ids of the parameters with fresh values.
        restarted: how many modules without parameters started their statistics anew.
        why: id of a parameter -> why it could not be initialised.
    """

    def __init__(self, model: nn.Module, chosen: set[int], scheme: Callable[[torch.Tensor], Any] | None) -> None:
        self.done: set[int] = set()
        self.restarted = 0
        self.why: dict[int, str] = {}
        self._model, self._chosen, self._scheme = model, chosen, scheme

    def go(self, bare: set[int]) -> None:
        """All modules, those inside others first: a module's own way counts more than that of what it is made of."""
        for module in _inside_out(self._model, set()):
            own = [parameter for parameter in module._parameters.values() if parameter is not None]
            fresh = {id(parameter) for parameter in own} & self._chosen - self.done
            if fresh:
                self._module(module, own, fresh)
            elif not own and id(module) in bare and module._buffers.get("running_mean") is not None:
                module.reset_running_stats()  # type: ignore[operator]
                self.restarted += 1

    def _module(self, module: nn.Module, own: list[nn.Parameter], fresh: set[int]) -> None:
        whole = {id(one) for one in own} <= self._chosen
        way = next((getattr(module, name) for name in _WAYS if callable(getattr(module, name, None))), None)
        if self._scheme is None and way is None:
            self.why |= dict.fromkeys(fresh, f"a {type(module).__name__} has no reset_parameters")
            return
        mine, others = Values(_tensors(module)), Values(self._others(module, fresh, whole=whole))
        versions = {id(one): version_of(one) for one in own}
        why: dict[int, str] = {}
        try:
            if self._scheme is not None:
                why = self._by_scheme(module, fresh, self._scheme)
                if whole and callable(getattr(module, "reset_running_stats", None)):
                    module.reset_running_stats()  # type: ignore[operator]
            elif way is not None:
                way()
        except Exception as error:  # a module's own way may do anything
            mine.restore()
            why = dict.fromkeys(fresh, f"{type(error).__name__}: {error}".partition("\n")[0])
        else:
            self.done |= {id(one) for one in own if version_of(one) != versions[id(one)]} & fresh - why.keys()
        others.restore()
        self.why |= {
            key: why.get(key, f"a {type(module).__name__} does not initialise it") for key in fresh - self.done
        }

    def _others(self, module: nn.Module, fresh: set[int], *, whole: bool) -> Iterator[torch.Tensor]:
        """What is in a module and must stay as it is, though its way might change it."""
        own = {id(parameter) for parameter in module._parameters.values()}
        for part in module.modules():
            for tensor in _tensors(part):
                chosen = id(tensor) in fresh or (id(tensor) in self._chosen and id(tensor) not in own)
                statistics = whole and part is module and not isinstance(tensor, nn.Parameter)
                if self._scheme is None and not chosen and not statistics:
                    yield tensor

    def _by_scheme(self, module: nn.Module, fresh: set[int], scheme: Callable[[torch.Tensor], Any]) -> dict[int, str]:
        why: dict[int, str] = {}
        for key, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in fresh:
                continue
            bias = key.startswith("bias") or key.endswith("bias")
            if not bias and _is_computed(module):
                why[id(parameter)] = "the weight is computed from it and others"
            elif bias:
                nn.init.zeros_(parameter)
            elif isinstance(module, NORMS):
                nn.init.ones_(parameter)
            else:
                before = Values([parameter])
                try:
                    scheme(parameter)
                except Exception as error:  # too few dimensions, or a dtype that it does not know
                    before.restore()
                    why[id(parameter)] = str(error).partition("\n")[0]
                    continue
                padding: Any = getattr(module, "padding_idx", None)
                if padding is not None and key == "weight":
                    nn.init.zeros_(parameter[padding])
        return why


def _is_computed(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, ParametrizationList) or any(isinstance(hook, tuple(OLD_HOOKS)) for hook in hooks)


def _inside_out(model: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Every module once, after those in it."""
    model = unwrapped(model)
    if id(model) not in seen:
        seen.add(id(model))
        for child in model._modules.values():
            if child is not None:
                yield from _inside_out(child, seen)
        yield model


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensors in (module._parameters, module._buffers):
        yield from (tensor for tensor in tensors.values() if tensor is not None)


def _reasons(work: _Work, view: View, keys: Iterable[int] | None = None) -> str:
    """Names of what was left, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for key in work.why if keys is None else keys:
        by_reason.setdefault(work.why.get(key, "it has no shape yet"), []).append(view.names.get(key, "?"))
    return "; ".join(f"{shorten(names, 3)} ({reason})" for reason, names in by_reason.items()) or "it has no parameters"
