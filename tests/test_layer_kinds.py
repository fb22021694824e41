"""Every kind of layer that torch.nn lists goes through a file and comes back, or is named here with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchkeep as tk
from models import state_bits
from torchkeep.errors import UnsavableError

Inputs = tuple[Any, ...]


def image(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(*shape),)


def pair(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(*shape), torch.randn(*shape))


def chances(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.rand(*shape), torch.rand(*shape))


def signs(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(*shape), torch.randn(*shape).sign())


def labelled(rows: int, classes: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(rows, classes), torch.randint(0, classes, (rows,)))


def unpool(shape: tuple[int, ...], pool: nn.Module) -> Callable[[], Inputs]:
    return lambda: tuple(pool(torch.randn(*shape)))


LINE, IMAGE, BODY = image(2, 4, 8), image(2, 4, 8, 8), image(2, 4, 4, 4, 4)

# name in torch.nn -> what makes one, and what is put into it
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    **{
        f"{name}{dims}d": (lambda name=name, dims=dims: getattr(nn, f"{name}{dims}d")(2), inputs)
        for name in (
            "AvgPool",
            "MaxPool",
            "AdaptiveAvgPool",
            "AdaptiveMaxPool",
            "ConstantPad",
            "CircularPad",
            "ZeroPad",
        )
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
        if name != "ConstantPad"
    },
    **{
        f"ConstantPad{dims}d": (lambda dims=dims: getattr(nn, f"ConstantPad{dims}d")(1, 0.5), inputs)
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"{name}{dims}d": (lambda name=name, dims=dims: getattr(nn, f"{name}{dims}d")(1), inputs)
        for name in ("ReflectionPad", "ReplicationPad")
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"LPPool{dims}d": (lambda dims=dims: getattr(nn, f"LPPool{dims}d")(2, 2), inputs)
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"{name}{dims}d": (
            lambda name=name, dims=dims: getattr(nn, f"{name}{dims}d")(4, 6, 3, padding=1, stride=2),
            inputs,
        )
        for name in ("Conv", "ConvTranspose")
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"BatchNorm{dims}d": (lambda dims=dims: getattr(nn, f"BatchNorm{dims}d")(4, momentum=None), inputs)
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"InstanceNorm{dims}d": (
            lambda dims=dims: getattr(nn, f"InstanceNorm{dims}d")(4, affine=True, track_running_stats=True),
            inputs,
        )
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"Dropout{dims}d": (lambda dims=dims: getattr(nn, f"Dropout{dims}d")(0.4), inputs)
        for dims, inputs in enumerate((LINE, IMAGE, BODY), 1)
    },
    **{
        f"MaxUnpool{dims}d": (
            lambda dims=dims: getattr(nn, f"MaxUnpool{dims}d")(2),
            unpool(shape, getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)),
        )
        for dims, shape in enumerate(((2, 4, 8), (2, 4, 8, 8), (2, 4, 4, 4, 4)), 1)
    },
    **{
        name: (lambda name=name: getattr(nn, name)(), image(3, 8))
        for name in [
            "CELU",
            "ELU",
            "Flatten",
            "GELU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "Identity",
            "LeakyReLU",
            "LogSigmoid",
            "Mish",
            "PReLU",
            "RReLU",
            "ReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Tanhshrink",
        ]
    },
    **{
        name: (lambda name=name: getattr(nn, name)(0.3), image(3, 8))
        for name in ("AlphaDropout", "Dropout", "FeatureAlphaDropout")
    },
    **{
        name: (lambda name=name: getattr(nn, name)(1), image(3, 8))
        for name in ("LogSoftmax", "Softmax", "Softmin", "GLU")
    },
    **{
        name: (lambda name=name: getattr(nn, name)(reduction="sum"), pair(3, 5))
        for name in ("HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "SmoothL1Loss", "PoissonNLLLoss")
    },
    **{name: (lambda name=name: getattr(nn, name)(), signs(3, 5)) for name in ("HingeEmbeddingLoss", "SoftMarginLoss")},
    **{name: (lambda name=name: getattr(nn, name)(4, 6), image(3, 4)) for name in ("GRUCell", "LSTMCell", "RNNCell")},
    **{
        name: (lambda name=name: getattr(nn, name)(4, 6, num_layers=2, bidirectional=True), image(5, 2, 4))
        for name in ("GRU", "LSTM", "RNN")
    },
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10]),
        lambda: (torch.randn(4, 8), torch.tensor([0, 6, 12, 19])),
    ),
    "BCELoss": (lambda: nn.BCELoss(torch.rand(3, 5)), chances(3, 5)),
    "BCEWithLogitsLoss": (lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(5)), chances(3, 5)),
    "Bilinear": (lambda: nn.Bilinear(4, 4, 3), pair(2, 4)),
    "CTCLoss": (
        lambda: nn.CTCLoss(blank=0),
        lambda: (
            torch.randn(12, 2, 5).log_softmax(2),
            torch.randint(1, 5, (2, 4)),
            torch.tensor([12, 10]),
            torch.tensor([4, 3]),
        ),
    ),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "CosineEmbeddingLoss": (
        lambda: nn.CosineEmbeddingLoss(0.2),
        lambda: (torch.randn(3, 5), torch.randn(3, 5), torch.tensor([1.0, -1, 1])),
    ),
    "CosineSimilarity": (lambda: nn.CosineSimilarity(1, 1e-6), pair(3, 5)),
    "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(torch.rand(5), label_smoothing=0.1), labelled(3, 5)),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(3, k=2), IMAGE),
    "Embedding": (lambda: nn.Embedding(9, 4, padding_idx=2), lambda: (torch.randint(0, 9, (3, 5)),)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 4, mode="max"), lambda: (torch.randint(0, 9, (3, 5)),)),
    "Fold": (lambda: nn.Fold((4, 5), (2, 3)), image(1, 18, 9)),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(3, output_ratio=0.5), IMAGE),
    "FractionalMaxPool3d": (
        lambda: nn.FractionalMaxPool3d(2, output_size=2, _random_samples=torch.rand(2, 4, 3)),
        BODY,
    ),
    "GaussianNLLLoss": (lambda: nn.GaussianNLLLoss(full=True), lambda: (*pair(3, 5)(), torch.rand(3, 5))),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4, eps=1e-4), IMAGE),
    "LayerNorm": (lambda: nn.LayerNorm([8, 8], bias=False), IMAGE),
    "Linear": (
        lambda: nn.Linear(8, 3, bias=False, dtype=torch.float64),
        lambda: (torch.randn(3, 8, dtype=torch.float64),),
    ),
    "LinearCrossEntropyLoss": (
        lambda: nn.LinearCrossEntropyLoss(4, 5, bias=True, options=nn.LinearCrossEntropyOptions(acc_policy="balanced")),
        lambda: (torch.randn(3, 4), torch.tensor([0, 4, 2])),
    ),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), IMAGE),
    "MarginRankingLoss": (lambda: nn.MarginRankingLoss(0.1), lambda: (*pair(4)(), torch.randn(4).sign())),
    "ModuleDict": (lambda: nn.ModuleDict({"a b": nn.Linear(2, 2), "é": nn.ReLU(), "none": nn.Identity()}), lambda: ()),
    "ModuleList": (lambda: nn.ModuleList([nn.Linear(2, 2), nn.ModuleList(), nn.ReLU()]), lambda: ()),
    "MultiLabelMarginLoss": (
        nn.MultiLabelMarginLoss,
        lambda: (torch.randn(1, 4), torch.tensor([[3, 0, -1, 1]])),
    ),
    "MultiLabelSoftMarginLoss": (lambda: nn.MultiLabelSoftMarginLoss(torch.rand(5)), chances(3, 5)),
    "MultiMarginLoss": (lambda: nn.MultiMarginLoss(p=2, weight=torch.rand(5)), labelled(3, 5)),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True, batch_first=True),
        lambda: (torch.randn(2, 3, 8), torch.randn(2, 5, 6), torch.randn(2, 5, 4)),
    ),
    "NLLLoss": (lambda: nn.NLLLoss(torch.rand(5), ignore_index=1), labelled(3, 5)),
    "NLLLoss2d": (nn.NLLLoss2d, lambda: (torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4)))),
    "PairwiseDistance": (lambda: nn.PairwiseDistance(3.0, keepdim=True), pair(3, 5)),
    "ParameterDict": (
        lambda: nn.ParameterDict({"w": torch.rand(2), "plain": 3, "b": nn.Parameter(torch.rand(1))}),
        lambda: (),
    ),
    "ParameterList": (lambda: nn.ParameterList([torch.rand(2), nn.Parameter(torch.rand(1)), "plain"]), lambda: ()),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), IMAGE),
    "RMSNorm": (lambda: nn.RMSNorm(8), IMAGE),
    "Sequential": (
        lambda: nn.Sequential(nn.Linear(8, 4), nn.Sequential(), nn.Dropout(0.2), nn.Linear(4, 2)),
        image(3, 8),
    ),
    "Softmax2d": (nn.Softmax2d, IMAGE),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), IMAGE),
    "Threshold": (lambda: nn.Threshold(0.1, 20), image(3, 8)),
    "Transformer": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        lambda: (torch.randn(2, 3, 8), torch.randn(2, 4, 8)),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2, nn.LayerNorm(8)),
        pair(3, 2, 8),
    ),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(8, 2, 16, activation="gelu"), pair(3, 2, 8)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        image(2, 3, 8),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.silu, norm_first=True),
        image(3, 2, 8),
    ),
    "TripletMarginLoss": (lambda: nn.TripletMarginLoss(swap=True), lambda: (*pair(3, 5)(), torch.randn(3, 5))),
    "TripletMarginWithDistanceLoss": (
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=nn.PairwiseDistance(1.0)),
        lambda: (*pair(3, 5)(), torch.randn(3, 5)),
    ),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 4)), image(3, 8)),
    "Unfold": (lambda: nn.Unfold((2, 3), padding=1), IMAGE),
    "Upsample": (lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"), IMAGE),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(size=(5, 6)), IMAGE),
}

LAZY = [name for name in nn.modules.__all__ if name.startswith("Lazy")]

NOT = {
    "Container": "torch warns of it on every use: it is Module under a name that it had before 0.2",
    "LinearCrossEntropyOptions": "a dataclass of options and no module; LinearCrossEntropyLoss above has one",
    "Module": "it computes nothing: it is kept as the base of all others",
    "RNNBase": "the base of GRU, LSTM and RNN, which cannot be run",
    "RNNCellBase": "the base of the cells, which cannot be run",
    **dict.fromkeys(
        LAZY, "its tensors have no shapes before the first batch; afterwards it is the layer that it became"
    ),
}


def test_the_table_has_every_kind_that_torch_lists() -> None:
    assert KINDS.keys().isdisjoint(NOT)
    assert sorted([*KINDS, *NOT]) == sorted(nn.modules.__all__)
    assert len(KINDS) >= 60


def outputs(model: nn.Module, inputs: Inputs) -> list[tuple[Any, ...]]:
    """What a layer gives, as bits."""
    torch.manual_seed(7)  # FractionalMaxPool2d draws where it pools, in eval mode too
    if not inputs:
        return []
    with torch.no_grad():
        given = model(*inputs)
    tensors: list[Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (tuple, list)):
            for one in value:
                walk(one)

    walk(given)
    assert tensors
    return [(one.dtype, tuple(one.shape), one.contiguous().numpy().tobytes()) for one in tensors]


def held(module: nn.Module) -> dict[str, Any]:
    """What a module holds that is no tensor, module or hook, as text."""
    skip = {"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"}
    own = {key: value for key, value in vars(module).items() if key not in skip and not key.startswith("_torchkeep_")}
    return {key: str(value) for key, value in sorted(own.items())}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Two of each kind, the first in eval mode, every other parameter frozen; and what came back of them."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("kinds") / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLLLoss2d and Transformer have warnings of their own
        model = nn.ModuleDict({name: nn.ModuleList([make(), make()]) for name, (make, _) in KINDS.items()})
        with torch.no_grad():
            for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
                if tensor.is_floating_point():
                    tensor.add_(torch.rand_like(tensor) * 0.1 * (number % 7 + 1))
        for both in model.values():
            both[0].eval()
            for number, parameter in enumerate(both.parameters()):
                parameter.requires_grad_(number % 2 == 0)
        report = tk.save(model, file)
        assert report.notes == ()
        return model, tk.load_model(file)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_kind_comes_back(name: str, models: tuple[nn.ModuleDict, nn.ModuleDict]) -> None:
    model, back = models[0][name], models[1][name]
    given = KINDS[name][1]()
    assert [type(one) for one in back.modules()] == [type(one) for one in model.modules()]
    assert [path for path, _ in back.named_modules()] == [path for path, _ in model.named_modules()]
    assert [one.training for one in back.modules()] == [one.training for one in model.modules()]
    assert [(key, p.requires_grad) for key, p in back.named_parameters()] == [
        (key, p.requires_grad) for key, p in model.named_parameters()
    ]
    assert [key for key, _ in back.named_buffers()] == [key for key, _ in model.named_buffers()]
    assert state_bits(back) == state_bits(model)
    assert repr(back) == repr(model)
    assert [held(one) for one in back.modules()] == [held(one) for one in model.modules()]
    assert outputs(back[0], given) == outputs(model[0], given)
    assert outputs(back[1].eval(), given) == outputs(model[1].eval(), given)


def test_lazy_layers_are_refused_before_the_first_batch_and_kept_after_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(UnsavableError, match="has no shape yet"):
        tk.save(model, tmp_path / "model.safetensors")
    model(torch.randn(4, 5))
    tk.save(model, tmp_path / "model.safetensors")
    back = tk.load_model(tmp_path / "model.safetensors")
    assert [type(one) for one in back] == [nn.Linear, nn.BatchNorm1d]
    assert outputs(back.eval(), (torch.ones(4, 5),)) == outputs(model.eval(), (torch.ones(4, 5),))


@pytest.mark.parametrize("name", ["GRU", "LSTM", "RNN"])
def test_recurrent_layers_train_what_they_compute_with(name: str, tmp_path: Path) -> None:
    tk.save(KINDS[name][0](), tmp_path / "model.safetensors")
    back = tk.load_model(tmp_path / "model.safetensors")
    before = outputs(back, (torch.ones(5, 2, 4),))
    with torch.no_grad():
        back.weight_ih_l0.zero_()
    assert outputs(back, (torch.ones(5, 2, 4),)) != before
