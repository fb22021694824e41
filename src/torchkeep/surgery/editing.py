"""Taking modules out of a model, and putting new ones in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.live import named_modules
from ..core.names import is_under
from ..core.operations import Operation
from ..errors import SurgeryError
from ..freezing import NORMS, is_held
from .describing import CONTAINERS, describe, torch_class
from .layers import Change, Site, check_unreferenced, child_site, elsewhere, other_places, site_of, text_of, ties
from .recording import forget
from .replacing import check_new, fit
from .trial import Call, calls, carried_out, mapped, run, target_of, undisturbed

_IDENTITY = "Identity()"
_OUT = "taken out"
_CALLING = (*CONTAINERS, nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)  # these only call their parts
# Layers that give what has the shape of what they take.
_KEEPING = (
    *NORMS,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softmax, nn.LogSoftmax),
)


# Taking out


def remove(model: nn.Module, name: str, *, example: Any = None, renumber: bool = False) -> Change:
    """Take a module out: an `nn.Identity` stands in its place, so that the other layers keep their names.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    >>> print(remove(model, "1"))
    remove 1: Dropout(p=0.5, inplace=False) -> Identity()

    Without an example only layers are taken out of which it is known that they give the shape they take. Of a layer
    that has other names too, or shares weights with another, this place alone is changed.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        name: dotted path of the module.
        example: an input of the model to run it on before and after: a tensor, a tuple of arguments, or a dict of
            keyword arguments. That changes neither the model nor any generator.
        renumber: in an `nn.Sequential` or `nn.ModuleList`, leave nothing in its place; those after it get new numbers.

    Raises:
        SurgeryError: there is no such module, it is a part of one of torch's own layers, the model fails without it, or
            nothing says that it would not. The model is untouched.
    """
    site = child_site(target_of(model), name)
    if example is None:
        _check_keeps(site)
    return removed(site, renumber=renumber, example=example)


def removed(site: Site, *, renumber: bool, example: Any = None) -> Change:
    """Take a module out; whether shapes allow it is found out by the example alone."""
    before, name = text_of(site.layer), site.name
    _check_parent(site)
    check_unreferenced([site])
    if renumber and not _is_listed(site.parent):
        raise SurgeryError(
            f"{name!r} is in a {type(site.parent).__name__}, whose children have no order",
            hint="go without renumber=True, which leaves an Identity",
        )
    if not renumber and type(site.layer) is nn.Identity:
        return Change("remove", name, before, before, "it is an Identity already")
    notes = [f"{what} stays" for what in elsewhere(site)]
    call = None if example is None else calls(site.model, example).get(name)
    if example is not None and call is None:
        notes.append("the example does not go through it")
    if call is not None and not renumber:
        _check_kind(call)

    def change() -> None:
        if renumber:
            _relist(site.parent, [(key, child) for key, child in site.parent._modules.items() if key != site.key])
        else:
            site.put(nn.Identity().train(site.layer.training))

    operation = Operation("remove", name, {"renumber": True} if renumber else {})
    try:
        check = carried_out(site.model, operation, change, example)
    except SurgeryError as error:
        if call is not None and call.took != call.gave:
            error.message = f"{name!r} takes {call.took} and gives {call.gave}; {error.message}"
        raise
    return Change("remove", name, before, _OUT if renumber else _IDENTITY, "; ".join(notes), check)


def _check_kind(call: Call) -> None:
    """Refuse to put an Identity where more than a tensor comes out."""
    if not call.keeps_kind:
        raise SurgeryError(
            f"{call.path!r} takes {call.took} and gives {call.gave}, so nothing can be handed on in its place",
            hint="replace it by a module that gives the like, or change what is around it",
        )


def _check_parent(site: Site) -> None:
    """Refuse parts of torch's own layers, which reach into them."""
    parent = torch_class(type(site.parent))
    if parent is not None and parent not in _CALLING and type(site.parent).forward is parent.forward:
        raise SurgeryError(
            f"{site.name!r} is a part of a {parent.__name__}, which reaches into it",
            hint="replace the whole layer, or the part by one of the same class",
        )


def _check_keeps(site: Site) -> None:
    why = _loses_shape(site.layer)
    if why:
        raise SurgeryError(
            f"{site.name!r}, {text_of(site.layer)}, {why}",
            hint="pass example=, an input of the model, to see whether it works without; or replace it",
        )


def _loses_shape(layer: nn.Module) -> str:
    """Why a layer cannot be left out as far as its class tells; empty where it can."""
    if isinstance(layer, _KEEPING):
        return ""
    if type(layer) is nn.Sequential:
        return next(filter(None, map(_loses_shape, layer)), "")
    if isinstance(layer, nn.Linear):
        sizes = (layer.in_features, layer.out_features)
        return "" if sizes[0] == sizes[1] else f"takes {sizes[0]} features and gives {sizes[1]}"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if layer.in_channels != layer.out_channels:
            return f"takes {layer.in_channels} channels and gives {layer.out_channels}"
        reach = zip(layer.kernel_size, layer.dilation, strict=True)
        full = layer.padding == "same" or list(layer.padding) == [step * (size - 1) / 2 for size, step in reach]
        return "" if full and set(layer.stride) == {1} else "gives another size than it takes"
    return "may give another shape than it takes"


def _is_listed(parent: nn.Module) -> bool:
    return isinstance(parent, nn.ModuleList) or _is_sequence(parent)


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _relist(parent: nn.Module, children: list[tuple[str, nn.Module | None]]) -> None:
    """Give a list other children; where they are numbered, they are numbered anew."""
    numbered = all(key.isdecimal() for key in parent._modules)
    parent._modules.clear()
    parent._modules.update({str(at) if numbered else key: child for at, (key, child) in enumerate(children)})


# Putting in


def insert(
    model: nn.Module,
    module: nn.Module,
    *,
    after: str | None = None,
    before: str | None = None,
    name: str | None = None,
    example: Any = None,
) -> Change:
    """Put a new module behind or in front of another.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    >>> print(insert(model, nn.ReLU(), after="0", name="act"))
    insert act: nothing -> ReLU()
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '1.weight', '1.bias']

    In an `nn.Sequential` it becomes a child of that; in an `nn.ModuleList` likewise, for models that call its members
    one after another. Next to an `nn.Sequential` it becomes that one's first or last child. Any other module gets an
    `nn.Sequential` around it, in which it is called `main`: the note says so, as its parameters change their names.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        module: taken as it is and not copied; it gets the dtype, device and training mode of where it goes.
        after, before: dotted path of the module it goes behind, or in front of; one of the two.
        name: what it is called there. None gives it a number where its neighbours have numbers, and those behind it
            other ones; else it is called `added`.
        example: an input of the model to run it on before and after.

    Raises:
        SurgeryError: there is no such place, the name is taken, or the model fails with it. The model is untouched.
    """
    model = target_of(model)
    if (after is None) == (before is None):
        raise SurgeryError("say where: after= or before=, and one of them only")
    if not isinstance(module, nn.Module):
        raise SurgeryError(f"a {type(module).__name__} cannot be inserted", hint="pass a module")
    place = after if after is not None else before
    assert place is not None
    site = child_site(model, place)
    check_new(site, module)
    _check_parent(site)
    check_unreferenced([site])
    said = describe(module, model)
    if "shared" not in said:
        fit(module, site.layer, model)
        module.train(site.parent.training)
    change, path, notes = _insertion(site, module, behind=after is not None, name=name)
    if is_held(site.parent):
        notes.append("it lies in a frozen part, which holds it in eval mode: unfreeze it to train it")
    arguments = {"after" if after is not None else "before": place, "module": said}
    check = carried_out(
        model, Operation("insert", path, arguments | ({} if name is None else {"name": name})), change, example
    )
    if "class" in said and len(said) > 1:
        forget(module.modules())
    return Change("insert", path, "nothing", text_of(module), "; ".join(notes), check)


def _insertion(
    site: Site, module: nn.Module, *, behind: bool, name: str | None
) -> tuple[Callable[[], None], str, list[str]]:
    """How a module is put in, the path that it has then, and what to say of it."""
    parent, above = site.parent, site.name.rpartition(".")[0]
    if _is_listed(parent):
        at = list(parent._modules).index(site.key) + behind
        return _listed(parent, above, at, module, name)
    if _is_sequence(site.layer):
        return _listed(site.layer, site.name, len(site.layer._modules) if behind else 0, module, name)
    key = "added" if name is None else name
    _check_key(nn.Sequential(), key, {"main"})
    pair = [("main", site.layer), (key, module)]
    note = f"{site.name!r} is an nn.Sequential now: what it was is {site.name + '.main'!r}"

    def wrap() -> None:
        around = nn.Sequential().train(site.layer.training)
        for child, one in pair if behind else pair[::-1]:
            around.add_module(child, one)
        _hang(site, around)

    return wrap, f"{site.name}.{key}", [note]


def _hang(site: Site, around: nn.Module) -> None:
    """Put what is around a layer in its place, inside whatever wraps it, without holding it."""
    Site(site.model, site.name, nn.Identity()).put(around)


def _listed(
    parent: nn.Module, above: str, at: int, module: nn.Module, name: str | None
) -> tuple[Callable[[], None], str, list[str]]:
    keys = list(parent._modules)
    numbered = all(key.isdecimal() for key in keys)
    if name is not None and isinstance(parent, nn.ModuleList):
        raise SurgeryError(f"{above!r} is an nn.ModuleList, whose members have numbers", hint="go without name=")
    if name is None and numbered:
        children = list(parent._modules.items())
        children.insert(at, ("", module))
        moved = len(keys) - at
        notes = [f"{moved} layers behind it have another number now"] if moved else []
        return lambda: _relist(parent, children), _joined(above, str(at)), notes
    key = "added" if name is None else name
    _check_key(parent, key, set(keys))
    named = list(parent._modules.items())
    named.insert(at, (key, module))

    def put() -> None:
        parent._modules.clear()
        parent._modules.update(named)

    return put, _joined(above, key), []


def _check_key(parent: nn.Module, key: Any, taken: set[str]) -> None:
    problem = ""
    if not isinstance(key, str) or not key or "." in key:
        problem = "is no name of a module: it must be text without dots"
    elif key in taken or hasattr(parent, key):
        problem = "is taken there"
    if problem:
        raise SurgeryError(f"{key!r} {problem}", hint="pass another name=")


def _joined(above: str, key: str) -> str:
    return f"{above}.{key}" if above else key


# Cutting off


def truncate(model: nn.Module, at: str, *, example: Any = None) -> Change:
    """Cut off everything behind a module: what it gives is then what the model gives.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> print(truncate(model, "1"))
    truncate 1: 1 module behind it -> nothing behind it

    Out of an `nn.Sequential` or `nn.ModuleList` the rest is taken; in a model with a forward of its own the modules
    behind it become `nn.Identity`, and what that forward does by function calls, such as flattening, stays.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        at: dotted path of the last module that stays.
        example: an input of the model. With it, what is behind is told by the order of calls, the model is run before
            and after, and it is made sure that nothing of the input gets past the module. None goes by the order of
            registration, and takes a module only from the model itself or from lists in it.

    Raises:
        SurgeryError: there is no such module, the modules around it have no order, something gets past it, or the
            model fails without the rest. The model is untouched.
    """
    model = target_of(model)
    site = child_site(model, at)
    called = None if example is None else calls(model, example)
    if called is not None:
        _check_once(site, called)
    identity: list[str] = []
    out: list[str] = []
    for step in _steps(site):
        parent = step.parent
        ordered = _is_listed(parent)
        behind = _behind(step, None if ordered else called)
        if behind and not ordered:
            _check_parent(step)
        if behind and called is None and not ordered and parent is not model:
            raise SurgeryError(
                f"{step.name!r} is in a {type(parent).__name__}, and nothing says in which order that calls its parts",
                hint="pass example=, an input of the model",
            )
        for path in behind:
            if ordered:
                out.append(path)
            else:
                _without(model, path, called, identity, out)
    for call in (called or {}).values():
        if call.path in identity:
            _check_kind(call)
    identity = [path for path in identity if type(site_of(model, path).layer) is not nn.Identity]
    if not identity and not out:
        return Change("truncate", at, "nothing behind it", "nothing behind it", "it is the last already")
    return cut(site, identity, out, example=example)


def cut(site: Site, identity: list[str], out: list[str], *, example: Any = None) -> Change:
    """Take some modules out of lists, and put Identity in the place of others."""
    model = site.model
    gone = [child_site(model, path) for path in (*identity, *out)]
    check_unreferenced(gone)
    names = [name for one in gone for name in (*other_places(one), *ties(one))]
    stay = [name for name in dict.fromkeys(names) if not any(is_under(name, one.name) for one in gone)]
    notes = [f"{name!r}, which is the same as something behind it, stays" for name in stay]

    def change() -> None:
        for path in identity:
            one = child_site(model, path)
            one.put(nn.Identity().train(one.layer.training))
        for path in out:
            one = child_site(model, path)
            del one.parent._modules[one.key]
        if example is not None:
            _check_nothing_passes(site, example)

    arguments: dict[str, Any] = {key: value for key, value in (("identity", identity), ("out", out)) if value}
    check = carried_out(model, Operation("truncate", site.name, arguments), change, example)
    what = f"{len(gone)} module{'s' if len(gone) > 1 else ''} behind it"
    return Change("truncate", site.name, what, "nothing behind it", "; ".join(notes), check)


def _steps(site: Site) -> list[Site]:
    """The module and those around it, inside out."""
    keys = site.name.split(".")
    return [site_of(site.model, ".".join(keys[: len(keys) - up])) for up in range(len(keys))]


def _behind(step: Site, called: Mapping[str, Call] | None) -> list[str]:
    """The siblings that come after a module; one that is called before too is not behind."""
    above = step.name.rpartition(".")[0]
    keys = list(step.parent._modules)
    later = [_joined(above, key) for key in keys[keys.index(step.key) + 1 :] if step.parent._modules[key] is not None]
    if called is None:
        return later
    end = called[step.name].ended if step.name in called else _last_end(step, called)
    everyone = [_joined(above, key) for key in keys if step.parent._modules[key] is not None]
    first = {path: _first_start(step.model, path, called) for path in everyone}
    return [
        path for path in everyone if (path in later if first[path] is None else first[path] > end) and path != step.name
    ]


def _without(
    model: nn.Module, path: str, called: Mapping[str, Call] | None, identity: list[str], out: list[str]
) -> None:
    """How a module is done without: lists become empty, what only holds others is entered, the rest is Identity."""
    module = site_of(model, path).layer
    children = [f"{path}.{key}" for key, child in module._modules.items() if child is not None]
    held = called is not None and path not in called and any(_inside(model, child, called) for child in children)
    if isinstance(module, nn.ModuleList):
        out.extend(children)
    elif isinstance(module, nn.ModuleDict) or held:
        for child in children:
            _without(model, child, called, identity, out)
    else:
        identity.append(path)


def _inside(model: nn.Module, path: str, called: Mapping[str, Call]) -> list[Call]:
    inner = site_of(model, path).inner
    return [called[name] for name, module in named_modules(model) if id(module) in inner and name in called]


def _first_start(model: nn.Module, path: str, called: Mapping[str, Call]) -> Any:
    return min((call.started for call in _inside(model, path, called)), default=None)


def _last_end(step: Site, called: Mapping[str, Call]) -> int:
    return max(call.ended for call in _inside(step.model, step.name, called))


def _check_once(site: Site, called: Mapping[str, Call]) -> None:
    if site.name not in called:
        raise SurgeryError(f"the example does not go through {site.name!r}", hint="name a module that the model calls")
    if called[site.name].times > 1:
        raise SurgeryError(
            f"{site.name!r} is called {called[site.name].times} times, so there is no behind it",
            hint="truncate at a module that is called once",
        )


def _check_nothing_passes(site: Site, example: Any) -> None:
    """Run the cut model on another input with what the module gave for the example: it must give the same.

    Raises:
        SurgeryError: it does not, so something gets past the module.
    """
    given: list[Any] = []

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        given.append(mapped(output, torch.clone))

    def answer(module: nn.Module, args: Any, output: Any) -> Any:
        return mapped(given[0], torch.clone)

    with undisturbed(site.model):
        results = []
        for hook, value in ((remember, example), (answer, _other(example))):
            handle = site.layer.register_forward_hook(hook)
            try:
                results.append(run(site.model, value))
            except Exception:
                if not results:
                    return  # the model fails without the rest, which the run afterwards says
                results.append(None)
            finally:
                handle.remove()
    if not _same(*results):
        raise SurgeryError(
            f"what the model gives does not depend on {site.name!r} alone: something gets past it, as in a residual "
            "block",
            hint="truncate at the module around it",
        )


def _other(example: Any) -> Any:
    """An input like the example, with other values that are valid too: its own in another order."""
    if isinstance(example, Mapping):
        return {key: _other(value) for key, value in example.items()}
    return mapped(example, _rearranged)


def _rearranged(tensor: torch.Tensor) -> torch.Tensor:
    rolled = tensor.reshape(-1).roll(1).reshape(tensor.shape)
    return rolled / 2 + 0.25 if tensor.is_floating_point() or tensor.is_complex() else rolled


def _same(one: Any, other: Any) -> bool:
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []
    mapped(one, first.append)
    mapped(other, second.append)
    return len(first) == len(second) and all(
        a.shape == b.shape and (a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num()))
        for a, b in zip(first, second, strict=True)
    )
