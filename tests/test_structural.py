"""Matching by structure: entirely other names, another head and stem, extra layers; and never a wrong guess."""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mutations
import torchkeep as tk
from architectures import TWINS, Lite, ResNet, ResNetStaged, Vit, with_extras
from models import TinyNet, state_bits
from torchkeep.core.plan import Pair, Specs, make_plan
from torchkeep.core.tensors import TensorSpec
from torchkeep.errors import AmbiguousMatchError, IncompatibleCheckpointError, LoadError
from torchkeep.rules._alignment import NEVER, align
from torchkeep.rules.structural import Structural

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def specs(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def specs_of(model: nn.Module) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def match(target: Specs, source: Specs, **options: object) -> dict[str, str]:
    return {to: pair.source for to, pair in Structural(**options).match(target, source, {}).items()}


# -- real weights -------------------------------------------------------------------------------------------------


def test_real_weights_reach_a_network_with_other_names_bit_for_bit() -> None:
    model, known = Lite().eval(), EfficientNetLite0().eval()
    tk.load_into(known, imagenet_weights())
    assert not model.state_dict().keys() & known.state_dict().keys()
    report = tk.load_into(model, imagenet_weights(), rules=["structural"])
    assert len(report.moves) == 296 and report.coverage == 1
    assert min(move.confidence for move in report.moves) > 0.99
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(model(x), known(x))


def test_real_weights_for_other_classes_and_channels() -> None:
    model = Lite(classes=120, channels=1)
    before = copy.deepcopy(model.state_dict())
    changed = ("entry.filter.weight", "output.weight", "output.bias")
    with pytest.raises(IncompatibleCheckpointError) as caught:
        tk.load_into(model, imagenet_weights(), rules=["structural"])
    report = caught.value.report
    assert (len(report.moves), report.mismatched, report.missing, report.unexpected) == (293, changed, (), ())
    report = tk.load_into(model, imagenet_weights(), rules=["structural"], allow=["entry.filter", "output"])
    assert len(report.moves) == 293
    after, own = model.state_dict(), tk.open(imagenet_weights()).model
    assert all(torch.equal(after[name], before[name]) for name in changed)
    assert all(torch.equal(after[move.target], own[move.source].load()) for move in report.moves)


# -- architectures built twice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("name", TWINS)
def test_twins_compute_the_same_with_layers_shuffled_in(name: str, turned: bool) -> None:
    twins = TWINS[name]
    one, other = (twins.other, twins.one) if turned else (twins.one, twins.other)
    torch.manual_seed(0)
    source = one(10, twins.channels).eval()
    for seed in (None, 1, 2):
        model = other(10, twins.channels).eval()
        count = len(model.state_dict())
        if seed is not None:
            with_extras(model, seed)
        report = tk.load_into(model, source, rules=["structural"], allow=["re:extra"])
        assert len(report.moves) == count == len(source.state_dict())
        assert min(move.confidence for move in report.moves) >= 0.95
        x = twins.example(twins.channels)
        with torch.no_grad():
            assert torch.equal(model(x), source(x))


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("name", TWINS)
def test_twins_for_other_classes_and_channels(name: str, turned: bool) -> None:
    twins = TWINS[name]
    one, other = (twins.other, twins.one) if turned else (twins.one, twins.other)
    source, whole = one(10, twins.channels), other(10, twins.channels)
    model = other(7, twins.channels * 2)
    truth = {move.target: move.source for move in tk.plan_load(whole, source, rules=["structural"]).moves}
    report = tk.plan_load(model, source, rules=["structural"])
    assert len(report.mismatches) == twins.changed and not report.missing and not report.unexpected
    assert {one.target: one.source for one in (*report.moves, *report.mismatches)} == truth


def test_layers_that_the_source_has_and_the_model_has_not() -> None:
    source = with_extras(Vit(), 3)
    report = tk.plan_load(TWINS["vit"].other(10, 3), source, rules=["structural"])
    assert len(report.moves) == 80 and all("extra" in name for name in report.unexpected) and not report.missing


def test_a_way_around_that_is_registered_first_is_not_mistaken() -> None:
    """In the first block it has the shape of the last convolution, and names say nothing: that is refused."""
    source, model = ResNet(), ResNetStaged(around_first=True)
    truth = {move.source: move.target for move in tk.plan_load(ResNetStaged(), source, rules=["structural"]).moves}
    with pytest.raises(AmbiguousMatchError, match=r"layer1\.0\.conv3\.weight or layer1\.0\.downsample\.0\.weight"):
        tk.load_into(model, source, rules=["structural"])
    report = tk.plan_load(model, source, rules=[tk.structural(ambiguous="leave")])
    assert len(report.moves) > 200
    assert all(truth[move.source] == move.target for move in report.moves)


# -- what cannot be known -----------------------------------------------------------------------------------------


def stack(count: int, width: int = 8, name: str = "layers") -> dict[str, tuple[int, ...]]:
    """Equal blocks of a norm and two linear layers, between an embedding and a head."""
    shapes: dict[str, tuple[int, ...]] = {"tokens.weight": (50, width)}
    for number in range(count):
        shapes |= {f"{name}.{number}.norm.weight": (width,), f"{name}.{number}.norm.bias": (width,)}
        shapes |= {f"{name}.{number}.up.weight": (4 * width, width), f"{name}.{number}.down.weight": (width, 4 * width)}
    return shapes | {"head.weight": (5, width), "head.bias": (5,)}


@pytest.mark.parametrize(("count", "other"), [(12, 11), (11, 12), (3, 2), (2, 1), (12, 6), (100, 99)])
def test_which_of_equal_blocks_is_gone_is_not_guessed(count: int, other: int) -> None:
    target, source = specs(stack(count)), specs(stack(other, name="blocks"))
    with pytest.raises(AmbiguousMatchError) as caught:
        match(target, source)
    assert caught.value.candidates and "tk.rename" in caught.value.hint and "leave" in caught.value.hint
    assert all(" <- " in text for text in caught.value.candidates)
    left = match(target, source, ambiguous="leave")
    assert left == {name: name for name in ("tokens.weight", "head.weight", "head.bias")}


def test_what_the_user_says_settles_it() -> None:
    target, source = specs(stack(11)), specs(stack(12, name="blocks"))
    without_five = tk.rename({f"blocks.{n}": f"layers.{n - (n > 5)}" for n in range(12) if n != 5})
    plan = make_plan(target, source, [without_five, Structural()])
    assert not plan.missing and {name.split(".")[1] for name in plan.unexpected} == {"5"}


def test_equally_many_equal_blocks_are_no_question() -> None:
    target, source = specs(stack(12)), specs(stack(12, name="blocks"))
    assert match(target, source) == dict(zip(target, source, strict=True))


def test_a_student_and_its_teacher_are_not_guessed_between() -> None:
    source = specs({f"{who}.{name}": shape for who in ("student", "teacher") for name, shape in stack(3).items()})
    with pytest.raises(AmbiguousMatchError, match=r"student\.tokens\.weight or teacher\.tokens\.weight"):
        match(specs(stack(3, name="x")), source)


def test_structures_that_do_not_line_up_are_left_alone() -> None:
    assert match(specs_of(TinyNet()), specs_of(Vit())) == {}
    assert match(specs_of(Vit()), specs_of(ResNet())) == {}


def test_queries_are_never_taken_for_keys() -> None:
    """In whatever order an attention registers them, as long as names say which is which."""

    def attention(*names: str) -> Specs:
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (20, 8)}
        for number in range(3):
            shapes |= {f"l.{number}.{name}.weight": (8, 8) for name in names} | {f"l.{number}.norm.weight": (8,)}
        return specs(shapes | {"head.weight": (3, 8)})

    target, source = attention("q_proj", "k_proj", "v_proj", "out"), attention("key", "value", "query", "dense")
    found = match(target, source)
    assert len(found) == len(target)
    assert found["l.1.q_proj.weight"] == "l.1.query.weight" and found["l.1.k_proj.weight"] == "l.1.key.weight"
    assert found["l.2.out.weight"] == "l.2.dense.weight"
    some = attention("wq", "wk", "wv", "wo")
    assert match(target, some) == dict(zip(target, some, strict=True))


def test_weights_that_lie_the_other_way_round_are_not_loaded() -> None:
    """Square ones would fit, and be wrong."""

    def blocks(turned: bool) -> Specs:
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50, 8), "wpe.weight": (16, 8)}
        for number in range(4):
            sizes = {"attn": (24, 8), "proj": (8, 8), "fc": (32, 8), "out": (8, 32)}
            for name, size in sizes.items():
                shapes[f"h.{number}.{name}.weight"] = size[::-1] if turned else size
                shapes[f"h.{number}.{name}.bias"] = size[:1]
            shapes[f"h.{number}.ln.weight"] = shapes[f"h.{number}.ln.bias"] = (8,)
        return specs(shapes)

    target, source = blocks(False), blocks(True)
    found = match(target, source, ambiguous="leave")
    assert "wte.weight" in found
    assert not [name for name in found if "proj" in name]
    assert match(target, target) == {name: name for name in target}


# -- order --------------------------------------------------------------------------------------------------------


def test_buffers_after_all_parameters_are_no_hindrance() -> None:
    source = dict(ResNet().state_dict())
    buffers = [name for name in source if "running" in name or "num" in name]
    late = {name: source[name] for name in source if name not in buffers} | {name: source[name] for name in buffers}
    report = tk.plan_load(ResNetStaged(), late, rules=["structural"])
    assert len(report.moves) == 320 and not report.unexpected


def test_a_file_whose_names_were_sorted_has_lost_its_order(tmp_path: Path) -> None:
    source = ResNet()
    save_file(source.state_dict(), tmp_path / "sorted.safetensors")
    with pytest.raises(AmbiguousMatchError, match="sorted, so that the order of its layers is lost") as caught:
        tk.load_into(ResNetStaged(), tmp_path / "sorted.safetensors", rules=["structural"])
    assert caught.value.candidates and "tk.save" in caught.value.hint
    tk.save(source, tmp_path / "kept.safetensors")
    assert len(tk.load_into(ResNetStaged(), tmp_path / "kept.safetensors", rules=["structural"]).moves) == 320


def test_sorted_names_that_are_numbers_count_on() -> None:
    layers = [
        layer for width in range(8, 20) for layer in (nn.Linear(width, width + 1), nn.Linear(width + 1, width + 1))
    ]
    source, model = (
        nn.Sequential(*layers),
        nn.ModuleDict({f"part_{chr(97 + n)}": layer for n, layer in enumerate(copy.deepcopy(layers))}),
    )
    with torch.no_grad():
        [parameter.normal_() for parameter in source.parameters()]
    names = sorted(source.state_dict())
    assert names.index("10.weight") < names.index("2.weight")
    report = tk.load_into(model, {name: source.state_dict()[name] for name in names}, rules=["structural"])
    assert len(report.moves) == 48
    assert [bits for _, bits in state_bits(model)] != []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_sorted_shards_and_networks_without_a_bias() -> None:
    def network(*names: str) -> dict[str, tuple[int, ...]]:
        inner = {f"layers.{n}.{name}.weight": (8, 8) for n in range(12) for name in names}
        return {"tokens.weight": (50, 8), **inner, "norm.weight": (8,), "head.weight": (50, 8)}

    target = specs(network("query", "key", "value", "out", "up", "down"))
    names = list(source := specs(network("wq", "wk", "wv", "wo", "w1", "w2")))
    assert match(target, source) == dict(zip(target, source, strict=True))
    for cut in (len(names), 40):  # one file, or two of which each is sorted and between which a layer is torn
        shards = {name: source[name] for part in (names[:cut], names[cut:]) for name in sorted(part)}
        with pytest.raises(AmbiguousMatchError, match="sorted"):
            match(target, shards)


def test_shapes_alone_suffice_where_the_order_is_lost_and_no_two_are_alike() -> None:
    target = specs({"z.weight": (3, 4), "z.bias": (3,), "a.weight": (5, 3), "a.bias": (5,)})
    source = specs({"enter.bias": (3,), "enter.weight": (3, 4), "leave.bias": (5,), "leave.weight": (5, 3)})
    assert match(target, source)["a.weight"] == "leave.weight" and len(match(target, source)) == 4


# -- ties, kinds, dtypes and odd sizes ----------------------------------------------------------------------------


def test_tied_names_of_the_model_do_not_disturb() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.norm = nn.Embedding(9, 4), nn.Linear(4, 6), nn.LayerNorm(6)
            self.back, self.out = nn.Linear(6, 4), nn.Linear(4, 9, bias=False)
            self.out.weight = self.embed.weight

    source, model = Tied(), Tied()
    for state in (source.state_dict(), {name: t for name, t in source.state_dict().items() if name != "out.weight"}):
        with torch.no_grad():
            [parameter.add_(1) for parameter in source.parameters()]
        report = tk.load_into(model, {f"x.{name}": tensor for name, tensor in state.items()}, rules=["structural"])
        assert report.coverage == 1 and state_bits(model) == state_bits(source)


def test_norms_linears_and_convolutions_are_not_mixed_up() -> None:
    target = specs({"a.weight": (4, 4), "b.weight": (4,), "b.bias": (4,), "c.weight": (4, 4, 1, 1)})
    batch = {"b.weight": (4,), "b.bias": (4,), "b.running_mean": (4,), "b.running_var": (4,)}
    assert match(target, specs({"x.weight": (4, 4), **batch, "z.weight": (4, 4, 1, 1)})) == {
        "a.weight": "x.weight",
        "c.weight": "z.weight",
    }


def test_a_bias_that_one_side_lacks_leaves_the_weight_paired() -> None:
    target = specs({**stack(4), **{f"layers.{n}.up.bias": (32,) for n in range(4)}})
    source = specs(stack(4, name="x"))
    found = Structural().match(target, source, {})
    assert {pair.source for pair in found.values()} == set(source)
    assert found["layers.1.up.weight"].confidence < found["layers.1.down.weight"].confidence


def test_integers_are_not_paired_with_floats_and_half_precision_is() -> None:
    target = specs(stack(2))
    half = {name: TensorSpec(torch.bfloat16, spec.shape) for name, spec in specs(stack(2, name="x")).items()}
    assert match(target, half) == dict(zip(target, half, strict=True))
    whole = {name: TensorSpec(torch.int64, spec.shape) for name, spec in half.items()}
    assert match(target, whole) == {}


def test_zero_elements_scalars_and_odd_names() -> None:
    target = specs(
        {"": (), "a..b.weight": (0, 3), "ä.🙂": (2, 2), "c.weight": (3, 3), "c.bias": (3,), "9" * 5000: (1,)}
    )
    source = specs({"scale": (), "x.weight": (0, 3), "y": (2, 2), "z\n.weight": (3, 3), "z\n.bias": (3,), "t": (1,)})
    assert match(target, source) == dict(zip(target, source, strict=True))
    assert match(target, {}) == match({}, target) == {}


def test_wrappers_meta_and_deep_copies(tmp_path: Path) -> None:
    source = TWINS["vgg16"].one(10, 3)
    torch.save(nn.DataParallel(source).state_dict(), tmp_path / "vgg.pth")
    with torch.device("meta"):
        model = TWINS["vgg16"].other(10, 3)
    report = tk.load_into(
        nn.DataParallel(copy.deepcopy(model).to_empty(device="cpu")), tmp_path / "vgg.pth", rules=["structural"]
    )
    assert len(report.moves) == 32
    assert len(tk.load_into(model, tmp_path / "vgg.pth", rules=["structural"], assign=True).moves) == 32
    compiled = torch.compile(TWINS["vgg16"].other(10, 3), backend="eager")
    assert len(tk.load_into(compiled, source, rules=["structural"]).moves) == 32


def test_old_and_new_weight_norm_are_one_structure() -> None:
    new, old = (
        {
            "in.weight": (4, 3),
            **{f"{name}.{i}{part}": size for i in range(3) for part, size in parts.items()},
            "out.weight": (2, 4),
        }
        for name, parts in (
            (
                "a",
                {
                    ".bias": (4,),
                    ".parametrizations.weight.original0": (4, 1),
                    ".parametrizations.weight.original1": (4, 4),
                },
            ),
            ("b", {".bias": (4,), ".weight_g": (4, 1), ".weight_v": (4, 4)}),
        )
    )
    found = match(specs(new), specs(old))
    assert found["a.1.parametrizations.weight.original1"] == "b.1.weight_v" and len(found) == len(new)


def test_a_layer_that_became_wider_is_paired_with_what_it_was() -> None:
    source = specs_of(TWINS["mobilenet-v2"].one(10, 3))
    target = dict(specs_of(TWINS["mobilenet-v2"].other(10, 3)))
    truth = match(target, source)
    for name in (
        "stage3.1.expand.weight",
        "stage3.1.expand_norm.weight",
        "stage3.1.depth.weight",
        "stage3.1.depth_norm.weight",
    ):
        target[name] = TensorSpec(torch.float32, (400, *target[name].shape[1:]))
    target["stage3.1.project.weight"] = TensorSpec(torch.float32, (64, 400, 1, 1))
    found = Structural().match(target, source, {})
    assert {name: pair.source for name, pair in found.items()} == truth
    assert found["stage3.1.depth.weight"].confidence < found["stem.weight"].confidence


def test_a_replaced_layer_gives_nothing_to_what_replaced_it() -> None:
    """Its bias would fit, and be another layer's."""
    source = specs({**stack(1), "mid.weight": (8, 8, 3, 3), "mid.bias": (8,), "last.weight": (2, 5)})
    target = specs({**stack(1, name="x"), "new.weight": (8, 8, 1, 1), "new.bias": (8,), "end.weight": (2, 5)})
    assert not {"new.weight", "new.bias"} & match(target, source).keys()


def test_too_many_layers_are_refused_before_they_take_the_memory() -> None:
    many = specs({f"experts.{number}.weight": (2, 2) for number in range(4000)})
    with pytest.raises(LoadError, match="4000 layers of the model and 4000 of the source"):
        match(many, {f"x.{name}": spec for name, spec in many.items()})


def test_options_that_mean_nothing_are_refused() -> None:
    for options in ({"threshold": 0.5}, {"threshold": 1}, {"ambiguous": "guess"}):
        with pytest.raises(ValueError, match="not"):
            Structural(**options)


def test_the_threshold_decides() -> None:
    target, source = specs(stack(4)), specs(stack(4, name="x"))
    assert len(match(target, source, threshold=0.9)) == len(target)
    assert match(target, source, threshold=0.99999) == {} or len(match(target, source, threshold=0.99999)) < len(target)


def test_two_thousand_tensors_are_quick() -> None:
    target, source = specs(stack(500)), specs(stack(500, name="x"))
    various = {name: TensorSpec(torch.float32, (7 + place, 3)) for place, name in enumerate(source)}
    for one, other in ((target, source), (various, {f"y.{name}": spec for name, spec in various.items()})):
        begun = time.perf_counter()
        assert len(match(one, other)) == len(one) == 2003
        assert time.perf_counter() - begun < 5


# -- the alignment itself -----------------------------------------------------------------------------------------


def all_alignments(n: int, m: int, start: tuple[int, int] = (0, 0)) -> list[list[tuple[int, int]]]:
    """Every set of pairs that keeps both orders."""
    found: list[list[tuple[int, int]]] = [[]]
    for i in range(start[0], n):
        for j in range(start[1], m):
            found += [[(i, j), *rest] for rest in all_alignments(n, m, (i + 1, j + 1))]
    return found


def worth(pairs: list[tuple[int, int]], scores: Tensor, opening: float, going_on: float) -> float:
    n, m = scores.shape
    total, last = float(sum(scores[i, j] for i, j in pairs)), (-1, -1)
    for pair in (*pairs, (n, m)):
        total += sum(opening + going_on * (gap - 1) for gap in (pair[0] - last[0] - 1, pair[1] - last[1] - 1) if gap)
        last = pair
    return total


def test_the_alignment_is_the_best_of_all_and_so_is_every_pair_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        n, m = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
        scores = torch.randn(n, m, generator=generator, dtype=torch.float64) * 3
        scores[torch.rand(n, m, generator=generator) < 0.2] = NEVER
        known = [(pairs, worth(pairs, scores, -1.4, -0.6)) for pairs in all_alignments(n, m)]
        found = align(scores.numpy(), -1.4, -0.6)
        assert found.best == pytest.approx(max(value for _, value in known)), trial
        for i in range(n):
            alone = max(value for pairs, value in known if i not in [a for a, _ in pairs])
            assert found.alone[i] == pytest.approx(alone)
            for j in range(m):
                through = max(value for pairs, value in known if (i, j) in pairs)
                assert found.through[i, j] == pytest.approx(through) or through < NEVER / 2 > found.through[i, j]


# -- names that changed places -------------------------------------------------------------------------------------


def branches(*names: str) -> nn.Module:
    net = nn.Module()
    net.stem = nn.Linear(3, 8)
    for name in names:
        setattr(net, name, nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)))
    net.head = nn.Linear(8, 2)
    return net


@pytest.mark.parametrize("names", [("left", "right"), ("encoder", "decoder"), ("fc1", "fc2"), ("theta", "phi", "g")])
def test_equal_layers_that_changed_places_are_not_paired_against_their_names(names: tuple[str, ...]) -> None:
    theirs = {f"x.{name}": tensor for name, tensor in branches(*names).state_dict().items()}
    ours = branches(*names[1:], names[0])
    with pytest.raises(AmbiguousMatchError, match="changed places"):
        tk.plan_load(ours, theirs, rules=["structural"])
    left = tk.plan_load(ours, theirs, rules=[tk.structural(ambiguous="leave")])
    assert {move.target for move in left.moves} == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    known = [tk.rename({f"x.{name}": name for name in names}), "structural"]
    assert all(move.source == f"x.{move.target}" for move in tk.load_into(ours, theirs, rules=known).moves)


def normed(order: str) -> nn.Module:
    net = nn.Module()
    net.embed, net.blocks = nn.Embedding(5, 8), nn.ModuleList()
    sizes = {"attn": (8, 8), "fc1": (8, 16), "fc2": (16, 8)}
    for _ in range(3):
        block = nn.Module()
        for name in order.split():
            setattr(block, name, nn.Linear(*sizes[name]) if name in sizes else nn.LayerNorm(8))
        net.blocks.append(block)
    net.head = nn.Linear(8, 3)
    return net


PRE, POST = "norm1 attn norm2 fc1 fc2", "attn norm1 fc1 fc2 norm2"


@pytest.mark.parametrize(("ours", "theirs"), [(PRE, POST), (POST, PRE)])
def test_norms_before_and_behind_what_they_are_for_are_not_off_by_one(ours: str, theirs: str) -> None:
    state = {f"x.{name}": tensor for name, tensor in normed(theirs).state_dict().items()}
    with pytest.raises(AmbiguousMatchError, match="changed places"):
        tk.plan_load(normed(ours), state, rules=["structural"])
    left = tk.plan_load(normed(ours), state, rules=[tk.structural(ambiguous="leave")]).moves
    assert len(left) == 21 and all(move.source == f"x.{move.target}" for move in left)
    same = {f"x.{name}": tensor for name, tensor in normed(ours).state_dict().items()}
    assert len(tk.plan_load(normed(ours), same, rules=["structural"]).moves) == len(same)


def test_less_than_sure_is_not_shown_as_sure() -> None:
    theirs = {f"x.{name}": tensor for name, tensor in branches("a", "b").state_dict().items()}
    report = tk.plan_load(branches("c", "d"), theirs, rules=["structural"])
    assert 0.99 < min(move.confidence for move in report.moves) < 1
    assert "confidence 0.99" in str(report) and "confidence 1.00" not in str(report)


def test_a_list_that_lost_a_member_did_not_change_places() -> None:
    theirs = {f"x.{name}": tensor for name, tensor in branches("b1", "b2", "b3").state_dict().items()}
    ours = branches("b2", "b3", "b4")
    assert len(tk.plan_load(ours, theirs, rules=["structural"]).moves) == len(theirs)


# -- architectures that are changed at random ---------------------------------------------------------------------


def test_changed_architectures_are_never_matched_wrongly_and_mostly_in_full() -> None:
    tally = mutations.mutants(240, seed=0)
    assert tally.wrong == [] and len(tally.replaced) < 5
    assert tally.clear > 60 and tally.matched >= 0.8 * tally.clear, str(tally)
    assert tally.pairs > 20_000 and set(tally.changes) == {"insert", "repeat", "delete", "drop", "widen"}


def test_the_judge_sees_a_wrong_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that zips what is left over is caught."""

    def zipped(self: Structural, target: Specs, source: Specs, paired: object) -> dict[str, Pair]:
        return {to: Pair(of, 1.0) for to, of in zip(target, source, strict=False)}

    monkeypatch.setattr(Structural, "match", zipped)
    tally = mutations.mutants(12, seed=0)
    assert len(tally.wrong) > 100
