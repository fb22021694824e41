"""Comparing what a model computes with what it should."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from ..errors import LoadError, OutputsDifferError
from ..running.randomness import random_state, set_random_state


def run(model: nn.Module, example: Any) -> Any:
    """What a model computes in eval mode without gradients; its modes and all generators are afterwards as before.

    Args:
        model: any module.
        example: its input; a tuple is its positional, a dict its named arguments.
    """
    arguments, named = (), {}
    example = _copied(example)
    if isinstance(example, Mapping):
        named = dict(example)
    else:
        arguments = tuple(example) if isinstance(example, tuple) else (example,)
    with quietly(model), torch.no_grad():
        return model(*arguments, **named)


def _copied(example: Any) -> Any:
    """The same with tensors of its own: a model may write into its input."""
    if isinstance(example, torch.Tensor):
        return example.detach().clone()
    if type(example) in {list, tuple}:
        return type(example)(map(_copied, example))
    return {key: _copied(value) for key, value in example.items()} if type(example) is dict else example


@contextlib.contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """All of a model in eval mode for a while; then its modes and all generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    generators = random_state()
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_random_state(generators)


def reference_outputs(reference: Any, example: Any, title: str) -> Any:
    """The outputs that are meant: those that are given, or what a model makes of the example.

    Raises:
        LoadError: it fails.
    """
    if not isinstance(reference, nn.Module):
        return reference
    try:
        return run(reference, example)
    except Exception as error:
        raise LoadError(
            f"the reference cannot be run on check=: {type(error).__name__}: {error}",
            hint=f"a tuple is its positional, a dict its named arguments; {title} was not loaded",
        ) from error


def compared(model: nn.Module, example: Any, expected: Any, tolerance: float) -> float:
    """The largest absolute difference between what a model computes and what is expected.

    Raises:
        OutputsDifferError: it is above the tolerance, or the outputs are not alike.
    """
    try:
        got = run(model, example)
    except Exception as error:
        raise OutputsDifferError(
            f"the model was loaded and cannot be run on check=: {type(error).__name__}: {error}",
            hint="the model holds the new values",
        ) from error
    worst, place = 0.0, ""
    first = ""
    for where, difference in differences(got, expected, ""):
        if difference > tolerance and not first:
            first = where or "the output"
        if difference > worst:
            worst, place = difference, where or "the output"
    if first:
        most = f"by {worst:.3g} at most, in {place}" if math.isfinite(worst) else f"altogether, in {place}"
        raise OutputsDifferError(
            f"the model was loaded and its outputs differ from the reference {most}; first in {first}",
            difference=worst,
            place=first,
            hint=f"the model holds the new values; differences up to tolerance={tolerance:g} are accepted",
        )
    return worst


def differences(got: Any, expected: Any, where: str) -> Iterator[tuple[str, float]]:
    """Each place of nested outputs and the largest absolute difference there; infinite where they are not alike."""
    if isinstance(got, torch.Tensor) and isinstance(expected, torch.Tensor):
        yield where, _distance(got, expected)
    elif isinstance(got, Mapping) and isinstance(expected, Mapping):
        for key in dict.fromkeys((*expected, *got)):
            inside = f"{where}[{key!r}]"
            if key in got and key in expected:
                yield from differences(got[key], expected[key], inside)
            else:
                yield inside, math.inf
    elif isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            yield where, math.inf
        for place, (one, other) in enumerate(zip(got, expected, strict=False)):
            yield from differences(one, other, f"{where}[{place}]")
    elif is_dataclass(got) and type(got) is type(expected):
        for field in fields(got):
            yield from differences(getattr(got, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    elif _is_number(got) and _is_number(expected):
        yield where, _distance(torch.tensor(got), torch.tensor(expected))
    elif type(got) is not type(expected) or not _equal(got, expected):
        yield where, math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equal(one: Any, other: Any) -> bool:
    """Whether two other things are alike, as far as they can be compared at all."""
    kind: Any = type(one)
    try:
        return kind.__eq__ is object.__eq__ or bool(one == other)
    except (RuntimeError, ValueError, TypeError):
        return False


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    if not one.numel():
        return 0.0
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    a, b = one.detach().to("cpu", wide), other.detach().to("cpu", wide)
    same = (a == b) | (a.isnan() & b.isnan())
    distance = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(distance.max())
