"""Which of the names in a history is what: `val/loss_epoch`, `eval_loss`, `Loss/valid` are the validation loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..errors import SelectorError
from .metrics import mode_of
from .names import nearest
from .table import shorten

ROLES = ("train_loss", "val_loss", "train_metric", "val_metric", "rate", "epoch", "step")

_SETS = {
    "train": "train training tr trn",
    "val": "val valid validation eval evaluation dev heldout holdout",
    "test": "test testing tst",
}
_SET_OF = {word: held for held, words in _SETS.items() for word in words.split()}
_PER = {"epoch": "epoch", "step": "step", "batch": "step", "iter": "step"}
_NOISE = {"mean", "avg", "average", "per", "metric", "metrics", "scalar", "scalars", "log", "logs"}
_SAME = {"acc": "accuracy", "acc1": "accuracy", "acc@1": "accuracy", "top1": "accuracy", "prec1": "accuracy"}
_FAMILIES = {"sparse", "categorical", "binary", "multiclass", "top", "1", "score"}  # of accuracy, f1 and the like
_GLUED = re.compile(
    r"(train|training|tr|val|valid|validation|eval|dev|test)"
    r"(loss|losses|acc|accuracy|error|err|f1|auc|mse|mae|rmse|ppl|perplexity)"
)
_EPOCHS = {"epoch", "epochs", "epoch number", "epoch num", "epoch idx", "epoch index", "current epoch", "train epoch"}
_EPOCHS |= {"trainer epoch", "ep"}
_STEPS = {"step", "steps", "global step", "global steps", "iteration", "iterations", "iter", "iters", "it", "update"}
_STEPS |= {"updates", "train step", "train global step", "trainer global step", "num updates", "trainer step"}
_RATES = {"lr", "lrs"}
_OBJECTIVES = {"nll", "bce", "ce", "xent", "crossentropy", "logloss", "objective", "cost", "elbo"}
_DISTANCES = {"mse", "mae", "rmse", "msle", "l1", "l2", "perplexity", "ppl"}


@dataclass(frozen=True, slots=True)
class Name:
    """What the name of a metric says.

    Attributes:
        name: as it was logged.
        held: the set it was measured on: `train`, `val`, `test`, or empty where the name does not say.
        base: what was measured, in words, e.g. `("loss",)`.
        per: `epoch` or `step` where the name says over what it was averaged.
    """

    name: str
    held: str
    base: tuple[str, ...]
    per: str


@dataclass(frozen=True)
class Choice:
    """Which name has which role, and what had to be taken for something."""

    roles: Mapping[str, str]
    notes: tuple[str, ...] = ()


def words_of(name: str) -> list[str]:
    """A name in lower-case words.

    >>> words_of("valLoss/dataloader_idx_0"), words_of("trainacc")
    (['val', 'loss'], ['train', 'acc'])
    """
    name = re.sub(r"dataloader_idx_0$", "", name)  # the first validation loader of several
    name = re.sub(r"(?<=[a-z]{2})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", " ", name)
    words = [word for word in re.split(r"[^a-z0-9@]+", name.lower()) if word]
    glued = {word: found.groups() for word in words if (found := _GLUED.fullmatch(word))}
    return [part for word in words for part in glued.get(word, (word,))]


def read_name(name: str) -> Name:
    """What a name says of its metric; the last word for a set counts: `train/val_loss` is of validation."""
    words = words_of(name)
    held = next((_SET_OF[word] for word in reversed(words) if word in _SET_OF), "")
    per = next((_PER[word] for word in reversed(words) if word in _PER), "")
    left = [word for word in words if word not in _SET_OF and word not in _PER]
    base = [word for word in left if word not in _NOISE] or left
    base = ["loss" if word == "losses" else _SAME.get(word, word) for word in base]
    return Name(name, held, tuple(dict.fromkeys(base)), per)


def is_axis(name: str) -> str:
    """`epoch` or `step` for a name that counts one of these, else empty."""
    said = " ".join(words_of(name))
    return "epoch" if said in _EPOCHS else "step" if said in _STEPS else ""


def is_rate(name: str) -> bool:
    """Whether a name is of a learning rate: `lr`, `lr-AdamW/pg1`, `train/learning_rate`."""
    words = words_of(name)
    return bool(_RATES & set(words) or re.search(r"\blr[0-9]$|learning ?rate", " ".join(words)))


def is_known(name: str) -> bool:
    """Whether a name says of itself what it is."""
    if is_axis(name) or is_rate(name):
        return True
    base = read_name(name).base
    return _loss_rank(base) is not None or _metric_rank(base) is not None


def check_names(names: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """What the caller says is what, checked against the names there are.

    Raises:
        SelectorError: there is no such role, or no such name; the hint has the nearest.
    """
    known = list(known)
    for role, name in names.items():
        if role not in ROLES:
            close = nearest(role, ROLES, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SelectorError(f"there is no role {role!r}", hint=f"{hint}roles are {', '.join(ROLES)}")
        if name not in known:
            raise SelectorError(f"names: there is no {name!r} for {role} in the history", hint=_there_are(name, known))
    return dict(names)


def choose(counts: Mapping[str, int], *, names: Mapping[str, str], metric: str | None) -> Choice:
    """Give each role its name.

    Args:
        counts: name -> how many numbers it has, in the order in which the names came.
        names: role -> name, where the caller said so; checked.
        metric: what `train_metric` and `val_metric` are to be, e.g. `accuracy`; if None, accuracy where there is one,
            else another measure of which the name says what is good.

    Raises:
        SelectorError: nothing is called like the metric.
    """
    roles, notes = dict(names), []
    free = [name for name in counts if name not in set(names.values())]
    for axis in ("epoch", "step"):
        found = [name for name in free if is_axis(name) == axis]
        if found and axis not in roles:
            roles[axis] = max(found, key=lambda name: (counts[name], -free.index(name)))
    rates = [name for name in free if is_rate(name)]
    if rates and "rate" not in roles:
        roles["rate"] = rates[0]
    read = [read_name(name) for name in free if not is_axis(name) and not is_rate(name)]
    losses = _ranked(read, _loss_rank)
    if not {"train_loss", "val_loss"} <= roles.keys():
        notes += _fill(roles, losses, "loss", counts, train_said=None)
    train_said = "train_loss" in roles and read_name(roles["train_loss"]).held == "train" and "val_loss" in roles
    if not {"train_metric", "val_metric"} <= roles.keys():
        taken = {read_name(roles[role]).base for role in ("train_loss", "val_loss") if role in roles}
        if metric is not None:
            ranked = _asked(read, metric, counts)
        else:
            ranked = [one for one in _ranked(read, _metric_rank) if one.base not in taken]
        notes += _fill(roles, ranked, "metric", counts, train_said=train_said)
    return Choice(roles, tuple(notes))


def _there_are(name: str, known: list[str]) -> str:
    close = nearest(name, known)
    return f"the nearest are {', '.join(map(repr, close))}" if close else f"there are {shorten(known) or 'none'}"


def _loss_rank(base: tuple[str, ...]) -> int | None:
    """How surely this is the loss that is minimised; less is surer."""
    if base == ("loss",):
        return 0
    if "loss" in base:
        return 1 if {"total", "main", "overall"} & set(base) else 2
    if set(base) & _OBJECTIVES or base[-2:] == ("cross", "entropy"):
        return 3
    return 4 if set(base) & _DISTANCES else None


def _metric_rank(base: tuple[str, ...]) -> int | None:
    """How much this is the metric that counts; less is more."""
    kind = set(base)
    if not kind or "loss" in kind:
        return None
    if "accuracy" in kind:
        return 0 if kind <= {"accuracy"} | _FAMILIES else 2
    try:
        mode = mode_of("_".join(base))
    except ValueError:
        return None
    if mode == "max":
        return 1 if kind & {"f1", "auc", "auroc", "r2", "iou", "miou", "dice"} else 3
    return 4


def _ranked(read: list[Name], rank: Callable[[tuple[str, ...]], int | None]) -> list[Name]:
    """The names that have a rank, those of one base together, the best base first.

    Of losses the rank counts before on which sets there is one; a metric counts where it is on the validation set.
    """
    ranks = {one.base: rank(one.base) for one in read}
    measured = {one.base for one in read if one.held in {"val", "test"}}
    trained = {one.base for one in read if one.held in {"train", ""}}
    unlikely = {one.base for one in read if one.held == "test"} - {one.base for one in read if one.held != "test"}
    if rank is _metric_rank:
        unlikely |= ranks.keys() - measured
    order = {base: place for place, base in reversed(list(enumerate(one.base for one in read)))}
    chosen = [one for one in read if ranks[one.base] is not None]
    return sorted(
        chosen,
        key=lambda one: (
            one.base in unlikely,
            ranks[one.base],
            one.base not in measured,
            one.base not in trained,
            order[one.base],
        ),
    )


def _asked(read: list[Name], metric: str, counts: Mapping[str, int]) -> list[Name]:
    wanted = read_name(metric).base
    exact = [one for one in read if one.name == metric or one.base == wanted]
    found = exact or [one for one in read if set(wanted) <= set(one.base)]
    if not found or not wanted:
        raise SelectorError(
            f"there is no metric {metric!r} in the history", hint=_there_are(metric, [one.name for one in read])
        )
    best = found[0].base
    return [one for one in found if one.base == best] + [one for one in found if one.base != best]


def _fill(
    roles: dict[str, str], ranked: list[Name], what: str, counts: Mapping[str, int], *, train_said: bool | None
) -> list[str]:
    """Give the two roles of a loss or metric the names of the first base; notes where another could be meant."""
    if not ranked:
        return []
    train, val = f"train_{what}", f"val_{what}"
    given = [read_name(roles[role]).base for role in (train, val) if role in roles]
    notes: list[str] = []
    for base in [*given, *([] if given and what == "metric" else [ranked[0].base])]:
        found = _pair([one for one in ranked if one.base == base], counts, notes, train_said=train_said)
        for role, name in zip((train, val), found, strict=True):
            if name is not None and role not in roles and name not in roles.values():
                roles[role] = name
    if not given and what == "loss" and _loss_rank(ranked[0].base) != 0:
        others = dict.fromkeys(" ".join(one.base) for one in ranked if one.base != ranked[0].base)
        shown = ", ".join(repr(roles[role]) for role in (train, val) if role in roles)
        besides = f"; there are also {shorten(others, 4)}" if others else ""
        notes.append(f"{shown} is taken for the loss{besides}; names= says otherwise")
    return notes


def _pair(
    group: list[Name], counts: Mapping[str, int], notes: list[str], *, train_said: bool | None
) -> tuple[str | None, str | None]:
    """Of names for one thing, that on the training set and that on the validation set."""
    on_train, bare, on_val, on_test = (
        _longest([one for one in group if one.held == held], counts, notes) for held in ("train", "", "val", "test")
    )
    if on_val is None and on_test is not None:
        on_val = on_test
        notes.append(f"{on_val!r} is taken for validation: there is none of another name")
    if bare is not None and on_train is not None and on_val is None and counts[bare] * 2 >= counts[on_train]:
        notes.append(f"{bare!r} is taken for validation, because {on_train!r} says it is of training")
        return on_train, bare
    if bare is not None and on_train is None and on_val is None and train_said:
        notes.append(f"{bare!r} is taken for validation, because the losses say which is which and it does not")
        return None, bare
    if bare is not None and (on_train is None or counts[on_train] * 2 < counts[bare]):
        on_train = bare
    return on_train, on_val


def _longest(found: list[Name], counts: Mapping[str, int], notes: list[str]) -> str | None:
    """Of names for the same thing the one per epoch, else the one with the most numbers, else the first."""
    if not found:
        return None
    best = max(found, key=lambda one: (one.per == "epoch", one.per != "step", counts[one.name]))
    alike = [one.name for one in found if one.per == best.per and one is not best]
    if alike:
        notes.append(f"{best.name!r} and {shorten(map(repr, alike), 4)} say the same; the first is taken")
    return best.name
