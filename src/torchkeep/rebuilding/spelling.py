"""Classes as Python text: what a person completes where the code of a model is gone."""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..core.blueprint import Blueprint, Part
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record, as_tensor
from ..core.version import __version__
from ..surgery.describing import constructor_of, keywords_of, torch_class
from .skeleton import Skeleton

_DEPTH = 30
_LONGEST = 500
_TAKEN = {*dir(builtins), "Any", "annotations", "model", "nn", "tie", "torch", "holding"}
_MODULE_NAMES = frozenset(dir(nn.Module()))
_CONTAINER_NAMES = frozenset((*dir(nn.ModuleDict()), *dir(nn.ParameterDict())))
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,:/ <>()=+\[\]-]")

_HOLDING = '''
def holding(module: nn.Module, children: dict[str, nn.Module | None]) -> Any:
    """The module with these children, whatever they are called."""
    module._modules.update(children)
    return module
'''
_TIE = '''
def tie(made: nn.Module, name: str, first: str) -> None:
    """Have two names of the model mean one parameter."""
    (owner, _, key), (source, _, other) = name.rpartition("."), first.rpartition(".")
    setattr(made.get_submodule(owner), key, getattr(made.get_submodule(source), other))
'''


@dataclass(frozen=True)
class Spelled:
    """Classes as text.

    Attributes:
        text: a Python module.
        classes: name of a class in the file -> its name in the text.
    """

    text: str
    classes: Mapping[str, str]


def spelled(blueprint: Blueprint, module_of: Callable[[int], nn.Module], origins: Mapping[str, str]) -> Spelled:
    """Every class that is not here as Python text, with the constructor that makes what the file has of it.

    Whatever comes from the file gets into the text as a checked identifier, or as a literal in ASCII.

    Args:
        blueprint: the model.
        module_of: the place of a part -> its module, without values.
        origins: class -> what is known of its code, for the docstring.
    """
    speller = _Speller(blueprint, module_of, origins)
    whole = speller.expression(0)
    ties = [f"    tie(made, {name!a}, {first!a})" for name, first in _ties(module_of(0))]
    said = (
        f"Classes of the model in {_safe(blueprint.file)[:300]}, to be completed.\n\n"
        f"Written by torchkeep {__version__} from what the file says of its modules; none of their code is in it.\n"
    )
    parts = [
        f'"""{said}"""',
        "from __future__ import annotations\n\nfrom typing import Any\n\nimport torch\nfrom torch import nn\n",
        *([_HOLDING] if speller.holds else []),
        *([_TIE] if ties else []),
        *speller.texts,
        "\n".join(
            [
                "\ndef model() -> Any:",
                '    """The whole model, before its weights are loaded."""',
                f"    made = {whole}",
                *ties,
                "    return made",
            ]
        ),
    ]
    return Spelled("\n".join((parts[0], "", *parts[1:])).rstrip() + "\n", speller.classes)


@dataclass
class _Speller:
    """Expressions that make modules, and the classes that they need, written as they are met."""

    blueprint: Blueprint
    module_of: Callable[[int], nn.Module]
    origins: Mapping[str, str]
    texts: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    holds: bool = False
    _bodies: dict[tuple[str, str], str] = field(default_factory=dict)
    _done: dict[int, str] = field(default_factory=dict)
    _open: int = 0

    def expression(self, index: int) -> str:
        """What makes the module of a part."""
        if index not in self._done:
            part, module = self.blueprint.parts[index], self.module_of(index)
            self._open += 1
            known = None if isinstance(module, Skeleton) or self._open > _DEPTH else self._layer(part, module)
            self._done[index] = known or f"{self._class(part, module)}()"
            self._open -= 1
        return self._done[index]

    def _children(self, part: Part) -> dict[str, str]:
        return {key: "None" if at is None else self.expression(at) for key, at in part.children.items()}

    # Layers of torch.nn

    def _layer(self, part: Part, module: nn.Module) -> str | None:
        """A layer of torch.nn, where its constructor makes what the file has; else None."""
        cls = type(module)
        if cls in {nn.Sequential, nn.ModuleList, nn.ModuleDict}:
            return self._container(part, cls)
        if cls in {nn.ParameterList, nn.ParameterDict}:
            return _parameters(part, cls)
        if cls is nn.DataParallel and [*part.children] == ["module"]:
            return f"nn.DataParallel({self._children(part)['module']})"
        if cls in {nn.TransformerEncoder, nn.TransformerDecoder}:
            return self._stack(part, module)
        if cls is nn.Transformer:
            return self._transformer(part, module)
        return _made_by_keywords(module)

    def _container(self, part: Part, cls: type[nn.Module]) -> str | None:
        if any(held for held in (part.parameters, part.buffers)):
            return None
        children = self._children(part)
        numbered = [*children] == [str(place) for place in range(len(children))] and "None" not in children.values()
        if cls is not nn.ModuleDict and numbered:
            inside = ", ".join(children.values())
            return f"nn.{cls.__name__}({inside if cls is nn.Sequential or not inside else f'[{inside}]'})"
        inside = ", ".join(f"{key!a}: {one}" for key, one in children.items())
        if cls is nn.ModuleDict and all(map(_is_key, children)) and "None" not in children.values():
            return f"nn.ModuleDict({{{inside}}})"
        self.holds = True
        return f"holding(nn.{cls.__name__}(), {{{inside}}})"

    def _stack(self, part: Part, module: nn.Module) -> str | None:
        layers, norm = part.children.get("layers"), part.children.get("norm")
        if layers is None or not {*part.children} <= {"layers", "norm"}:
            return None
        each = [*self._children(self.blueprint.parts[layers]).values()]
        if not each or {*each} != {each[0]} or each[0] == "None" or part.parameters or part.buffers:
            return None
        more = "" if norm is None else f", norm={self.expression(norm)}"
        if isinstance(module, nn.TransformerEncoder):
            more += f", enable_nested_tensor={bool(module.enable_nested_tensor)}"
        return f"nn.{type(module).__name__}({each[0]}, {len(each)}{more})"

    def _transformer(self, part: Part, module: nn.Module) -> str | None:
        if {*part.children} != {"encoder", "decoder"}:
            return None
        given = {key: getattr(module, key, None) for key in ("d_model", "nhead", "batch_first")}
        if not all(isinstance(value, int) for value in given.values()) or part.parameters or part.buffers:
            return None
        said = [f"{key}={value!a}" for key, value in given.items()]
        said += [f"custom_{key}={one}" for key, one in self._children(part).items()]
        return f"nn.Transformer({', '.join(said)})"

    # Other classes

    def _class(self, part: Part, module: nn.Module) -> str:
        """The name of the class that makes such a module; those that would be the same text are one."""
        body = "\n".join(self._body(part))
        key = (part.class_name, body)
        if key not in self._bodies:
            missing = isinstance(module, Skeleton)
            name = self._name(part.class_name, "" if missing else "Old")
            self._bodies[key] = name
            self.texts.append(self._text(name, part, body, missing))
            if missing:
                self.classes.setdefault(part.class_name, name)
        return self._bodies[key]

    def _name(self, class_name: str, lead: str) -> str:
        """A name for a class that nothing else has."""
        wanted = lead + class_name.rpartition(".")[2]
        if not _is_name(wanted) or len(wanted) > 80:
            wanted = "Class"
        used = {*_TAKEN, *self._bodies.values()}
        numbered = (f"{wanted}{number}" for number in range(2, len(used) + 3))
        return wanted if wanted not in used else next(name for name in numbered if name not in used)

    def _text(self, name: str, part: Part, body: str, missing: bool) -> str:
        what = f"It was called {_safe(part.class_name)}"
        if missing:
            known = self.origins.get(part.class_name, "")
            what += f"; {_safe(known)}" if known else ""
        else:
            what += ", and is not what its constructor makes today"
        children = ", ".join(f"{key} ({_last(self.blueprint, at)})" for key, at in part.children.items()) or "none"
        return "\n".join(
            [
                f"\nclass {name}(nn.Module):",
                f'    """{what}."""',
                "",
                "    def __init__(self) -> None:",
                "        super().__init__()",
                *([body] if body else []),
                "",
                "    def forward(self, *args: Any, **kwargs: Any) -> Any:",
                f"        # Its children, in their order: {_safe(children)[:2000]}",
                f'        raise NotImplementedError("write the forward of {name}")',
                "",
            ]
        )

    def _body(self, part: Part) -> Iterator[str]:
        """Statements that give an instance its attributes, tensors and children."""
        held = {*part.parameters, *part.buffers, *part.children}
        taken = {*_MODULE_NAMES}
        for key, value in part.attributes.items():
            text = _literal(value)
            if key in held or not _is_name(key) or key in taken or text is None:
                yield f"        # {_safe(key)[:80]} was {brief(value)}"
            else:
                yield f"        self.{key} = {text}"
                taken.add(key)
        for key, tensor in part.parameters.items():
            made = "None" if tensor is None else _parameter(tensor)
            named = _is_name(key) and tensor is not None
            plain = f"self.{key} = {made}" if named else f"self.register_parameter({key!a}, {made})"
            yield from _registered(key, made, plain, "_parameters", taken)
        for key, tensor in part.buffers.items():
            made = "None" if tensor is None else _empty(tensor)
            transient = key in part.transient
            plain = f"self.register_buffer({key!a}, {made}{', persistent=False' if transient else ''})"
            yield from _registered(key, made, plain, "_buffers", taken, transient)
        for key, made in self._children(part).items():
            plain = f"self.{key} = {made}" if _is_name(key) and made != "None" else f"self.add_module({key!a}, {made})"
            yield from _registered(key, made, plain, "_modules", taken)


def _registered(
    key: str, made: str | None, plain: str, holder: str, taken: set[str], transient: bool = False
) -> Iterator[str]:
    """The statement that registers something under a name: the usual one, or one that takes any name."""
    if made is None:
        yield f"        # {_safe(key)[:80]} was a tensor that is no plain one"
    elif key and "." not in key and key not in taken:
        taken.add(key)
        yield f"        {plain}"
    else:
        yield f"        self.{holder}[{key!a}] = {made}"
        if transient:
            yield f"        self._non_persistent_buffers_set.add({key!a})"


def _made_by_keywords(module: nn.Module) -> str | None:
    cls = torch_class(type(module))
    if cls is None or issubclass(cls, nn.AdaptiveLogSoftmaxWithLoss):
        return None
    try:
        keywords = constructor_of(module, cls)
    except Exception:  # attributes that are none of such a layer
        return None
    if keywords is None:
        return None
    known = keywords_of(cls)
    texts = {key: _literal(value) for key, value in keywords.items() if not _repeats(value, known[key].default)}
    if None in texts.values():
        return None
    dtypes = {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()}
    if len(dtypes) == 1 and dtypes != {torch.float32} and "dtype" in signature(cls.__init__).parameters:
        texts["dtype"] = str(dtypes.pop())
    return f"nn.{cls.__name__}({', '.join(f'{key}={text}' for key, text in texts.items())})"


def _repeats(value: Any, default: Any) -> bool:
    """Whether it is the default once for each dimension, as layers keep it."""
    return isinstance(value, tuple) and isinstance(default, int) and {*value} == {default}


def _parameters(part: Part, cls: type[nn.Module]) -> str | None:
    """A list or dict of parameters, where nothing else is in it."""
    made = {key: None if tensor is None else _parameter(tensor) for key, tensor in part.parameters.items()}
    if part.children or part.buffers or None in made.values():
        return None
    if cls is nn.ParameterList:
        numbered = [*made] == [str(place) for place in range(len(made))]
        return f"nn.ParameterList([{', '.join(map(str, made.values()))}])" if numbered else None
    if not all(map(_is_key, made)):
        return None
    return f"nn.ParameterDict({{{', '.join(f'{key!a}: {one}' for key, one in made.items())}}})"


def _empty(tensor: LazyTensor) -> str | None:
    """A tensor of the same shape; None for one that is not plain."""
    if tensor.parts:
        return None
    dtype = tensor.spec.dtype
    return f"torch.empty({tuple(tensor.spec.shape)!r}{'' if dtype is torch.float32 else f', dtype={dtype}'})"


def _parameter(tensor: LazyTensor) -> str | None:
    made = _empty(tensor)
    return made and f"nn.Parameter({made}{'' if tensor.requires_grad else ', requires_grad=False'})"


def _is_name(text: str) -> bool:
    """Whether it can stand in Python code as it is; names that classes mangle cannot."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def _is_key(text: str) -> bool:
    """Whether a dict of modules or of parameters takes it as a key."""
    return bool(text) and "." not in text and text not in _CONTAINER_NAMES


def _safe(text: str) -> str:
    """Text as a comment or a docstring may have it."""
    return _UNSAFE.sub("?", text)


def _literal(value: Any, depth: int = 0) -> str | None:
    """A plain value as code; None for all others, and for long ones."""
    text: str | None = None
    if value is None or isinstance(value, (bool, torch.dtype)):
        text = repr(value)
    elif type(value) is int:
        text = repr(value) if value.bit_length() <= 64 else None
    elif type(value) is float:
        text = repr(value) if math.isfinite(value) else f'float("{value!r}")'
    elif type(value) is str and len(value) <= _LONGEST:
        text = ascii(value)
    elif isinstance(value, (list, tuple)) and len(value) <= _LONGEST and depth < 5:
        items = [_literal(item, depth + 1) for item in value]
        if None not in items:
            inside = ", ".join(map(str, items))
            single = "," if isinstance(value, tuple) and len(items) == 1 else ""
            text = f"[{inside}]" if isinstance(value, list) else f"({inside}{single})"
    elif isinstance(value, dict) and len(value) <= _LONGEST and depth < 5:
        pairs = [(_literal(key, depth + 1), _literal(item, depth + 1)) for key, item in value.items()]
        if not any(None in pair for pair in pairs):
            text = f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}"
    return text if text is not None and len(text) <= _LONGEST else None


def brief(value: Any) -> str:
    """A value that is no code, in a few words."""
    if isinstance(value, Global):
        return _safe(value.qualified)[:200]
    tensor = as_tensor(value)
    if isinstance(tensor, LazyTensor):
        return f"a tensor, {_safe(str(tensor.spec))}"
    if isinstance(value, Record):
        return f"an object of {_safe(value.class_name)[:200]}"
    return f"a {_safe(type(value).__name__)}" if _literal(value) is None else str(_literal(value))


def _last(blueprint: Blueprint, index: int | None) -> str:
    return "None" if index is None else blueprint.parts[index].class_name.rpartition(".")[2]


def _ties(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every name of a parameter that has one before it, and that one; those that no path leads to are left out."""
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is None or "." in key:
                continue
            name = f"{path}.{key}" if path else key
            known = first.setdefault(id(parameter), name)
            if known != name and _leads(model, path, module):
                yield name, known


def _leads(model: nn.Module, path: str, module: nn.Module) -> bool:
    try:
        return model.get_submodule(path) is module
    except AttributeError:
        return False
