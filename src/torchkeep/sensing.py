"""Whether the pretrained weights of a model will help on new data: seen in one pass, measured by several signals."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .core.live import module_at, named_modules, unwrapped
from .core.names import nearest
from .core.registry import make_part
from .core.similarity import Glimpse, Norm, Seen, Sense, Similarity, compact, even, verdict_of
from .core.table import shorten
from .core.threads import one_at_a_time
from .core.transfer import Examples
from .errors import DataError, SelectorError, SurgeryError
from .freezing import NORMS, View
from .gathering import check_form, copied
from .signals import SIGNALS
from .surgery import head_of, reinitialise
from .surgery.trial import kept_generators

_BLOCKS, _BATCH, _COPIES, _EXAMPLES = 8, 64, 3, 600
_LAST_AXIS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)  # where their channels are
_INPUT = "input"


def similarity(
    model: nn.Module,
    examples: Examples,
    *,
    blocks: Iterable[str] | None = None,
    old_labels: Sequence[str] | None = None,
    seed: int = 0,
    signals: Iterable[str | Sense] | None = None,
) -> Similarity:
    """Whether training from the weights of a model will do better than from fresh ones, as far as one pass can tell.

    The examples go through the model once, and once through each of three copies with fresh weights; nothing is
    trained. The model is not changed. Of many examples 600 are taken.

    Args:
        model: with its pretrained weights and its old head, whose classes need not be those of the examples.
        examples: as the model takes them, on any device.
        blocks: modules whose outputs are looked at; None takes up to eight steps from the stem to the head.
        old_labels: names of the classes of the old head by index. Where they are those of the examples, it is also
            measured what the model gets right as it is. Pass `examples.classes` if they are the same.
        seed: of the fresh weights, the examples taken and the folds: the same seed gives the same figures.
        signals: names or instances of what to measure; None for all.

    Raises:
        DataError: there are fewer than two classes or six examples, inputs are not finite, or the model does not take
            them.
        SelectorError: the model has no module of a name in `blocks`.
        ValueError: there is no signal of a name.
    """
    measures = [make_part(SIGNALS, one, "signal") for one in (SIGNALS if signals is None else signals)]
    seen, notes = see(model, examples, blocks=blocks, old_labels=old_labels, seed=seed)
    with one_at_a_time():
        found = [signal for one in measures if (signal := one.measure(seen)) is not None]
    return Similarity(verdict_of(found), tuple(found), tuple(notes))


def see(
    model: nn.Module,
    examples: Examples,
    *,
    blocks: Iterable[str] | None = None,
    old_labels: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Seen, list[str]]:
    """What signals are measured on, and what was changed on the way; arguments as for `similarity`."""
    _check(model, examples)
    notes: list[str] = []
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    if len(examples) > _EXAMPLES:
        notes.append(f"{_EXAMPLES} of {len(examples):,} examples were looked at")
    taken = examples.take(order[:_EXAMPLES])
    with kept_generators(model), torch.no_grad():
        made = copied(unwrapped(model)).eval()
        watch = _Watch(made, _taps(made, taken, blocks, notes))
        features, answers, norms = watch.run(taken)
        if not features:
            raise DataError("no block of the model gives features, one row an example", hint="name some with blocks=")
        copies = [
            run for number in range(_COPIES) if (run := _fresh(made, watch, taken, _COPIES * seed + number, notes))
        ]
    odd = [name for name, rows in features.items() if not rows.isfinite().all()]
    if odd:
        notes.append(f"features of {shorten(odd, 3)} are not finite in places, and count as 0 there")
    every = [name for name in features if all(name in one for one, _ in copies)]
    with one_at_a_time():
        glimpses = [
            Glimpse(tuple(compact(one[name]) for name in every), said) for one, said in ((features, answers), *copies)
        ]
    labels = taken.labels.detach().cpu()
    seen = Seen(
        labels,
        taken.classes,
        tuple(every),
        glimpses[0],
        tuple(glimpses[1:]),
        tuple(() if old_labels is None else map(str, old_labels)),
        norms,
        seed,
    )
    return seen, notes


def _check(model: nn.Module, examples: Examples) -> None:
    if not isinstance(examples, Examples):
        raise DataError(f"these are a {type(examples).__name__}, not Examples", hint="read them with tk.read_examples")
    check_form(examples)
    if len(examples) < 6 or len(examples.labels.unique()) < 2:
        raise DataError(
            f"{len(examples)} examples of {len(examples.labels.unique())} classes say nothing of similarity",
            hint="give six examples or more, of two classes or more",
        )
    empty = [name for name, tensor in model.named_parameters() if tensor.device.type == "meta"]
    if empty:
        raise DataError(f"{shorten(empty, 3)} are on the meta device and have no values", hint="load weights first")
    for name, tensor in examples.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(
                f"{name or 'the inputs'} have values that are no finite numbers", hint="replace them before asking"
            )


class _Tap:
    """A place in the network where features are taken: what enters a module, or what comes out of it."""

    def __init__(self, name: str, path: str, *, entering: bool) -> None:
        self.name, self.path, self.entering = name, path, entering


def _taps(model: nn.Module, examples: Examples, blocks: Iterable[str] | None, notes: list[str]) -> list[_Tap]:
    """Where to look: before each step of the network and before its head, or after the blocks that are named."""
    try:
        head = head_of(model, next(examples.batches(2))[0])
    except SurgeryError as error:
        head = ""
        notes.append(f"the last block is not what the head reads: {error}")
    last = [_Tap("" if blocks is None else f"before {head}", head, entering=True)] if head else []
    if blocks is not None:
        known = {path for path, _ in named_modules(model)}
        given = [blocks] if isinstance(blocks, str) else list(blocks)
        for name in given:
            if name not in known:
                close = ", ".join(map(repr, nearest(name, known)))
                raise SelectorError(
                    f"the model has no block {name!r}", hint=f"the nearest are {close}" if close else ""
                )
        return [*(_Tap(name, name, entering=False) for name in given), *last]
    paths = [path for step in View(model).steps for path in _listed(step[0], module_at(model, step[0]))]
    inner = [path for path in paths if path != head]
    return [*(_Tap("", path, entering=True) for path in inner), *last]


def _listed(path: str, module: nn.Module) -> Iterator[str]:
    """The layers with parameters that a plain list of layers has, without normalisation; the path itself otherwise."""
    if type(module) is not nn.Sequential:
        yield path
        return
    for key, child in module.named_children():
        inner = unwrapped(child)
        if not isinstance(inner, NORMS) and any(True for _ in inner.parameters()):
            yield from _listed(f"{path}.{key}" if path else key, inner)


class _Watch:
    """Looks at a network, or at a copy of it, while examples pass."""

    def __init__(self, model: nn.Module, taps: list[_Tap]) -> None:
        self._model, self._taps = model, taps
        self._chosen = False
        self._batch = 0
        self._mask: torch.Tensor | None = None
        self._now: dict[_Tap, torch.Tensor | None] = {}
        self._sums: dict[str, torch.Tensor] = {}

    def run(self, examples: Examples) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, tuple[Norm, ...]]:
        """Features by name in the order of the forward, answers of the head, and what normalisation layers got."""
        with ExitStack() as hooks:
            for path, module in named_modules(self._model):
                if isinstance(module, _BatchNorm) and module.running_mean is not None:
                    hooks.callback(module.register_forward_pre_hook(self._sum(path)).remove)
            features, answers = self._pass(self._model, examples)
        modules = dict(named_modules(self._model))
        norms = tuple(_norm(path, modules[path], sums) for path, sums in self._sums.items())
        return features, answers, norms

    def again(self, model: nn.Module, examples: Examples) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The same of a copy, at the same places."""
        return self._pass(model, examples)

    def _pass(self, model: nn.Module, examples: Examples) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        found: dict[str, list[torch.Tensor]] = {}
        said: list[torch.Tensor | None] = []
        first = next(model.parameters(), torch.empty(0))
        with ExitStack() as hooks:
            for tap in self._taps:
                self._hang(model, tap, hooks)
            for places in torch.arange(len(examples)).tensor_split(max(1, round(len(examples) / _BATCH))):
                part = examples.take(places).to(first.device)
                self._batch, self._now = len(places), {}
                self._mask = part.tensors.get("attention_mask")
                said.append(_answers(_given(model, part), len(places)))
                if not self._chosen:
                    self._choose()
                for tap in self._taps:
                    if (rows := self._now.get(tap)) is not None:
                        found.setdefault(tap.name, []).append(rows)
        whole = {name: torch.cat(rows) for name, rows in found.items()}
        answers = [one for one in said if one is not None]
        full = len(answers) == len(said) and len({one.shape[1] for one in answers}) == 1
        return whole, torch.cat(answers) if full else None

    def _choose(self) -> None:
        """After the first batch: give the places their order and names, and keep a few, evenly taken."""
        before = _INPUT
        for tap in self._now:
            if not tap.name:
                tap.name, before = before, tap.path
        self._taps = even([tap for tap, rows in self._now.items() if rows is not None], _BLOCKS)
        self._chosen = True

    def _hang(self, model: nn.Module, tap: _Tap, hooks: ExitStack) -> None:
        module = module_at(model, tap.path)
        leaves = [one for one in module.modules() if any(True for _ in one.parameters(recurse=False))]
        leaf = (leaves[0] if tap.entering else leaves[-1]) if leaves else module
        last = isinstance(leaf, _LAST_AXIS)

        def keep(value: Any) -> None:
            self._now.pop(tap, None)  # the last call counts, and its place in the order
            self._now[tap] = self._pooled(_tensor_in(value), last=last)

        if tap.entering:
            handle = module.register_forward_pre_hook(lambda _, args, kwargs: keep((args, kwargs)), with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda _, args, output: keep(output))
        hooks.callback(handle.remove)

    def _pooled(self, given: torch.Tensor | None, *, last: bool) -> torch.Tensor | None:
        """One row an example: means over all axes but those of the examples and of the channels."""
        if given is None or given.dim() < 2 or not given.is_floating_point():
            return None
        count = self._batch
        if given.shape[0] != count:
            if given.dim() > 2 and given.shape[1] == count:
                given = given.transpose(0, 1)
            elif given.shape[0] % count == 0 and given.shape[0]:
                given = given.unflatten(0, (count, -1))
                last = last or given.dim() == 3
            else:
                return None
        rows = given.double()
        if rows.dim() > 2:
            mask = self._mask
            rows = rows.flatten(1, -2) if last else rows.flatten(2).transpose(1, 2)
            if isinstance(mask, torch.Tensor) and mask.shape == rows.shape[:2]:
                weights = mask.to(rows.dtype)[..., None]
                rows = (rows * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
            else:
                rows = rows.mean(dim=1)
        return rows.cpu() if rows.shape[1] else None

    def _sum(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            given = args[0].detach().double()
            halves = [half.transpose(0, 1).flatten(1).cpu() for half in given.tensor_split(2)]
            sums = torch.stack(
                [
                    torch.stack([torch.full_like(one[:, 0], one.shape[1]), one.sum(dim=1), one.square().sum(dim=1)])
                    for one in halves
                    if one.shape[1]
                ]
            )
            if len(sums) == 2:
                self._sums[path] = self._sums.get(path, torch.zeros(())) + sums

        return hook


def _norm(path: str, module: Any, sums: torch.Tensor) -> Norm:
    count, total, squares = sums.unbind(dim=1)
    mean = total / count
    halves = torch.stack([mean, (squares / count - mean.square()).clamp_min(0)], dim=1)
    return Norm(path, module.running_mean.detach().double().cpu(), module.running_var.detach().double().cpu(), halves)


def _fresh(
    model: nn.Module, watch: _Watch, examples: Examples, seed: int, notes: list[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None] | None:
    """What a copy with fresh weights gives; its batch normalisation goes by the batch, as it would in training."""
    made = copy.deepcopy(model)
    try:
        change = reinitialise(made, seed=seed)
    except SurgeryError as error:
        notes[:] = list(dict.fromkeys([*notes, f"there is nothing to compare with: {error}"]))
        return None
    if change.note:
        notes[:] = list(dict.fromkeys([*notes, f"in the copies {change.note}"]))
    for module in made.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
    return watch.again(made, examples)


def _given(model: nn.Module, examples: Examples) -> Any:
    inputs = examples.inputs
    try:
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    except Exception as error:  # whatever a forward may do
        named = examples.tensors.items()
        shapes = ", ".join(f"{name or 'the inputs'} {list(tensor.shape)} {tensor.dtype}" for name, tensor in named)
        raise DataError(
            f"the model cannot take {shapes}: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            hint="bring the examples to the size, channels and type that the model takes",
        ) from error


def _answers(given: Any, count: int) -> torch.Tensor | None:
    """Scores, one row an example; None for anything else."""
    found = _tensor_in(getattr(given, "logits", given))
    if found is None or found.dim() != 2 or len(found) != count or found.shape[1] < 2:
        return None
    return torch.nan_to_num(found.detach().double().cpu(), 0.0, 0.0, 0.0)


def _tensor_in(value: Any) -> torch.Tensor | None:
    """The first tensor in a nest of tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((found for part in parts if (found := _tensor_in(part)) is not None), None)
