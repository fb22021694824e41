"""Loading: planned before it acts, loud about what does not fit, and the model untouched until all is allowed."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.errors import AmbiguousMatchError, IncompatibleCheckpointError, LoadError, PartialLoadError


def two() -> tuple[TinyNet, TinyNet]:
    torch.manual_seed(0)
    return TinyNet(), TinyNet()


def test_a_path_loads_and_is_reported(tmp_path: Path) -> None:
    a, b = two()
    torch.save(a.state_dict(), tmp_path / "a.pth")
    report = tk.load_into(b, tmp_path / "a.pth")
    assert state_bits(a) == state_bits(b)
    assert set(report.loaded) == set(a.state_dict()) and report.coverage == 1.0 and report.applied
    assert (report.missing, report.unexpected, report.mismatched, report.adapted) == ((), (), (), ())
    assert {move.rule for move in report.moves} == {"exact"}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "ema"])
def test_the_model_is_found_inside_a_training_checkpoint(tmp_path: Path, key: str) -> None:
    a, b = two()
    opt = torch.optim.Adam(a.parameters())
    torch.save({"epoch": 3, key: a.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "a.pth")
    tk.load_into(b, tk.open(tmp_path / "a.pth"))
    assert state_bits(a) == state_bits(b)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"net.encoder.{name}",
        lambda name: name.replace("conv.", "conv._fsdp_wrapped_module."),
    ],
)
def test_prefixes_on_the_source_are_seen_through(rename) -> None:
    a, b = two()
    report = tk.load_into(b, {rename(name): tensor for name, tensor in a.state_dict().items()})
    assert state_bits(a) == state_bits(b)
    assert "prefixes" in {move.rule for move in report.moves}


def test_prefixes_on_the_model_are_seen_through() -> None:
    a, b = two()
    tk.load_into(nn.ModuleDict({"backbone": b}), a.state_dict())
    assert state_bits(a) == state_bits(b)
    tk.load_into(nn.DataParallel(b), nn.DataParallel(a))
    with torch.no_grad():
        a.head.bias.add_(1)
    tk.load_into(torch.compile(b, backend="eager"), a)
    assert state_bits(a) == state_bits(b)


def test_nothing_is_loaded_that_does_not_fit_and_nothing_silently(tmp_path: Path) -> None:
    a, _ = two()
    b = TinyNet(classes=5)
    state = a.state_dict() | {"old.weight": torch.ones(3)}
    del state["conv.bias"]
    before = state_bits(b)
    with pytest.raises(IncompatibleCheckpointError) as caught:
        tk.load_into(b, state)
    assert state_bits(b) == before
    report = caught.value.report
    assert report.missing == ("conv.bias",)
    assert report.unexpected == ("old.weight",)
    assert report.mismatched == ("head.weight", "head.bias")
    text = str(caught.value)
    for name in ("conv.bias", "old.weight", "head.weight", "[3, 4] in the source, [5, 4] in the model"):
        assert name in text
    assert "allow=" in caught.value.hint

    for allow in (["head.*", "old.weight"], ["head", "conv.bias"], "conv"):
        with pytest.raises(IncompatibleCheckpointError):
            tk.load_into(b, state, allow=allow)
    assert state_bits(b) == before
    report = tk.load_into(b, state, allow=["head.*", "conv.bias", "old"])
    own = {name: tensor for name, tensor in b.state_dict().items() if name != "tied.weight"}
    loaded = sum(t.numel() for name, t in own.items() if not name.startswith("head") and name != "conv.bias")
    assert report.coverage == loaded / sum(t.numel() for t in own.values())
    assert torch.equal(b.fc.weight, a.fc.weight) and "MISMATCHED" in str(report)


def test_the_hint_of_a_refusal_is_a_list_that_passes() -> None:
    a, b = two()
    state = a.state_dict()
    del state["head.weight"], state["head.bias"]
    with pytest.raises(IncompatibleCheckpointError) as caught:
        tk.load_into(b, state)
    allow = caught.value.hint.partition("allow=")[2]
    tk.load_into(b, state, allow=ast.literal_eval(allow))


def test_foreign_names_load_nothing_and_say_so() -> None:
    a, b = two()
    with pytest.raises(IncompatibleCheckpointError, match=r"0\.00 % of the model"):
        tk.load_into(b, {f"x{i}": tensor for i, tensor in enumerate(a.state_dict().values())})


def test_a_student_and_its_teacher_are_not_guessed_between() -> None:
    a, b = two()
    state = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in a.state_dict().items()}
    with pytest.raises(AmbiguousMatchError) as caught:
        tk.load_into(b, state)
    assert caught.value.candidates == ("strip student.", "strip teacher.")
    tk.load_into(b, state, rules=[tk.strip("teacher.")], allow=["student"])
    assert state_bits(a) == state_bits(b)
    tk.load_into(nn.ModuleDict({"x": b}), a.state_dict(), rules=[tk.add("x.")])


def test_a_few_coincidences_are_no_prefix() -> None:
    a, b = two()
    state = {f"stage.{name}.inner": tensor for name, tensor in a.state_dict().items()} | {
        "aux.head.bias": torch.ones(3)
    }
    report = tk.plan_load(b, state)
    assert report.loaded == ()


def test_dtypes_are_cast_between_floats_and_refused_to_integers() -> None:
    a, b = two()
    report = tk.load_into(b, copy.deepcopy(a).half())
    assert {move.cast_from for move in report.moves if move.target == "conv.weight"} == {"float16"}
    assert b.conv.weight.dtype == torch.float32 and torch.equal(b.conv.weight, a.conv.weight.half().float())
    state = a.state_dict() | {"bn.num_batches_tracked": torch.tensor(1.5)}
    with pytest.raises(IncompatibleCheckpointError, match="cannot become"):
        tk.load_into(b, state)


def test_tied_parameters_need_one_of_their_names_and_refuse_two_values() -> None:
    a, b = two()
    state = a.state_dict()
    del state["tied.weight"]
    report = tk.load_into(b, state)
    assert b.tied.weight is b.fc.weight and "tied.weight" in report.loaded and report.coverage == 1.0
    before = state_bits(b)
    with pytest.raises(IncompatibleCheckpointError, match="ties them"):
        tk.load_into(b, a.state_dict() | {"tied.weight": torch.zeros(4, 4)})
    assert state_bits(b) == before


def test_parameters_stay_the_same_objects_and_flags_stay(tmp_path: Path) -> None:
    a, b = two()
    tk.freeze(b, "conv")
    objects = [id(parameter) for parameter in b.parameters()]
    tk.save(a, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    tk.load_into(b, tmp_path / "a.safetensors")
    assert [id(parameter) for parameter in b.parameters()] == objects
    assert not b.conv.weight.requires_grad
    with torch.no_grad():
        b.conv.weight.fill_(7)  # no view of the file
    assert (tmp_path / "a.safetensors").read_bytes() == data


def test_meta_parameters_are_made_where_asked_and_stay_tied() -> None:
    a, _ = two()
    with torch.device("meta"):
        b = TinyNet()
    tk.load_into(b, a, device="cpu")
    assert state_bits(a) == state_bits(b)
    assert b.tied.weight is b.fc.weight and isinstance(b.conv.weight, nn.Parameter)


def test_the_plan_changes_nothing_and_can_be_checked() -> None:
    a, b = two()
    before = state_bits(b)
    report = tk.plan_load(b, a)
    report.check()
    assert not report.applied and report.coverage == 1.0 and state_bits(b) == before
    assert "copy" in str(report)


def test_a_copy_that_fails_half_way_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two()

    def broken(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is a.fc.weight:
            raise OSError("the network is gone")
        return tensor.detach()

    monkeypatch.setattr("torchkeep.applying.value_of", broken)
    state = a.state_dict(keep_vars=True)
    del state["tied.weight"]
    with pytest.raises(PartialLoadError, match="the network is gone") as caught:
        tk.load_into(b, state)
    assert "conv.weight" in caught.value.applied and "fc.weight" not in caught.value.applied


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    _, b = two()
    with pytest.raises(LoadError, match="no tensors: epoch"):
        tk.load_into(b, {"epoch": 3, "state_dict": {}})
    with pytest.raises(LoadError, match="cannot be taken from a int"):
        tk.load_into(b, 3)
    with pytest.raises(tk.errors.CheckpointNotFoundError):
        tk.load_into(b, tmp_path / "no.pth")
    with pytest.raises(ValueError, match="there is no rule 'fuzzy'"):
        tk.load_into(b, b, rules=["fuzzy"])


def test_a_fold_counts_layers_in_the_report() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert "{0..11}.weight" in str(tk.plan_load(model, model))


# -- what an adversarial review found ---------------------------------------------------------------------------


class Extra(nn.Module):
    def __init__(self, value: float, tensor: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.value, self.tensor = value, tensor

    def get_extra_state(self) -> object:
        return torch.tensor(self.value) if self.tensor else {"value": self.value, "t": torch.tensor([self.value])}

    def set_extra_state(self, state: object) -> None:
        self.value = float(state["value"] if isinstance(state, dict) else state)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("how", ["module", "state dict", "pth", "safetensors", "prefix"])
def test_extra_state_is_loaded_and_missed_like_a_tensor(tmp_path: Path, tensor: bool, how: str) -> None:
    a, b = Extra(7.0, tensor), Extra(0.0, tensor)
    source: object = a if how == "module" else a.state_dict()
    if how == "prefix":
        source = {f"net.{name}": value for name, value in a.state_dict().items()}
    if how == "pth":
        source = tmp_path / "a.pth"
        torch.save({"state_dict": a.state_dict()}, source)
    if how == "safetensors":
        source = tmp_path / "a.safetensors"
        tk.save(a, source)
        assert tk.verify(source).ok
    report = tk.load_into(b, source)
    assert b.value == 7.0 and "_extra_state" in report.loaded and report.coverage == 1.0
    with pytest.raises(IncompatibleCheckpointError, match="_extra_state"):
        tk.load_into(nn.ModuleDict({"fc": nn.Linear(1, 1)}), source)
    with pytest.raises(IncompatibleCheckpointError, match="_extra_state"):
        tk.load_into(b, {"fc.weight": a.fc.weight, "fc.bias": a.fc.bias})


def test_a_state_dict_hook_that_copies_does_not_hide_the_parameters() -> None:
    class Casting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_state_dict_post_hook(self.cast)

        @staticmethod
        def cast(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
            for name in list(state):
                state[name] = state[name].detach().clone()

    a, b = Casting(), Casting()
    tk.load_into(b, a)
    assert torch.equal(a.weight, b.weight)


def test_an_auxiliary_head_is_not_taken_for_the_head() -> None:
    a, b = two()
    state = a.state_dict() | {"aux.head.weight": torch.ones(3, 4), "aux.head.bias": torch.ones(3)}
    del state["head.weight"], state["head.bias"]
    with pytest.raises(IncompatibleCheckpointError) as caught:
        tk.load_into(b, state)
    assert "tk.strip('aux.')" in caught.value.hint
    report = tk.load_into(b, state, allow=["head", "aux"])
    assert "head.weight" not in report.loaded
    tk.load_into(b, state, rules=["exact", tk.strip("aux.")])
    assert (b.head.weight == 1).all()


def test_casts_that_lose_more_than_digits_are_refused() -> None:
    class Holder(nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("x", value)

    for source, target in [
        (torch.tensor([300]), torch.tensor([0], dtype=torch.int8)),
        (torch.tensor([1e30]), torch.tensor([0.0], dtype=torch.float16)),
        (torch.tensor([1 + 2j]), torch.tensor([0.0])),
        (torch.tensor([1.5]), torch.tensor([0])),
    ]:
        model = Holder(target)
        with pytest.raises(IncompatibleCheckpointError):
            tk.load_into(model, {"x": source})
        assert model.x.item() == 0
    for source, target in [
        (torch.tensor([float("inf"), 2.0]), torch.zeros(2, dtype=torch.float16)),
        (torch.tensor([3], dtype=torch.int32), torch.tensor([0])),
        (torch.tensor([True]), torch.tensor([0], dtype=torch.uint8)),
        (torch.tensor([2]), torch.tensor([0.0])),
    ]:
        tk.load_into(Holder(target), {"x": source})
        assert torch.equal(target, source.to(target.dtype))


def test_tied_names_with_nan_are_equal_to_themselves() -> None:
    a, b = two()
    with torch.no_grad():
        a.fc.weight[0, 0] = float("nan")
    tk.load_into(b, {name: tensor.clone() for name, tensor in a.state_dict().items()})
    assert b.fc.weight.isnan().sum() == 1


def test_sources_and_models_without_values_are_named() -> None:
    a, b = two()
    with pytest.raises(LoadError, match="meta device"):
        tk.load_into(b, {"conv.weight": torch.empty(1, device="meta")})
    with pytest.raises(LoadError, match="sparse"):
        tk.load_into(b, {"conv.weight": torch.eye(2).to_sparse()})
    with pytest.raises(LoadError, match="no shape yet"):
        tk.load_into(nn.Sequential(nn.LazyLinear(2)), {"0.weight": torch.ones(2, 2)})
    with torch.device("meta"):
        empty = TinyNet()
    report = tk.load_into(empty, a)
    assert any("scratch" in note for note in report.notes), "a passing buffer has no values in any file"


def test_what_a_newcomer_gets_wrong_is_named(tmp_path: Path) -> None:
    a, b = two()
    with pytest.raises(LoadError, match="the model comes first"):
        tk.load_into(tmp_path / "x.pth", b)
    with pytest.raises(LoadError, match="no weights in a state dict"):
        tk.load_into(b, {}, allow="*")
    report = tk.load_into(b, a, allow=["head", "haed.*"])
    assert any("haed" in note for note in report.notes) and not any("'head'" in note for note in report.notes)
    tk.load_into(nn.ModuleDict({"x": b}), a.state_dict(), rules=tk.add("x."))
    with pytest.raises(TypeError, match=r"tk\.open"):
        tk.inspect("x.pth")
    with pytest.raises(TypeError, match="by its path"):
        tk.open(b)
    assert torch.equal(tk.open(_saved(a, tmp_path)).model.load()["conv.weight"], a.conv.weight)


def _saved(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "saved.pth")
    return folder / "saved.pth"


def test_names_that_match_in_another_shape_are_not_said_to_match_nothing() -> None:
    with pytest.raises(IncompatibleCheckpointError) as caught:
        tk.load_into(nn.Linear(2, 3), nn.Linear(2, 2))
    assert "no name matches" not in str(caught.value) and "allow=['weight', 'bias']" in str(caught.value)
    with pytest.raises(IncompatibleCheckpointError, match="no name matches"):
        tk.load_into(nn.Linear(2, 2), {"other": torch.ones(7)})


def test_freezing_as_a_source_that_does_not_say_how_is_said_to_do_nothing() -> None:
    model = nn.Linear(2, 2)
    assert any(
        "freeze=True had nothing to do" in note for note in tk.load_into(model, nn.Linear(2, 2), freeze=True).notes
    )
    assert tk.load_into(model, nn.Linear(2, 2)).notes == tk.load_into(model, nn.Linear(2, 2), freeze=False).notes == ()
