"""Modules as data: the class and the keywords that make them, and modules made from that."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core.live import named_modules, spec_of
from ..core.names import nearest
from ..errors import SurgeryError

Given = Mapping[str, nn.Module | Callable[[], nn.Module]]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
_NEVER = {"self", "device", "dtype"}
_ACTIVATIONS = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}
_UNKNOWN, _ABSENT = object(), object()

# Keywords that a layer does not keep under their own names.
_FROM: dict[tuple[type[nn.Module], str], Callable[[Any], Any]] = {
    (nn.MultiheadAttention, "bias"): lambda layer: layer.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda layer: layer.bias_k is not None,
    (nn.RNN, "nonlinearity"): lambda layer: layer.nonlinearity,
    (nn.PairwiseDistance, "p"): lambda layer: layer.norm,
}
for _layer in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
    _FROM |= {
        (_layer, "d_model"): lambda layer: layer.self_attn.embed_dim,
        (_layer, "nhead"): lambda layer: layer.self_attn.num_heads,
        (_layer, "batch_first"): lambda layer: layer.self_attn.batch_first,
        (_layer, "dim_feedforward"): lambda layer: layer.linear1.out_features,
        (_layer, "dropout"): lambda layer: layer.dropout.p,
        (_layer, "activation"): lambda layer: _ACTIVATIONS.get(layer.activation, _UNKNOWN),
        (_layer, "layer_norm_eps"): lambda layer: layer.norm1.eps,
        (_layer, "bias"): lambda layer: layer.linear1.bias is not None,
    }


def class_path(module: nn.Module) -> str:
    """The class of a module as text."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def torch_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class itself or the nearest above it that is one of torch.nn's layers."""
    return next(
        (one for one in cls.__mro__[:-1] if one is not nn.Module and getattr(nn, one.__name__, None) is one), None
    )


def keywords_of(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What the constructor of one of torch.nn's layers takes, apart from device and dtype."""
    if issubclass(cls, _RECURRENT):
        found = dict(inspect.signature(nn.RNNBase.__init__).parameters)
        del found["mode"]
        if issubclass(cls, nn.RNN):
            found["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
    else:
        found = dict(inspect.signature(cls.__init__).parameters)
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {
        name: one
        for name, one in found.items()
        if name not in _NEVER and not name.startswith("_") and one.kind not in variadic
    }


def constructor_of(layer: nn.Module, cls: type[nn.Module]) -> dict[str, Any] | None:
    """The keywords that make such a layer; None where it cannot be told, or they would make another one."""
    found: dict[str, Any] = {}
    for name, parameter in keywords_of(cls).items():
        value = _value_of(layer, cls, name)
        if value is _UNKNOWN or (value is _ABSENT and parameter.default is inspect.Parameter.empty):
            return None
        if value is not _ABSENT and value != parameter.default:
            found[name] = value
    for without in ("bias", None):  # LayerNorm and BatchNorm without any parameters have no bias either way
        keywords = {name: value for name, value in found.items() if name != without}
        try:
            with _sketching():
                again = cls(**keywords)
        except (TypeError, ValueError, RuntimeError):
            continue
        if same_structure(layer, again):
            return keywords
    return None


def sketch_of(layer: nn.Module, cls: type[nn.Module]) -> nn.Module | None:
    """A layer without values, made of as many keywords as can be read off another; None where they make none."""
    found = {}
    for name in keywords_of(cls):
        try:
            value = _value_of(layer, cls, name)
        except AttributeError:  # an instance of an older class
            continue
        if value is not _ABSENT and value is not _UNKNOWN:
            found[name] = value
    try:
        with _sketching():
            return cls(**found)
    except Exception:  # whatever constructors make of values that are none of theirs
        return None


class _NoValues(TorchFunctionMode):
    """Leaves tensors as they are where they would be initialised; some of that is slow to import on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _sketching() -> Iterator[None]:
    """Modules are made without values, and without what their constructors warn of."""
    with torch.device("meta"), _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _value_of(layer: nn.Module, cls: type[nn.Module], name: str) -> Any:
    special = next((take for (kind, key), take in _FROM.items() if key == name and issubclass(cls, kind)), None)
    value = special(layer) if special else getattr(layer, name, _ABSENT)
    if name == "bias" and not special and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    return value if value is _ABSENT or is_plain(value) else _UNKNOWN


def is_plain(value: Any) -> bool:
    """Whether JSON can say a value: a number, text, None, or lists of them."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def same_structure(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules print alike and hold tensors of the same names and shapes, tied in the same way."""
    return _lines(one) == _lines(other) and list(_held(one)) == list(_held(other))


def _lines(module: nn.Module) -> list[str]:
    """How a module and those in it print themselves, classes that derive from torch's as those."""
    return [
        f"{path}: {getattr(torch_class(type(one)), '__name__', '')} {one.extra_repr()}"
        for path, one in named_modules(module)
    ]


def _held(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    first: dict[int, str] = {}
    for path, one in named_modules(module):
        first.setdefault(id(one), path)
        for tensors in (one._parameters, one._buffers):
            for key, tensor in tensors.items():
                known = None if tensor is None else first.setdefault(id(tensor), f"{path}.{key}")
                yield path, first[id(one)], key, known, None if tensor is None else spec_of(tensor).shape


def describe(module: nn.Module, model: nn.Module) -> dict[str, Any]:
    """A module that was given for a model, as data: where it is in the model already, or what makes it."""
    for path, known in named_modules(model):
        if known is module:
            return {"shared": path}
    said = _description(module)
    try:
        with _sketching():
            again = build(said, {})
    except SurgeryError:
        return said
    return said if same_structure(module, again) else {"class": class_path(module)}


def _description(module: nn.Module) -> dict[str, Any]:
    if type(module) in CONTAINERS:
        children = {key: _description(child) for key, child in module._modules.items() if child is not None}
        return {"class": class_path(module), "children": children}
    keywords = constructor_of(module, type(module)) if torch_class(type(module)) is type(module) else None
    said = {"class": class_path(module)}
    return said if keywords is None else said | {"kwargs": listed(keywords)}


def listed(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def tupled(value: Any) -> Any:
    """The value with tuples for lists."""
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def build(said: Mapping[str, Any], given: Given, place: str = "") -> nn.Module:
    """A module from its description: one of torch.nn's, or one that the caller gives.

    Args:
        said: the description.
        given: modules, or what makes them, by the place or by the class.
        place: the name of the module in the model.

    Raises:
        SurgeryError: it is of a class that is not torch's and was not given, or cannot be made.
    """
    path = str(said.get("class"))
    for key in (place, path):
        if key in given:
            found = given[key]
            return found if isinstance(found, nn.Module) else found()
    cls = getattr(nn, path.rpartition(".")[2], None)
    known = isinstance(cls, type) and issubclass(cls, nn.Module) and f"{cls.__module__}.{cls.__qualname__}" == path
    if cls is None or not known:
        raise SurgeryError(
            f"it takes a {path}, which the record does not have",
            hint=f"pass modules={{{path!r}: ...}}: a module, or a function that makes one",
        )
    if "children" in said and cls in CONTAINERS:
        children = {key: build(child, given, f"{place}.{key}") for key, child in dict(said["children"]).items()}
        made: nn.Module = cls()
        for key, child in children.items():
            made.add_module(key, child)
        return made
    if "kwargs" not in said:
        raise SurgeryError(
            f"it takes a {path}, and the record does not say how that was made",
            hint=f"pass modules={{{path!r}: ...}}: a module, or a function that makes one",
        )
    keywords = {key: tupled(value) for key, value in dict(said["kwargs"]).items()}
    check_keywords(cls, keywords)
    return made_by(cls, keywords)


def check_keywords(cls: type[nn.Module], keywords: Mapping[str, Any]) -> None:
    """Refuse keywords that the constructor does not have."""
    known = keywords_of(cls)
    for key in keywords:
        if key not in known:
            close = nearest(str(key), known) or list(known)
            raise SurgeryError(
                f"{cls.__name__} takes no {key!r}", hint=f"it takes {', '.join(map(repr, close))}" if close else ""
            )


def made_by(cls: type[nn.Module], keywords: Mapping[str, Any]) -> nn.Module:
    """A layer from its class and keywords."""
    try:
        return cls(**keywords)
    except (TypeError, ValueError, RuntimeError, AssertionError, OverflowError, MemoryError) as error:
        said = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise SurgeryError(f"{cls.__name__}({said}) cannot be made: {error}") from error
