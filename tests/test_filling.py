"""What classes of today expect and files of yesterday lack: layer by layer, and what is refused or reported."""

from __future__ import annotations

import copy
import functools
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchkeep as tk
from torchkeep.core.tree import Global
from torchkeep.errors import RebuildError, RebuildWarning
from torchkeep.rebuilding.classes import Classes
from torchkeep.rebuilding.filling import filled, prepared

pytestmark = pytest.mark.usefixtures("one_thread")


def again(path: Path, model: Any, quiet: bool = False, **options: Any) -> Any:
    """The model pickled by torch, and made again by torchkeep, without a word of warning if not `quiet`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.RNNBase, "__getstate__", lambda self: without(self.__dict__, "_flat_weight_refs"))
        torch.save(model, path / "old.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "error", RebuildWarning)
        return tk.load_model(path / "old.pth", **options)


def without(held: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in held.items() if key != name}


def older(module: nn.Module, *lacking: str, **instead: Any) -> nn.Module:
    """A module as an older torch left it: without these attributes and buffers, with others instead."""
    for key in lacking:
        for held in (module.__dict__, module._buffers, module._parameters):
            held.pop(key, None)
    module.__dict__.update(instead)
    return module


X2, X3, X4 = torch.randn(3, 4), torch.randn(2, 4, 6), torch.randn(2, 4, 6, 6)

# A layer of today, what an old one lacks, what it has instead, and an input.
OLD: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], dict[str, Any], Any]] = {
    "batch norm of 0.3": (lambda: nn.BatchNorm1d(4), ("num_batches_tracked", "track_running_stats"), {}, X2),
    "batch norm without statistics": (
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
        ("num_batches_tracked",),
        {},
        X2,
    ),
    "instance norm of 0.3": (lambda: nn.InstanceNorm1d(4), ("num_batches_tracked", "track_running_stats"), {}, X3),
    "layer norm": (lambda: nn.LayerNorm(4, elementwise_affine=False), ("bias",), {}, X2),
    "convolution of 1.0": (lambda: nn.Conv2d(4, 2, 3), ("padding_mode", "_reversed_padding_repeated_twice"), {}, X4),
    "convolution of 1.4, reflecting": (
        lambda: nn.Conv2d(4, 2, 3, padding=(2, 1), padding_mode="reflect"),
        ("_reversed_padding_repeated_twice",),
        {},
        X4,
    ),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(4, 2, 3),
        ("padding_mode", "_reversed_padding_repeated_twice"),
        {},
        X4,
    ),
    "upsample of 0.3": (lambda: nn.Upsample(scale_factor=2), ("align_corners", "recompute_scale_factor"), {}, X4),
    "upsample to a size": (lambda: nn.Upsample(size=(9, 9)), ("recompute_scale_factor",), {}, X4),
    "bilinear upsample of 0.3": (
        lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        ("align_corners", "recompute_scale_factor"),
        {},
        X4,
    ),
    "gelu of 1.11": (nn.GELU, ("approximate",), {}, X2),
    "softmax of 0.2": (lambda: nn.Softmax(dim=1), ("dim",), {}, X2),
    "prelu": (nn.PReLU, ("init",), {}, X2),
    "dropout": (lambda: nn.Dropout(0.5), ("inplace",), {}, X2),
    "relu": (nn.ReLU, ("inplace",), {"threshold": 0.0, "value": 0.0}, X2),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.5), ("inplace",), {}, X2),
    "max pool": (lambda: nn.MaxPool2d(2), ("return_indices", "ceil_mode"), {}, X4),
    "average pool": (lambda: nn.AvgPool2d(2), ("divisor_override", "ceil_mode"), {}, X4),
    "average pool in 3d": (
        lambda: nn.AvgPool3d(2),
        ("divisor_override", "padding", "ceil_mode", "count_include_pad"),
        {},
        X4[None],
    ),
    "embedding": (
        lambda: nn.Embedding(7, 3),
        ("max_norm", "norm_type", "sparse", "scale_grad_by_freq"),
        {},
        torch.tensor([1, 2]),
    ),
    "embedding bag of 1.4": (
        lambda: nn.EmbeddingBag(7, 3),
        ("include_last_offset", "padding_idx"),
        {},
        torch.tensor([[1, 2], [3, 4]]),
    ),
    "recurrent of 1.0": (lambda: nn.RNN(4, 3), ("proj_size", "_flat_weights", "_flat_weights_names"), {}, X2[None]),
    "recurrent without bias": (
        lambda: nn.GRU(4, 3, 2, bias=False, bidirectional=True),
        ("proj_size", "_flat_weights", "_flat_weights_names", "_all_weights"),
        {},
        X2[None],
    ),
    "recurrent with projections": (lambda: nn.LSTM(4, 3, 2, proj_size=2), ("_flat_weights",), {}, X2[None]),
    "list of parameters of 1.11": (
        lambda: nn.ParameterList([nn.Parameter(torch.ones(2))]),
        ("_size",),
        {"_initialized": True},
        None,
    ),
    "dict of parameters of 1.11": (
        lambda: nn.ParameterDict({"b": nn.Parameter(torch.ones(2)), "a": nn.Parameter(torch.ones(1))}),
        ("_keys",),
        {"_initialized": True},
        None,
    ),
    "cross entropy of 0.3": (
        nn.CrossEntropyLoss,
        ("reduction", "label_smoothing"),
        {"size_average": True},
        None,
    ),
    "summed loss of 0.4": (
        lambda: nn.MSELoss(reduction="sum"),
        ("reduction",),
        {"size_average": False, "reduce": True},
        None,
    ),
    "loss of 0.4.1": (nn.L1Loss, ("reduction",), {"reduction": "elementwise_mean"}, None),
    "divergence": (nn.KLDivLoss, ("log_target",), {}, None),
    "smooth loss": (nn.SmoothL1Loss, ("beta",), {}, None),
    "distance": (lambda: nn.PairwiseDistance(3.0), ("keepdim",), {}, None),
    "attention of 1.1": (
        lambda: nn.MultiheadAttention(4, 2),
        ("_qkv_same_embed_dim", "kdim", "vdim", "batch_first", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
        {},
        None,
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", OLD)
def test_an_old_layer_is_one_of_today(tmp_path: Path, name: str) -> None:
    make, lacking, instead, given = OLD[name]
    torch.manual_seed(0)
    fresh = make()
    old = older(copy.deepcopy(fresh), *lacking, **instead)
    model = again(tmp_path, nn.Sequential(old))[0]
    assert vars(model).keys() >= vars(fresh).keys()
    for held in ("_parameters", "_buffers"):
        assert getattr(model, held).keys() >= getattr(fresh, held).keys()
    for key, value in vars(fresh).items():
        if key in lacking and isinstance(value, (bool, int, float, str, tuple, type(None))) and key != "init":
            told = name.startswith(("softmax", "upsample", "bilinear")) and key in {"dim", "recompute_scale_factor"}
            assert getattr(model, key) == value or told, key
    assert repr(model) == repr(fresh) or "softmax" in name
    if given is not None and "softmax" not in name:
        for mode in (False, True):
            outputs = []
            for one in (model.train(mode), fresh.train(mode)):
                torch.manual_seed(1)
                out = one(given)
                outputs.append(out if isinstance(out, torch.Tensor) else out[0])
            assert torch.equal(*outputs)
    state = fresh.state_dict()
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    copy.deepcopy(model)


def test_the_first_circular_padding_is_kept_as_it_was(tmp_path: Path) -> None:
    fresh = nn.Conv2d(4, 2, 3, padding=(3, 2), padding_mode="circular")
    model = again(tmp_path, older(copy.deepcopy(fresh), "_reversed_padding_repeated_twice"))
    padded = functional.pad(X4, (1, 1, 2, 1), mode="circular")
    assert torch.equal(model(X4), functional.conv2d(padded, fresh.weight, fresh.bias))


def test_running_statistics_come_with_their_count(tmp_path: Path) -> None:
    model = again(tmp_path, older(nn.BatchNorm1d(4), "num_batches_tracked"), device="cpu")
    model(X2)
    assert model.num_batches_tracked == 1
    assert model.state_dict()["num_batches_tracked"].dtype == torch.long


def test_a_recurrent_layer_keeps_its_weights_in_step(tmp_path: Path) -> None:
    fresh = nn.LSTM(4, 3, 2, bidirectional=True)
    old = older(copy.deepcopy(fresh), "_flat_weights", "_flat_weights_names", "proj_size")
    model = again(tmp_path, old)
    assert [id(one) for one in model._flat_weights] == [id(getattr(model, name)) for name in model._flat_weights_names]
    with torch.no_grad():
        model.weight_ih_l0.zero_()
        fresh.weight_ih_l0.zero_()
    assert torch.equal(model(X2[None])[0], fresh(X2[None])[0])
    assert torch.equal(copy.deepcopy(model)(X2[None])[0], fresh(X2[None])[0])
    state = dict(fresh.__dict__, all_weights=[list(fresh.parameters())], _data_ptrs=[])
    del state["_all_weights"], state["_flat_weight_refs"]
    made = nn.LSTM.__new__(nn.LSTM)
    nn.Module.__init__(made)
    made.__setstate__(prepared(nn.LSTM, state))
    filled(made)
    assert torch.equal(made(X2[None])[0], fresh(X2[None])[0])


@pytest.mark.parametrize("layers", [10**9, 10**30, -1, 0, "many", None, 2.5])
def test_a_number_of_layers_without_tensors_costs_nothing(tmp_path: Path, layers: Any) -> None:
    model = nn.LSTM(2, 2)
    model.num_layers = layers
    for lacking in ((), ("_all_weights", "_flat_weights")):
        torch.save(nn.Sequential(older(model, *lacking)), tmp_path / "old.pth")
        started = time.perf_counter()
        with pytest.raises(RebuildError, match="layers"):
            tk.load_model(tmp_path / "old.pth")
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("number", [10**12, 10**400, -1, "text", None, (1,) * 10_000])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.Conv2d(1, 1, 1),
        nn.Embedding(2, 2),
        nn.LayerNorm(2),
        nn.BatchNorm1d(2),
        nn.MultiheadAttention(2, 1),
        nn.Transformer(2, 2, 1, 1, 2, batch_first=True),
        nn.ParameterList([nn.Parameter(torch.ones(1))]),
        nn.AdaptiveLogSoftmaxWithLoss(16, 10, [3]),
        nn.PReLU(),
        nn.Upsample(2),
    ],
    ids=lambda layer: type(layer).__name__ if isinstance(layer, nn.Module) else "",
)
def test_numbers_of_a_file_make_no_work(tmp_path: Path, layer: nn.Module, number: Any) -> None:
    """Every plain attribute is the hostile one, and some are missing, so that a fresh layer is asked for."""
    wild = copy.deepcopy(layer)
    for key, value in vars(layer).items():
        if isinstance(value, (int, float, tuple, list)) and key != "training":
            wild.__dict__[key] = number
    wild.__dict__ |= dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "dim_feedforward"), number)
    for key in ("padding_mode", "inplace", "batch_first", "max_norm"):
        wild.__dict__.pop(key, None)
    torch.save(nn.Sequential(wild), tmp_path / "old.pth")
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RebuildWarning)
            model = tk.load_model(tmp_path / "old.pth")
    except RebuildError:
        return
    assert time.perf_counter() - started < 5
    if isinstance(layer, nn.ParameterList):
        assert len(model[0]) == 1
    tk.rescue(tmp_path / "old.pth", tmp_path / "out")
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "activation", [nn.functional.relu, nn.functional.gelu, nn.ReLU(), nn.GELU(), nn.functional.silu]
)
def test_layers_of_transformers_get_what_they_expect(tmp_path: Path, activation: Any) -> None:
    torch.manual_seed(0)
    fresh: Any = nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation)
    old: Any = older(copy.deepcopy(fresh), "norm_first", "activation_relu_or_gelu")
    older(old.self_attn, "batch_first", "kdim", "vdim")
    model = again(tmp_path, nn.Sequential(old))[0]
    assert model.activation_relu_or_gelu == fresh.activation_relu_or_gelu
    assert type(model.activation) is type(fresh.activation)
    for mode in (False, True):
        assert torch.equal(model.train(mode)(X2[None]), fresh.train(mode)(X2[None]))
    decoder: Any = nn.TransformerDecoderLayer(4, 2, 8, 0.0, activation)
    model = again(tmp_path, nn.Sequential(older(copy.deepcopy(decoder), "norm_first")))[0]
    assert type(model.activation) is type(decoder.activation)
    assert torch.equal(model(X2[None], X2[None]), decoder(X2[None], X2[None]))


def test_stacks_of_transformers_get_what_they_expect(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
    fresh = nn.TransformerEncoder(layer, 2).eval()
    model = again(tmp_path, older(copy.deepcopy(fresh), "use_nested_tensor", "mask_check"))
    assert model.use_nested_tensor is True
    model = again(tmp_path, older(copy.deepcopy(fresh), "use_nested_tensor", "mask_check", "enable_nested_tensor"))
    assert model.use_nested_tensor is False  # as it was before there were any: padded places keep their length
    with torch.no_grad():
        assert torch.equal(model(X2[None]), fresh(X2[None]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = nn.Transformer(4, 2, 1, 1, 8, 0.0)
    model = again(tmp_path, older(copy.deepcopy(whole), "batch_first"))
    assert torch.equal(model(X2[None], X2[None]), whole(X2[None], X2[None]))


def test_devices_that_are_not_here_are_forgotten(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(nn.Linear(4, 2))
    old = older(
        copy.deepcopy(wrapped), device_ids=[0, 97], output_device=0, src_device_obj=torch.device("cuda:0"), dim=0
    )
    model = again(tmp_path, nn.Sequential(old, nn.Identity()))
    assert model[0].device_ids == []
    assert torch.equal(model(X2), wrapped(X2))


# Hooks


def test_weight_norm_goes_on(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.utils.weight_norm(nn.Linear(4, 3), dim=None)
        normed = nn.utils.weight_norm(normed, "bias", dim=0)
        next(iter(normed._forward_pre_hooks.values())).dim = None  # as torch 0.4 kept it
        lstm = nn.utils.weight_norm(nn.LSTM(4, 3), "weight_hh_l0")
    with torch.no_grad():
        normed.weight_g.mul_(2)  # and the weight is stale until the next forward
    model = again(tmp_path, nn.ModuleList([normed, lstm]))
    next(iter(normed._forward_pre_hooks.values())).dim = -1
    assert torch.equal(model[0](X2), normed(X2))
    model[0](X2).sum().backward()
    assert model[0].weight_g.grad is not None
    with torch.no_grad():
        model[1].weight_hh_l0_g.mul_(3)
        lstm.weight_hh_l0_g.mul_(3)
    assert torch.equal(model[1](X2[None])[0], lstm(X2[None])[0])
    nn.utils.remove_weight_norm(model[0])
    assert isinstance(model[0].weight, nn.Parameter)


def test_every_kind_of_pruning_goes_on(tmp_path: Path) -> None:
    prune = nn.utils.prune
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3) for _ in range(7)]
    prune.identity(layers[0], "weight")
    prune.random_unstructured(layers[1], "weight", amount=2)
    prune.ln_structured(layers[2], "weight", amount=1, n=2, dim=0)
    prune.random_structured(layers[3], "weight", amount=0.5, dim=0)
    prune.custom_from_mask(layers[4], "weight", torch.eye(3, 4))
    prune.l1_unstructured(layers[5], "weight", amount=0.3)
    prune.l1_unstructured(layers[5], "weight", amount=0.3)
    prune.global_unstructured([(layers[6], "weight"), (layers[6], "bias")], prune.L1Unstructured, amount=4)
    model = again(tmp_path, nn.ModuleList(layers))
    for old, new in zip(layers, model, strict=True):
        hooks = [[type(hook) for hook in one._forward_pre_hooks.values()] for one in (old, new)]
        assert hooks[0] == hooks[1]
        with torch.no_grad():
            for one in (old, new):
                for name, parameter in one.named_parameters():
                    if name.endswith("_orig"):
                        parameter.add_(1)
        assert torch.equal(old(X2), new(X2))
        assert prune.is_pruned(new)
    assert isinstance(next(iter(model[5]._forward_pre_hooks.values())), prune.PruningContainer)
    prune.remove(model[5], "weight")


@pytest.mark.parametrize(
    "damage",
    [
        lambda hook, layer: setattr(hook, "n_power_iterations", 10**9),
        lambda hook, layer: setattr(hook, "name", "other"),
        lambda hook, layer: setattr(hook, "name", 3),
        lambda hook, layer: setattr(hook, "eps", "text"),
        lambda hook, layer: delattr(hook, "dim"),
        lambda hook, layer: layer._buffers.pop("weight_u"),
        lambda hook, layer: layer._parameters.pop("weight_orig"),
    ],
)
def test_a_hook_that_does_not_fit_is_reported(tmp_path: Path, damage: Callable[[Any, nn.Module], Any]) -> None:
    layer = nn.utils.spectral_norm(nn.Linear(4, 3))
    damage(next(iter(layer._forward_pre_hooks.values())), layer)
    torch.save(nn.Sequential(layer), tmp_path / "old.pth")
    with pytest.warns(RebuildWarning, match=r"0: torch.nn.utils.spectral_norm.SpectralNorm \(forward pre hook\)"):
        model = tk.load_model(tmp_path / "old.pth")
    assert not model[0]._forward_pre_hooks


def fire(*_: Any, **__: Any) -> None:
    raise AssertionError("a hook of the file was run")


class Firing:
    def __call__(self, *_: Any) -> None:
        fire()


def test_all_kinds_of_hooks_are_reported_and_none_runs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    layer = model[0]
    layer.register_forward_hook(fire, with_kwargs=True, always_call=True)
    layer.register_forward_pre_hook(functools.partial(fire, 1), with_kwargs=True)
    layer.register_full_backward_hook(fire)
    layer.register_full_backward_pre_hook(fire)
    layer.register_state_dict_pre_hook(fire)
    layer.register_state_dict_post_hook(fire)
    layer.register_load_state_dict_pre_hook(fire)
    layer.register_load_state_dict_post_hook(fire)
    model.register_forward_hook(Firing())
    torch.save(model, tmp_path / "old.pth")
    with pytest.warns(RebuildWarning, match="9 hooks are left out") as seen:
        again = tk.load_model(tmp_path / "old.pth")
    said = str(seen[0].message)
    assert "test_filling.fire" in said
    again(X2).sum().backward()
    again.load_state_dict(again.state_dict())
    with pytest.warns(RebuildWarning, match="hooks are left out"):
        again = tk.load_model(tmp_path / "old.pth", classes={"test_filling.fire": fire, "test_filling.Firing": Firing})
    again(X2).sum().backward()
    again.load_state_dict(again.state_dict())


class Keeps(nn.Module):
    """A module with attributes that are called like hooks, and are none."""

    def __init__(self) -> None:
        super().__init__()
        self._hook_outputs: dict[str, int] = {"a": 1}
        self.inner = nn.Linear(2, 2)
        self.apart = [nn.Linear(2, 2), nn.BatchNorm1d(2)]
        self.view = self.inner.weight[0].detach()
        self.same = self.inner.weight.data
        self.register_buffer("steps", torch.ones(2, dtype=torch.bfloat16), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.apart[1](self.apart[0](self.inner(x)))


def test_what_no_state_dict_has_comes_too(tmp_path: Path) -> None:
    original = Keeps()
    model = again(tmp_path, original, classes={"test_filling.Keeps": Keeps})
    assert model._hook_outputs == {"a": 1}
    given = torch.randn(3, 2)
    assert torch.equal(model(given), original(given))
    assert torch.equal(model.view, original.view)
    assert model.same.data_ptr() == model.inner.weight.data_ptr()
    assert torch.equal(model.steps, original.steps)
    assert "steps" not in model.state_dict()
    skeleton = None
    with pytest.warns(RebuildWarning):
        skeleton = tk.load_model(tmp_path / "old.pth")
    assert torch.equal(skeleton.apart[0].weight, original.apart[0].weight)


def test_a_method_is_not_replaced_by_a_record(tmp_path: Path) -> None:
    original = Keeps()
    original.forward = functools.partial(fire, original)  # type: ignore[method-assign]
    original.train_ = fire
    torch.save(original, tmp_path / "old.pth")
    with pytest.warns(RebuildWarning) as seen:
        model = tk.load_model(tmp_path / "old.pth", classes={"test_filling.Keeps": Keeps})
    said = " ".join(str(one.message) for one in seen)
    assert "stood before a method" in said
    assert "forward" in said
    assert model(torch.randn(3, 2)).shape == (3, 2)
    with pytest.warns(RebuildWarning) as seen:
        skeleton = tk.load_model(tmp_path / "old.pth")
    assert "stood before a method" in " ".join(str(one.message) for one in seen)
    with pytest.raises(RebuildError, match="not here"):
        skeleton(torch.zeros(1))


def test_odd_names_in_a_skeleton_do_no_harm(tmp_path: Path) -> None:
    original = Keeps()
    original.__dict__ |= {"_torchkeep_part": 5, "state_dict": 3, "_compiled_call_impl": 1, "__class__": 2}
    original.__dict__ |= {"type": "block", "_call_impl": 7}
    original._modules["a.b"] = nn.Linear(1, 1)
    original._modules["star*, but"] = nn.Linear(1, 1)
    original.tied = original.inner
    torch.save(original, tmp_path / "old.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RebuildWarning)
        model = tk.load_model(tmp_path / "old.pth")
    assert torch.equal(model._modules["a.b"].weight, original._modules["a.b"].weight)
    assert torch.equal(model._modules["star*, but"].weight, original._modules["star*, but"].weight)
    assert model.tied is model.inner
    assert model.type == "block"
    known = again(tmp_path, original, classes={"test_filling.Keeps": Keeps}, quiet=True)
    assert known.type == "block"
    assert known(torch.ones(2, 2)).shape == (2, 2)
    assert isinstance(model.state_dict(), OrderedDict)


def test_shared_empty_and_meta_tensors_come_as_they_were(tmp_path: Path) -> None:
    empty = nn.ModuleDict({"none": nn.Sequential(), "zero": nn.Embedding(0, 3), "short": nn.Linear(2, 2).bfloat16()})
    empty["again"] = empty["short"]
    empty["frozen"] = nn.Linear(2, 2).requires_grad_(False).eval()
    empty["lazy"] = nn.Linear(2, 2, device="meta")
    empty["last"] = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    empty["sparse"] = nn.Module()
    empty["sparse"].register_buffer("graph", torch.eye(3).to_sparse())
    model = again(tmp_path, empty)
    assert model["lazy"].weight.is_meta
    assert torch.equal(model["sparse"].graph.to_dense(), torch.eye(3))
    del empty["lazy"]
    model = again(tmp_path, empty)
    assert torch.equal(model["sparse"].graph.to_dense(), torch.eye(3))
    assert model["again"] is model["short"]
    assert model["zero"].weight.shape == (0, 3)
    assert model["short"].weight.dtype == torch.bfloat16
    assert torch.equal(model["short"].weight, empty["short"].weight)
    assert not any(one.requires_grad for one in model["frozen"].parameters())
    assert not model["frozen"].training
    assert model["last"].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model["last"].weight, empty["last"].weight)
    assert all(one.is_meta for one in tk.load_model(tmp_path / "old.pth", device="meta").parameters())
    torch.save(nn.ReLU(), tmp_path / "old.pth")
    assert isinstance(tk.load_model(tmp_path / "old.pth"), nn.ReLU)


def test_lazy_layers_that_never_ran_are_reported(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.save(nn.Sequential(nn.LazyLinear(3)), tmp_path / "old.pth")
    with pytest.warns(RebuildWarning) as seen:
        tk.load_model(tmp_path / "old.pth")
    said = " ".join(str(one.message) for one in seen)
    assert "0.weight is a torch.nn.parameter.UninitializedParameter and no tensor" in said


def test_a_model_in_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.DataParallel(nn.Sequential(nn.Linear(3, 2))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = again(tmp_path, {"epoch": 3, "model": model, "optimizer": optimizer.state_dict()})
    assert torch.equal(made(X2), model(X2))


def test_modules_in_circles_and_in_knots_are_refused(tmp_path: Path) -> None:
    circle = nn.Sequential(nn.ReLU())
    circle._modules["1"] = circle
    torch.save(circle, tmp_path / "circle.pth")
    with pytest.raises(RebuildError, match="among its own children"):
        tk.load_model(tmp_path / "circle.pth")
    knot: nn.Module = nn.ReLU()
    for _ in range(40):
        knot = nn.Sequential(knot, knot)
    torch.save(knot, tmp_path / "knot.pth")
    with pytest.raises(RebuildError, match="paths of modules"):
        tk.load_model(tmp_path / "knot.pth")
    with pytest.raises(RebuildError, match="paths of modules"):
        tk.rescue(tmp_path / "knot.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Trust


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that re-exports more than it should."""
    name = "keepsafe_pkg"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("import os, subprocess\nfrom os import system\n")
    (tmp_path / name / "nets.py").write_text(
        "from torch import nn\n"
        "import torch\n"
        "class Config:\n"
        "    def __init__(self, width=1):\n"
        "        self.width = width\n"
        "class Outer:\n"
        "    class Net(nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.config = Config(7)\n"
        "            self.made = make(2)\n"
        "            self.fc = nn.Linear(4, 2)\n"
        "        def forward(self, x):\n"
        "            return self.fc(x) * self.config.width * self.made.value\n"
        "class Made:\n"
        "    def __init__(self, value):\n"
        "        self.value = value\n"
        "    def __reduce__(self):\n"
        "        return make, (self.value,)\n"
        "def make(value):\n"
        "    return Made(value)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for key in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[key]


def test_a_trusted_package_is_used_as_unpickling_would(tmp_path: Path, package: str) -> None:
    nets: Any = __import__(f"{package}.nets", fromlist=["Outer"])
    original = nets.Outer.Net()
    model = again(tmp_path, original, trust=[f"{package}."])
    assert type(model) is nets.Outer.Net
    assert type(model.config) is nets.Config
    assert torch.equal(model(X2), original(X2))
    with pytest.warns(RebuildWarning) as seen:
        tk.load_model(tmp_path / "old.pth", trust=["keepsafe"])
    assert f"skeletons, which cannot compute, for want of {package}.nets.Outer.Net" in str(seen[0].message)
    with pytest.raises(ValueError, match="names packages"):
        tk.load_model(tmp_path / "old.pth", trust=["not a package"])


class Calls:
    """Pickles as a call of whatever it is told."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Named:
    """Pickles as the name of an object in a module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


def with_attribute(value: Any) -> nn.Module:
    model = nn.Linear(2, 2)
    model.extra = value
    return model


def test_names_from_elsewhere_are_not_those_of_a_trusted_package(package: str) -> None:
    known = Classes(trust=[f"{package}."])
    for name in ("os.system", "subprocess.run", "system", "os", "__name__", "nets.torch.load", "__loader__"):
        with pytest.raises(RebuildError):
            known.find_object(Global(package, name))
    assert known.find_object(Global("os", "system")) is None
    assert Classes(trust=["os."]).find_object(Global("os", "popen")) is not None  # whoever trusts os gets os


def test_functions_and_layers_of_torch_are_not_called(tmp_path: Path) -> None:
    for call in (
        Calls(torch.relu, torch.ones(1)),
        Calls(nn.functional.relu, torch.ones(1)),
        Calls(nn.Linear, 10**7, 10**7),
        Calls(print, "no"),
        Calls(type, "X", (), {}),
    ):
        torch.save(with_attribute(call), tmp_path / "old.pth")
        with pytest.warns(RebuildWarning, match="inert records"):
            model = tk.load_model(tmp_path / "old.pth")
        assert isinstance(model.extra, tk.Record)
    torch.save(
        with_attribute([torch.nn.functional.relu, slice(1, 2), functools.partial(nn.functional.gelu)]),
        tmp_path / "old.pth",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tk.load_model(tmp_path / "old.pth")
    assert model.extra[0] is torch.nn.functional.relu
    assert model.extra[1] == slice(1, 2)


def test_what_an_object_does_not_take_is_said(tmp_path: Path) -> None:
    torch.save(with_attribute(Calls(Named, "one")), tmp_path / "old.pth")
    with pytest.raises(RebuildError, match=r"extra is a test_filling.Named.*TypeError"):
        tk.load_model(tmp_path / "old.pth", classes={"test_filling.Named": Named})
    with pytest.raises(RebuildError, match="is no class of modules"):
        tk.load_model(tmp_path / "old.pth", classes={"torch.nn.modules.linear.Linear": Named})
    with pytest.raises(RebuildError, match=r"names no 'test_filling\.Name'") as caught:
        tk.load_model(tmp_path / "old.pth", classes={"test_filling.Name": Named})
    assert "test_filling.Named" in caught.value.hint
