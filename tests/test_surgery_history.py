"""What was done to a model is data: it stays with copies, goes into files and runs, and is done again to a fresh model."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from architectures_surgery import ARCHITECTURES, Architecture, ResNet, ViT, images, sequential_cnn
from torchkeep.errors import CorruptCheckpointError, SelectorError, SurgeryError
from torchkeep.surgery import (
    Operation,
    adapt_input,
    head_of,
    history,
    insert,
    reinitialise,
    remove,
    replace,
    replay,
    resize_head,
    truncate,
)

every = pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)


pytestmark = pytest.mark.usefixtures("one_thread")


def operated(arch: Architecture) -> tuple[nn.Module, Any]:
    """A network that every verb has been at, as far as it can take it."""
    torch.manual_seed(0)
    model, example = arch.make(), arch.example()
    if example.is_floating_point():
        adapt_input(model, 5, example=example)
        example = torch.cat([example, example[:, :2]], 1)
    if arch.middle:
        insert(model, nn.Sequential(nn.Identity(), nn.Dropout(0.25)), before=arch.middle, name=None, example=example)
    head = head_of(model, example)
    width = model.get_submodule(head).in_features
    replace(model, head, nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 9)), example=example)
    replace(model, f"{head}.0", {"bias": False}, example=example)
    resize_head(model, 4, name=f"{head}.2", example=example)
    remove(model, f"{head}.1", example=example)
    reinitialise(model, head, "xavier_normal_", seed=1)
    return model.eval(), example


@every
def test_surgery_is_saved_listed_and_done_again(arch: Architecture, tmp_path: Path) -> None:
    model, example = operated(arch)
    known = history(model)
    verbs = [operation.verb for operation in known]
    assert verbs[-5:] == ["replace", "replace", "resize_head", "remove", "reinitialise"]
    assert msgspec.json.decode(msgspec.json.encode(known), type=tuple[Operation, ...]) == known
    tk.save(model, tmp_path / "a.safetensors")
    ckpt = tk.open(tmp_path / "a.safetensors", verify=True)
    assert ckpt.surgery == known
    sources = [tmp_path / "a.safetensors", ckpt, known, model, [msgspec.to_builtins(one) for one in known]]
    for source in sources if arch is ARCHITECTURES["cnn"] else sources[:1]:
        fresh = arch.make()
        changes = replay(fresh, source)
        assert [change.verb for change in changes] == verbs
        assert repr(fresh) == repr(model)
        assert history(fresh) == known
    fresh.eval()
    assert tk.load_into(fresh, ckpt).coverage == 1
    with torch.no_grad():
        assert torch.equal(fresh(example), model(example))


@every
def test_truncation_is_done_again_without_an_example(arch: Architecture) -> None:
    torch.manual_seed(0)
    model, example = arch.make().eval(), arch.example()
    truncate(model, arch.cut, example=example)
    fresh = arch.make().eval()
    replay(fresh, model)
    fresh.load_state_dict(model.state_dict())
    assert repr(fresh) == repr(model)
    with torch.no_grad():
        assert torch.equal(fresh(example), model(example))


@every
def test_deep_copies_are_operated_on_by_themselves(arch: Architecture) -> None:
    torch.manual_seed(0)
    model = arch.make()
    before = (
        repr(model),
        {name: (id(tensor), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()},
    )
    copied, _ = operated(replaced(arch, make=lambda: copy.deepcopy(model)))
    assert len(history(copied)) > 4
    assert history(model) == ()
    after = (
        repr(model),
        {name: (id(tensor), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()},
    )
    assert after == before
    assert not {id(one) for one in model.modules()} & {id(one) for one in copied.modules()}
    assert not {id(one) for one in model.parameters()} & {id(one) for one in copied.parameters()}


def test_copies_and_pickles_keep_the_record_and_have_their_own() -> None:
    model, _ = operated(ARCHITECTURES["cnn"])
    known = history(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)]
    resize_head(model, 7)
    assert all(history(one) == known for one in copies)
    assert len(history(model)) == len(known) + 1
    assert list(copies[0].state_dict()) == list(model.state_dict())


def test_a_pickle_needs_no_torchkeep() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    resize_head(model, 4)
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print('torchkeep' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(model), capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


def test_what_was_done_to_a_part_belongs_to_the_whole_in_its_order() -> None:
    body = sequential_cnn()
    model = nn.Sequential(nn.Identity(), body)
    resize_head(body, 7)
    insert(model, nn.ReLU(), before="1")  # the body is '2' from here on
    resize_head(body, 5)
    remove(body, "6", renumber=True)
    replace(model, "2.0", {"bias": False})
    names = [(one.verb, one.name) for one in history(model)]
    assert names == [
        *(("resize_head", "1.9"), ("insert", "1"), ("resize_head", "2.9")),
        *(("remove", "2.6"), ("replace", "2.0")),
    ]
    fresh = nn.Sequential(nn.Identity(), sequential_cnn())
    replay(fresh, model)
    assert repr(fresh) == repr(model)
    reinitialise(model[2][0])
    replace(model, "2.0", {"stride": (1, 1), "padding": (2, 2)})
    assert [one.verb for one in history(model)][5:] == ["reinitialise", "replace"]
    fresh = nn.Sequential(nn.Identity(), sequential_cnn())
    replay(fresh, model)
    nested = nn.ModuleDict({"net": copy.deepcopy(model)})
    again = nn.ModuleDict({"net": nn.Sequential(nn.Identity(), sequential_cnn())})
    assert history(nested)[1].arguments["before"] == "net.1"
    replay(again, nested)
    assert repr(again) == repr(nested)
    assert history(again) == history(nested)


def test_modules_that_were_operated_on_before_they_were_given_are_made_whole() -> None:
    head = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    insert(head, nn.ReLU(), after="0")
    resize_head(head, 2)
    model = sequential_cnn()
    replace(model, "9", head)
    assert [one.verb for one in history(model)] == ["replace"]
    fresh = sequential_cnn()
    replay(fresh, model)
    assert repr(fresh) == repr(model)
    part = Head(4)
    resize_head(part, 2)
    model = sequential_cnn()
    replace(model, "9", part)
    assert [one.verb for one in history(model)] == ["replace", "resize_head"]
    fresh = sequential_cnn()
    replay(fresh, model, modules={f"{__name__}.Head": lambda: Head(4)})
    assert fresh[9].out.out_features == 2


class Head(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x)


def test_other_classes_are_given_and_never_imported() -> None:
    model = sequential_cnn()
    replace(model, "9", nn.Sequential(Head(3), nn.ReLU()))
    (operation,) = history(model)
    assert str(operation) == "replace 9 module=Sequential(Head, ReLU())"
    fresh = sequential_cnn()
    with pytest.raises(SurgeryError, match=r"operation 1 of 1.*a test_surgery_history\.Head.*\n.*modules=\{"):
        replay(fresh, model)
    assert history(fresh) == ()
    assert type(fresh[9]) is nn.Linear
    given = Head(3)
    replay(fresh, model, modules={"9.0": given})
    assert fresh[9][0] is given
    liar = Operation("replace", "9", {"module": {"class": "os.path.Linear", "kwargs": {}}})
    with pytest.raises(SurgeryError, match="which the record does not have"):
        replay(sequential_cnn(), [liar])


@pytest.mark.parametrize(
    "module",
    [
        *(nn.Linear(2, 3, bias=False), nn.Conv2d(3, 4, (3, 1), padding="same", groups=1), nn.ReLU6(inplace=True)),
        *(nn.LSTM(3, 4, 2, batch_first=True), nn.RNN(3, 4, nonlinearity="relu"), nn.MultiheadAttention(8, 2, bias=False)),
        *(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"), nn.LayerNorm((2, 3), elementwise_affine=False)),
        *(nn.BatchNorm2d(3, affine=False), nn.Embedding(5, 2, padding_idx=1), nn.Upsample(scale_factor=2)),
        nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.PReLU(2)]))}),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_torchs_own_modules_are_made_from_the_record(module: nn.Module) -> None:
    model = nn.Sequential(nn.Identity())
    replace(model, "0", module)
    said = history(model)[0].arguments["module"]
    assert "kwargs" in said or "children" in said
    fresh = nn.Sequential(nn.Identity())
    replay(fresh, json.loads(json.dumps(msgspec.to_builtins(history(model)))))
    assert repr(fresh) == repr(model)
    assert [(n, p.shape) for n, p in fresh.state_dict().items()] == [
        (n, p.shape) for n, p in model.state_dict().items()
    ]
    if isinstance(module, nn.MultiheadAttention):
        assert fresh[0].num_heads == 2


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(2, 2))


def twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, layer)


def with_more() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_buffer("mask", torch.ones(2))
    return layer


def own_activation() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, activation=torch.tanh)


@pytest.mark.parametrize("make", [weight_normed, twice, with_more, own_activation])
def test_what_the_record_cannot_say_it_does_not_say(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Identity())
    replace(model, "0", make())
    assert list(history(model)[0].arguments["module"]) == ["class"]
    with pytest.raises(SurgeryError, match=r"does not (have|say how)"):
        replay(nn.Sequential(nn.Identity()), model)
    path = history(model)[0].arguments["module"]["class"]
    fresh = nn.Sequential(nn.Identity())
    replay(fresh, model, modules={path: make})
    assert repr(fresh) == repr(model)


def test_replay_names_what_does_not_apply_and_leaves_the_model() -> None:
    model = ResNet()
    remove(model, "layer2.1", example=images())
    resize_head(model, 7, name="fc")
    fresh = ViT()
    before = repr(fresh)
    with pytest.raises(
        SurgeryError, match=r"operation 1 of 2, remove layer2\.1, does not apply: .*no module 'layer2\.1'"
    ):
        replay(fresh, model)
    other = nn.ModuleDict({"layer2": nn.Sequential(nn.ReLU(), nn.ReLU()), "fc": nn.Conv2d(1, 1, 1)})
    other["fc"].weight.requires_grad_(False)
    with pytest.raises(SurgeryError, match="changed already: remove"):
        replay(model, model)
    replay(other, model)
    assert type(other["layer2"][1]) is nn.Identity
    wrong = nn.ModuleDict({"layer2": nn.Sequential(nn.ReLU(), nn.ReLU()), "fc": nn.ReLU()})
    with pytest.raises(SurgeryError, match="operation 2 of 2, resize_head fc classes=7, does not apply"):
        replay(wrong, model)
    assert type(wrong["layer2"][1]) is nn.ReLU
    assert history(wrong) == ()
    assert repr(fresh) == before


@pytest.mark.parametrize(
    "source",
    [
        [{"verb": "explode"}],
        [{"name": "fc"}],
        [{"verb": "replace", "name": "0", "arguments": {}}],
        [{"verb": "replace", "name": "0", "arguments": {"module": {"class": "torch.nn.modules.linear.Linear"}}}],
        [{"verb": "replace", "name": "0", "arguments": {"module": "Linear"}}],
        [{"verb": "replace", "name": "0", "arguments": {"changes": {"__class__": 1}}}],
        [{"verb": "resize_head", "name": "0", "arguments": {"classes": "many"}}],
        [{"verb": "insert", "arguments": {"after": "0", "module": {"class": 3}}}],
        [{"verb": "truncate", "name": "0", "arguments": {"out": ["7"]}}],
        [{"verb": "truncate", "name": "0", "arguments": {"out": 7}}],
        [{"verb": "remove", "name": ["0"]}],
        [7],
        7,
        [
            {"verb": "replace", "name": "0", "arguments": {"module": {
                "class": "torch.nn.modules.linear.Linear", "kwargs": {"in_features": 2, "out_features": "3"}}}}
        ],
    ],
)  # fmt: skip
def test_records_that_make_no_sense_are_refused(source: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    before = repr(model)
    with pytest.raises(SurgeryError):
        replay(model, source)
    assert repr(model) == before
    assert history(model) == ()


def test_shards_conversions_and_inspect_keep_it(tmp_path: Path) -> None:
    model, _ = operated(ARCHITECTURES["resnet"])
    known = history(model)
    tk.save(model, tmp_path / "s.safetensors", max_shard_size=20_000)
    shards = sorted(tmp_path.glob("s-*.safetensors"))
    assert len(shards) > 1
    assert tk.open(tmp_path / "s.safetensors.index.json").surgery == known
    assert [bool(tk.open(shard).surgery) for shard in shards] == [True] + [False] * (len(shards) - 1)
    tk.save(model, tmp_path / "a.safetensors")
    tk.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bf16")
    assert tk.open(tmp_path / "b.safetensors").surgery == known
    shown = str(tk.open(tmp_path / "a.safetensors"))
    assert "  surgery: adapt_input conv1 channels=5" in shown
    assert all(f"  surgery: {operation}" in shown for operation in known)
    command = [sys.executable, "-m", "torchkeep", "inspect", str(tmp_path / "a.safetensors")]
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["surgery"] == [
        {"verb": one.verb, "name": one.name, "arguments": one.arguments} for one in known
    ]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "resize_head" in plain
    assert tk.open(tmp_path / "a.safetensors").model.surgery == known
    tk.save(ResNet(), tmp_path / "c.safetensors")
    assert tk.open(tmp_path / "c.safetensors").surgery == ()
    assert b'"surgery"' not in (tmp_path / "c.safetensors").read_bytes()[:100_000]


def test_runs_keep_it(tmp_path: Path) -> None:
    model = sequential_cnn()
    resize_head(model, 4)
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model)
        run.save(0)
        ckpt = run.open()
    assert ckpt.surgery == history(model)
    fresh = sequential_cnn()
    replay(fresh, tk.Run(tmp_path / "run").open())
    tk.load_into(fresh, ckpt)
    assert torch.equal(fresh[9].weight, model[9].weight)
    with tk.Run(tmp_path / "run") as run:
        assert run.resume(model=fresh) == 1


def test_lies_in_the_record_are_damage(tmp_path: Path) -> None:
    from torchkeep.core.operations import operations_from

    for lie in ([{"verb": 1}], "text", [[]], [{"verb": "remove", "arguments": []}]):
        with pytest.raises(CorruptCheckpointError, match="record of surgery"):
            operations_from(lie)


@pytest.mark.parametrize("place", ["kwargs", "children", "x"])
def test_deep_and_long_records_are_listed_briefly_and_refused(place: str, tmp_path: Path) -> None:
    deep: Any = {"class": "torch.nn.modules.container.Sequential"}
    for _ in range(300):
        deep = {"class": "torch.nn.modules.container.Sequential", place: {"0": deep}}
    operation = Operation("replace", "0", {"module": deep})
    assert len(str(operation)) < 300
    assert len(str(Operation("replace", "0", {"module": {"class": "X", place: [1, [2]]}}))) < 60
    with pytest.raises(SurgeryError, match="does not apply"):
        replay(nn.Sequential(nn.ReLU()), [operation])
    model = nn.Sequential(nn.Identity())
    for _ in range(30):
        insert(model, nn.ReLU(), after="0")
    tk.save(model, tmp_path / "long.safetensors")
    assert "and 10 more operations" in str(tk.open(tmp_path / "long.safetensors"))


def test_nothing_done_is_nothing_recorded() -> None:
    model = sequential_cnn()
    resize_head(model, 10)
    adapt_input(model, 3)
    replace(model, "6", {"p": 0.2})
    truncate(model, "9")
    assert history(model) == ()


def test_wrapped_models_have_one_record() -> None:
    model = sequential_cnn()
    wrapped = nn.DataParallel(model)
    resize_head(wrapped, 3)
    remove(model, "6")
    assert history(wrapped) == history(model)
    assert [one.verb for one in history(wrapped)] == ["resize_head", "remove"]


def attempt(model: nn.Module, example: Any, draw: random.Random) -> None:
    """One verb at a place, both drawn."""
    names = [name for name, _ in model.named_modules()]
    name, other = draw.choice(names), draw.choice(names)
    layer = draw.choice([nn.Identity, nn.ReLU, lambda: nn.Linear(16, 16), lambda: nn.BatchNorm2d(8), nn.Flatten])()
    keywords = {
        "out_features": draw.randint(1, 20), "bias": draw.random() < 0.5, "p": 0.3, "stride": 1, "padding": 1, "eps": 0.1
    }  # fmt: skip
    given = draw.choice([example, example, None])
    draw.choice(
        [
            lambda: replace(model, name, layer, example=given),
            lambda: replace(model, name, dict([draw.choice(list(keywords.items()))]), example=given),
            lambda: replace(model, name, model.get_submodule(other), example=given),
            lambda: remove(model, name, example=given, renumber=draw.random() < 0.5),
            lambda: insert(model, layer, **{draw.choice(["after", "before"]): name}, example=given),
            lambda: insert(model, layer, after=name, name=draw.choice(["x", "y"]), example=given),
            lambda: truncate(model, name, example=example),
            lambda: resize_head(model, draw.randint(1, 30), name=draw.choice([None, name]), example=given),
            lambda: adapt_input(model, draw.randint(1, 6), name=draw.choice([None, name])),
            lambda: reinitialise(model, name or "*", draw.choice([None, "normal_", "kaiming_normal_"])),
            lambda: resize_head(model.get_submodule(name), 3),
        ]
    )()


def held(model: nn.Module) -> list[Any]:
    modules = [(path, id(module), module.training) for path, module in model.named_modules(remove_duplicate=False)]
    tensors = [(name, id(one), one._version) for name, one in model.named_parameters(remove_duplicate=False)]
    return [repr(model), history(model), modules, tensors, [(n, bytes(b.numpy())) for n, b in model.named_buffers()]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "efficientnet"])
def test_whatever_is_done_either_fails_and_leaves_all_or_is_done_again(name: str, seed: int) -> None:
    arch, draw = ARCHITECTURES[name], random.Random(f"{name} {seed}")
    torch.manual_seed(seed)
    model, example = arch.make(), arch.example()
    for _ in range(14):
        before = held(model)
        try:
            attempt(model, example, draw)
        except (SurgeryError, SelectorError):
            assert held(model) == before
    fresh = arch.make()
    replay(fresh, json.loads(json.dumps(msgspec.to_builtins(history(model)))))
    assert repr(fresh) == repr(model)
    assert history(fresh) == history(model)
    expected = [(n, p.shape) for n, p in model.named_parameters(remove_duplicate=False)]
    assert [(n, p.shape) for n, p in fresh.named_parameters(remove_duplicate=False)] == expected
    assert len(list(fresh.parameters())) == len(list(model.parameters()))
