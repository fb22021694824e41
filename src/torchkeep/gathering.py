"""Reading labelled examples, and refusing what cannot be trained on before anything is trained."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.live import module_at, named_parameters, unwrapped
from .core.registry import make_part
from .core.survey import Stem
from .core.table import shorten
from .core.tensors import TensorSpec
from .core.transfer import Examples
from .datasets import DATASETS, Dataset
from .errors import DataError, SurgeryError
from .surgery import stem_of
from .surgery.layers import CONVS
from .surgery.trial import kept_generators, mapped, undisturbed
from .trials.training import logits_of


def read_examples(source: Any, *, size: int | tuple[int, int] | None = None, limit: int | None = None) -> Examples:
    """Labelled examples in memory, from wherever they are.

    >>> print(read_examples("sklearn:digits"))                                            # doctest: +ELLIPSIS
    sklearn:digits
      examples  1,797
      classes   10: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more
      inputs    float32[1, 8, 8] each
    ...

    Images are float32 from 0 to 1, [n, channels, height, width]: one channel where all are grey, three otherwise. What
    was changed or left out stands in the `notes`. Nothing in a file is run.

    Args:
        source: a folder with one folder of images a class; an .npz file with x and y, or images and labels;
            `sklearn:digits`, `sklearn:wine`, `sklearn:breast_cancer`, `sklearn:iris`; a torch data set or loader,
            (inputs, labels), a dict of arrays, or an iterable of (input, label), where an input may be a dict by the
            names of the model's arguments; `package.module:attribute`, which is imported and, if it is a class or a
            function, called; or Examples.
        size: height and width that images are brought to, one number for both: scaled to cover it, the middle kept.
        limit: at most so many. Drawn, always the same, with each class in its share where the labels are known before;
            the first ones of what can only be iterated over.

    Raises:
        DataError: nothing is there, it cannot be read, images are of several sizes and there is no `size`, labels are
            no whole numbers from 0 or out of range, lengths differ, or there is no example.
        MissingDependencyError: images need pillow, `sklearn:` scikit-learn.
    """
    edges = None if size is None else tuple(map(_whole, size if isinstance(size, (tuple, list)) else (size, size)))
    if edges is not None and (len(edges) != 2 or min(edges) < 1):
        raise DataError(f"size={size!r} is no height and width", hint="give a positive number, or two of them")
    most = None if limit is None else _whole(limit)
    if most is not None and most < 1:
        raise DataError(f"limit={limit!r} is no number of examples", hint="give a positive number, or leave it out")
    parts: list[Dataset] = [make_part(DATASETS, name, "kind of data set") for name in DATASETS]
    part = next((part for part in parts if part.reads(source)), None)
    if part is None:
        raise _unknown(source, parts)
    return part.read(source, size=None if edges is None else (edges[0], edges[1]), limit=most)


def check_examples(examples: Examples, model: nn.Module | None = None) -> None:
    """Refuse examples that nothing can be learned from, or that the model cannot take; does nothing otherwise.

    The model is run on a few of them, in eval mode; neither it nor any generator is changed. Its head need not have
    the number of classes of the examples.

    Args:
        examples: as `read_examples` gives them.
        model: takes one batch of inputs and gives [batch, classes], `.logits`, or a tuple that begins with them.

    Raises:
        DataError: there are none, one class only, a class with fewer than two; labels are not whole, out of range, or
            not as many as inputs; inputs are NaN or infinite, or the model cannot take them.
    """
    if not isinstance(examples, Examples):
        raise DataError(f"these are a {type(examples).__name__}, not Examples", hint="read them with tk.read_examples")
    check_form(examples)
    _check_classes(examples)
    for name, tensor in examples.tensors.items():
        _check_values(name, tensor)
    if model is not None:
        tried(model, examples)


def model_from(maker: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The model that is given or made; what makes one finds torch's generator seeded, and all are as they were then.

    Raises:
        DataError: it is no model, or something else is made.
    """
    made: Any = maker
    if not isinstance(made, nn.Module) and callable(made):
        with kept_generators(nn.Module()):
            torch.manual_seed(0)
            made = made()
    if not isinstance(made, nn.Module):
        what = f"the function gives a {type(made).__name__}" if callable(maker) else f"this is a {type(made).__name__}"
        raise DataError(f"{what}, not a model", hint="give an nn.Module, or a function that makes one")
    return unwrapped(made)


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Raises:
        SurgeryError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module may hold
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        hint = "take out what holds results, locks or files; nn.utils.parametrizations.weight_norm can be copied"
        raise SurgeryError(
            f"the model cannot be copied, and it is not to be changed: {said:.200}", hint=hint
        ) from error


def tried(model: nn.Module, examples: Examples) -> torch.Tensor:
    """What the model gives for a few examples: [a few, outputs].

    Raises:
        DataError: it cannot take them; the message says what it takes and what it gets.
    """
    inputs, model = few(examples).inputs, unwrapped(model)
    try:
        with undisturbed(model):
            scores = logits_of(model, on_device_of(model, inputs))
    except (DataError, SurgeryError) as error:
        problem = f"the model cannot be tried on the examples: {error.message}"
        raise DataError(problem, hint="" if isinstance(error, SurgeryError) else error.hint) from error
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        problem = f"the model cannot take the examples: it takes {_takes(model, inputs)}, and gets {_gets(examples)}"
        raise DataError(f"{problem} ({said})", hint=_remedy(model, examples)) from error
    count = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    if len(scores) != count:
        raise DataError(
            f"the model gives {len(scores)} rows for {count} examples", hint="the first dimension must be the examples"
        )
    if not scores.is_meta and not bool(torch.isfinite(scores).all()):
        raise DataError(
            "the model gives NaN or infinite scores for examples that are finite",
            hint="look at the weights that were loaded",
        )
    return scores


def check_head(model: nn.Module, examples: Examples, head: str) -> None:
    """Refuse a model that gives other scores than those of the head, which has an output for each class by now.

    Raises:
        SurgeryError: it does, so that a fresh head would change nothing.
    """
    given, wanted = tried(model, examples).shape[1], len(examples.classes)
    if given != wanted:
        raise SurgeryError(
            f"{head!r} was made to give {wanted} scores, and the model gives {given}: they come from elsewhere",
            hint="let the forward of the model give the scores of its last layer, first of what it gives",
        )


def few(examples: Examples) -> Examples:
    """The first two examples, and those with the largest and the smallest of each whole number among the inputs."""
    places = {0, min(1, len(examples) - 1)}
    for tensor in examples.tensors.values():
        if not tensor.is_floating_point() and not tensor.is_complex():
            flat = tensor.reshape(len(tensor), -1).long()
            places |= {int(flat.amax(dim=1).argmax()), int(flat.amin(dim=1).argmin())}
    return examples.take(torch.tensor(sorted(places)))


def on_device_of(model: nn.Module, inputs: Any) -> Any:
    """Inputs where the model is, if all of it is in one place."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    place = devices.pop() if len(devices) == 1 else None
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    return mapped(inputs, lambda tensor: tensor.clone() if place is None else tensor.to(place, copy=True))


def first_layer(model: nn.Module, example: Any = None) -> Stem | None:
    """The first layer and what it takes, by what is called if an example is given; None where nothing is learned."""
    try:
        name = stem_of(model, example)
    except SurgeryError:
        return None
    layer = module_at(model, name)
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return Stem(name, type(layer).__name__)
    if isinstance(layer, CONVS):
        return Stem(name, type(layer).__name__, "channels", layer.in_channels)
    if isinstance(layer, nn.Linear):
        return Stem(name, type(layer).__name__, "features", layer.in_features)
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return Stem(name, type(layer).__name__, "tokens", layer.num_embeddings)
    return Stem(name, type(layer).__name__)


def _whole(value: Any) -> int:
    """A whole number as int; 0 for anything else."""
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool) else 0


def _unknown(source: Any, parts: list[Dataset]) -> DataError:
    hint = f"give {'; '.join(part.wants for part in parts)}"
    if isinstance(source, (str, os.PathLike)):
        there = os.path.exists(os.path.expanduser(os.fspath(source)))  # noqa: PTH110, PTH111 - any text may come here
        what = "is no data set of a known kind" if there else "is neither a file or folder nor a name of a data set"
        return DataError(f"{os.fspath(source)!r} {what}", hint=hint)
    if isinstance(source, torch.Tensor) or getattr(source, "ndim", None) is not None:
        return DataError("these are inputs without labels", hint="give (inputs, labels)")
    return DataError(f"examples cannot be read from a {type(source).__name__}", hint=hint)


def check_form(examples: Examples) -> None:
    """Refuse what are no examples: there are none, or labels that are not whole, out of range, or not one an input.

    Raises:
        DataError: with what is wrong.
    """
    labels, classes, tensors = examples.labels, examples.classes, examples.tensors
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.dtype is not torch.int64:
        found = TensorSpec(labels.dtype, tuple(labels.shape)) if isinstance(labels, torch.Tensor) else type(labels)
        raise DataError(f"the labels are {found}, not int64, one an example", hint="read them with tk.read_examples")
    if not tensors:
        raise DataError("the examples have no inputs", hint="give a tensor, or tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or len(tensor) != len(labels):
            count = len(tensor) if isinstance(tensor, torch.Tensor) and tensor.dim() else "no"
            raise DataError(
                f"{_called(name)} have {count} rows, and there are {len(labels)} labels",
                hint="give one label for each row of the inputs",
            )
    if not len(labels):
        raise DataError("there are no examples", hint="look whether the data set is empty, or a limit is 0")
    wrong = (labels < 0) | (labels >= len(classes))
    if bool(wrong.any()):
        place = int(wrong.int().argmax())
        raise DataError(
            f"the label of example {place} is {int(labels[place])}, and there are {len(classes)} classes",
            hint=f"labels run from 0 to {len(classes) - 1}" if classes else "name the classes",
        )


def _check_classes(examples: Examples) -> None:
    labels, classes, counts = examples.labels, examples.classes, examples.counts
    if sum(count > 0 for count in counts) < 2:
        only = classes[int(labels[0])]
        raise DataError(
            f"all {len(labels):,} examples are of one class, {only!r}", hint="give examples of two classes or more"
        )
    few = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if few:
        number = min(counts)
        told = f"{len(few)} classes have fewer than two examples: {shorten(map(repr, few), 5)}"
        if len(few) == 1:
            told = f"the class {few[0]!r} has {'one example' if number else 'no example'}"
        raise DataError(
            f"{told}, so it cannot be both trained on and tested" if len(few) == 1 else told,
            hint="give at least two examples of each class, or leave such classes out",
        )


def _check_values(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_meta:
        kind = "on the meta device, without values" if tensor.is_meta else f"of layout {tensor.layout}"
        raise DataError(f"{_called(name)} are {kind}", hint="give dense tensors")
    if not tensor[:1].numel():
        raise DataError(f"{_called(name)} have shape {list(tensor.shape)}: nothing in each", hint="look at the data")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    if tensor.is_floating_point() and tensor.itemsize == 1:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{_called(name)} are {kind}, which layers do not take", hint="make them float32")
    finite = [torch.isfinite(some).reshape(len(some), -1).all(dim=1) for some in tensor.split(256)]
    wrong = (~torch.cat(finite)).nonzero().flatten()
    if len(wrong):
        kind = "NaN" if bool(tensor[wrong[0]].isnan().any()) else "an infinite number"
        raise DataError(
            f"example {int(wrong[0])} has {kind} in {_called(name)}; {len(wrong):,} of {len(tensor):,} have such",
            hint="leave them out, or fill what is missing",
        )


def _called(name: str) -> str:
    return f"the inputs {name!r}" if name else "the inputs"


def _takes(model: nn.Module, inputs: Any) -> str:
    stem = first_layer(model)
    told = []
    if stem is not None:
        dtype = next((parameter.dtype for _, parameter in named_parameters(model)), None)
        amount = f"{stem.count:,} {stem.what} " if stem.what else "what goes "
        told.append(f"{amount}into {stem.kind} {stem.name or '(itself)'}, in {str(dtype).removeprefix('torch.')}")
    if isinstance(inputs, Mapping):
        told.append(f"the arguments {', '.join(_arguments(model))}")
    return " and ".join(told) or "something else"


def _gets(examples: Examples) -> str:
    told = examples.shape
    ranges = [
        f"{name or 'the numbers'} from {int(tensor.min())} to {int(tensor.max())}"
        for name, tensor in examples.tensors.items()
        if not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel()
    ]
    return f"{told} each" + (f", {', '.join(ranges)}" if ranges else "")


def _arguments(model: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(unwrapped(model).forward).parameters)
    except (TypeError, ValueError):
        return []


def _remedy(model: nn.Module, examples: Examples) -> str:
    stem, tensors = first_layer(model), examples.tensors
    first = next(iter(tensors.values()))
    if isinstance(examples.inputs, Mapping):
        taken = _arguments(model)
        unknown = [name for name in tensors if taken and name not in taken]
        if unknown:
            return f"leave out {shorten(unknown)}, or name them as the arguments of forward"
    if stem is not None and stem.what == "tokens":
        return f"give token numbers below {stem.count:,}, made by the tokenizer of the model"
    if stem is not None and stem.kind.endswith("Conv2d") and first.dim() == 3:
        return "give images as [n, channels, height, width]: inputs[:, None] adds one channel"
    if stem is not None and stem.what == "channels" and first.dim() > 2 and first.shape[1] != stem.count:
        return f"tk.surgery.adapt_input(model, channels={first.shape[1]}), or bring the inputs to {stem.count} channels"
    wrong = next((one.dtype for _, one in named_parameters(model) if one.is_floating_point()), first.dtype)
    if first.is_floating_point() and wrong is not first.dtype:
        return f"bring both to one dtype, e.g. model.to({first.dtype})"
    return "bring the inputs to the shape that the model was made for, e.g. with size="
