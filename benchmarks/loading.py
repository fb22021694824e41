"""What comes out of ugly checkpoints: torchkeep beside torch, timm, transformers and MONAI.

    python -m benchmarks.loading [--write docs/benchmarks-loading.md]

Every loader gets the same files, and each time a model of its own with random values everywhere. Afterwards each element
of the model is compared with what it should be, which is known, since the files are made here. A peer that is not
installed stands in the table as such (benchmarks/requirements-peers.txt has them).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import math
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import torchkeep as tk

from .loading_cases import Case, Net, cases, randomised

# -- loaders: each loads into the model that it gets, and returns what it said; what it logs counts as well -------

Loader = Callable[[Case, Any, Path], Iterable[object]]


def by_torch(strict: bool) -> Loader:
    """torch's own way."""

    def load(case: Case, model: Any, path: Path) -> Iterable[object]:
        return model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=strict)  # type: ignore[no-any-return]

    return load


def by_timm(**options: Any) -> Loader:
    """timm's helper for checkpoints of training runs."""

    def load(case: Case, model: Any, path: Path) -> Iterable[object]:
        from timm.models import load_checkpoint

        return load_checkpoint(model, str(path), **options)  # type: ignore[no-any-return]

    return load


def by_timm_pretrained(case: Case, model: Any, path: Path) -> Iterable[object]:
    """timm's helper for published weights, told the model's first convolution, its head, and a filter."""
    from timm.models import load_pretrained

    classes = model.fc.out_features if isinstance(model, Net) else 10
    channels = model.stem.in_channels if isinstance(model, Net) else 3
    cfg = {"num_classes": classes, **case.cfg, "file": str(path)}
    load_pretrained(model, cfg, num_classes=classes, in_chans=channels, filter_fn=case.filter)
    return ()


def by_transformers(case: Case, model: Any, path: Path) -> Iterable[object]:
    """The same network as a model of transformers. What it initialises itself and names counts as not changed."""
    import transformers

    class Config(transformers.PretrainedConfig):  # type: ignore[misc]
        model_type = "ugly"

    class Theirs(transformers.PreTrainedModel):  # type: ignore[misc]
        config_class = Config
        base_model_prefix = case.base or "model"

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            made = case.make()
            for name, child in made.named_children():
                self.add_module(name, child)
            for name, parameter in made.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            self.post_init()

    with tempfile.TemporaryDirectory() as name:
        Config().save_pretrained(name)
        shutil.copy(path, Path(name) / "pytorch_model.bin")
        got, info = Theirs.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
    told = {*info["missing_keys"], *(one if isinstance(one, str) else one[0] for one in info["mismatched_keys"])}
    model.load_state_dict({key: value for key, value in got.state_dict().items() if key not in told}, strict=False)
    return told


def by_monai(case: Case, model: Any, path: Path) -> Iterable[object]:
    """MONAI's helper, told the prefix where there is one."""
    from monai.networks.utils import copy_model_state

    state = torch.load(path, map_location="cpu", weights_only=True)
    return copy_model_state(model, state, dst_prefix=f"{case.base}." if case.base else "")[2]  # type: ignore[no-any-return]


def told_by(report: tk.LoadReport) -> Iterable[object]:
    """What is said in the report of torchkeep."""
    return [*report.missing, *report.mismatched, *report.adapted, *report.notes]


def by_torchkeep(case: Case, model: Any, path: Path) -> Iterable[object]:
    """Nothing but the model and the file."""
    return told_by(tk.load_into(model, path))


def by_advice(adapting: bool) -> Loader:
    """torchkeep, called again and again as the first advice in its error says, until it loads or has no other one."""

    def load(case: Case, model: Any, path: Path) -> Iterable[object]:
        options: dict[str, Any] = {"adapt": case.adapt} if adapting else {}
        for _ in range(4):
            try:
                return told_by(tk.load_into(model, path, **options))
            except tk.errors.TorchkeepError as error:
                advice = advised(str(error.hint))
                if not advice or advice.keys() <= options.keys():
                    raise
                options |= advice
        return told_by(tk.load_into(model, path, **options))

    return load


def advised(hint: str) -> dict[str, Any]:
    """The first option that a hint tells to give."""
    found = re.search(r"\b(allow|rules|match|adapt)=(\"[^\"]*\"|\[[^\]]*\]|\{[^}]*\})", hint)
    return {found[1]: eval(found[2], {"tk": tk})} if found else {}  # noqa: S307 - torchkeep's own words


LOADERS: dict[str, tuple[str, Loader]] = {
    "torch, strict": ("torch", by_torch(strict=True)),
    "torch, not strict": ("torch", by_torch(strict=False)),
    "timm `load_checkpoint`": ("timm", by_timm(strict=False)),
    "timm with `remap`": ("timm", by_timm(strict=False, remap=True)),
    "timm `load_pretrained`": ("timm", by_timm_pretrained),
    "transformers": ("transformers", by_transformers),
    "MONAI": ("monai", by_monai),
    "torchkeep": ("torchkeep", by_torchkeep),
    "torchkeep, as advised": ("torchkeep", by_advice(adapting=False)),
    "torchkeep, `adapt=`": ("torchkeep", by_advice(adapting=True)),
}


# -- judging ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one loader did with one checkpoint.

    Attributes:
        right, wrong, total: elements of the model that have their right values; that changed and have not; all.
        said: `raises`, `names` if it named every tensor that is not right all over, `some names`, `silent`; empty if
            there was nothing to say.
        words: all that it said, or its error.
    """

    right: int
    wrong: int
    total: int
    said: str
    words: str = ""

    def __str__(self) -> str:
        share = f"{math.floor(1000 * self.right / self.total) / 10:g}"
        wrong = f"**{self.wrong} wrong**" if self.wrong else ""
        return ", ".join(part for part in (share, wrong, self.said) if part)


@contextlib.contextmanager
def listening() -> Iterator[io.StringIO]:
    """Everything that is logged, warned of or printed."""
    heard = io.StringIO()
    handler, root = logging.StreamHandler(heard), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), warnings.catch_warnings():
            warnings.simplefilter("always")
            yield heard
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)


def tried(load: Loader, case: Case, path: Path) -> Outcome:
    """Let a loader load a checkpoint into a new model, and look at every element afterwards."""
    model = randomised(case.make(), 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with listening() as heard:
        try:
            words, raised = "\n".join(map(str, load(case, model, path))), False
        except Exception as error:  # whatever a loader raises is its outcome
            words, raised = f"{type(error).__name__}: {error}", True
    right = wrong = total = 0
    unlike = []
    for name, tensor in model.state_dict().items():
        true = torch.zeros(tensor.shape, dtype=torch.bool)
        for value in case.truth.get(name, ()):
            true |= torch.isclose(tensor.float(), value.float(), rtol=1e-5, atol=1e-6)
        right, total = right + int(true.sum()), total + tensor.numel()
        wrong += int((~true & (tensor != before[name])).sum())
        unlike += [] if bool(true.all()) else [name]
    words += "\n" + heard.getvalue()
    return Outcome(right, wrong, total, "raises" if raised else verdict(words, unlike, case.choice), words)


def verdict(words: str, unlike: list[str], choice: str) -> str:
    """How much of what should be said is in what was said."""
    heard = set(re.findall(r"[\w.]+", words))
    wanted = [name in heard for name in unlike if not name.endswith("num_batches_tracked")]
    if not wanted and choice:
        return "" if choice in words else "silent"
    return "" if not wanted else "names" if all(wanted) else "some names" if any(wanted) else "silent"


def installed(package: str) -> str:
    """The version of a package, or an empty text."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def usable(package: str) -> bool:
    """Whether a package can be imported. timm imports torchvision, whose operators on PyPI are not for a torch of CPUs."""
    if package == "timm" and installed("torchvision") and not KEPT:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if installed(package):
        importlib.import_module(package)
    return bool(installed(package))


KEPT: list[Any] = []  # a library of operators lives as long as its object


def page() -> str:
    """The table, and what it was made with."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases()):
            path = case.write(Path(folder) / f"{number}.pth")
            numels = {name: tensor.numel() for name, tensor in case.make().state_dict().items()}
            most = math.floor(1000 * sum(numels[name] for name in case.truth) / sum(numels.values())) / 10
            cells = [
                str(tried(load, case, path)) if usable(needs) else "not installed" for needs, load in LOADERS.values()
            ]
            rows.append(f"| {case.title} | {most:g} | {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    peers = dict.fromkeys(needs for needs, _ in LOADERS.values())
    versions = ", ".join(f"{name} {installed(name) or '(not installed)'}" for name in peers)
    head = [
        "# Ugly checkpoints",
        "",
        f"Written by `python -m benchmarks.loading`: Python {platform.python_version()}, {versions}.",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"| checkpoint | most | {' | '.join(LOADERS)} |",
        f"| --- | ---: |{' --- |' * len(LOADERS)}",
    ]
    return "\n".join([*head, *rows, "", NOTES])


NOTES = """\
A cell has the share, how many elements are wrong, and what was said: *raises*; *names*, all of them, in what was returned,
warned of or logged down to INFO; *some names*; *silent*; nothing where nothing had to be said. *Most* is the share that
can be right: a head for other classes stays the model's own. A share beside *raises* is what the model was left with.
Counters of batches need not be named.

- torch: `torch.load(weights_only=True)` and `load_state_dict`, with nothing taken out of the file by hand.
- timm: `load_checkpoint(strict=False)`, once with `remap=True`; `load_pretrained` is told the first convolution, the head and
  its classes, and for the positions a filter with timm's own `resample_abs_pos_embed`.
- transformers: each network as a `PreTrainedModel`, `from_pretrained(ignore_mismatched_sizes=True)`, and for the bigger model its
  `base_model_prefix`.
- MONAI: `copy_model_state`, with `dst_prefix` for the bigger model.
- torchkeep: `tk.load_into(model, file)`; *as advised*, called again with the first option that its error names, up to four times;
  *adapt=*, told `rows`, `channels` or `positions` where timm is told, and otherwise as advised.

Raw weights and their average are both right, and it must be said which were taken. Two tensors with each other's shapes are right
nowhere: they must stay as they are.
"""


def main() -> None:
    """Try everything, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page()
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
