"""Facts of a model: they travel, they are refused when they are none, and a lineage shows without its files."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import torchkeep as tk
from models import TinyNet
from test_format import read_parts, write_parts
from torchkeep.cli.app import app
from torchkeep.core.about import with_parents
from torchkeep.errors import CheckpointNotFoundError, CorruptCheckpointError, LoadError, SaveError, UnsavableError

FULL: dict[str, Any] = {
    "licence": "Apache-2.0",
    "source": "https://example.org/ünï",
    "training_data": "flowers",
    "classes": ["rose", "tulip", 'od"d\n'],
    "preprocessing": {"mean": (0.5, float("inf")), "size": 224, "dtype": torch.float16, "$": {"deep": [None, True]}},
    "text": "anything",
}


def net(value: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def names(about: tk.About) -> list[str]:
    return [parent.name for parent in about.parents]


def header(path: Path) -> str:
    return tk.about(path).digest


@pytest.mark.parametrize(
    "given", [FULL, tk.About(**{**FULL, "classes": tuple(FULL["classes"])})], ids=["dict", "About"]
)
def test_all_facts_come_back_of_models_and_objects(given: Any, tmp_path: Path) -> None:
    for obj in (TinyNet(), {"weights": torch.ones(2), "epoch": 3}, {"epoch": 3}):
        tk.save(obj, tmp_path / "m.safetensors", about=given)
        about = tk.open(tmp_path / "m.safetensors").about
        assert about == tk.About(**{**FULL, "classes": tuple(FULL["classes"])})
        assert tk.verify(tmp_path / "m.safetensors").ok
    assert tk.load(tmp_path / "m.safetensors") == {"epoch": 3}


def test_without_facts_nothing_is_written(tmp_path: Path) -> None:
    tk.save(net(), tmp_path / "m.safetensors")
    facts, _, _ = read_parts(tmp_path / "m.safetensors")
    assert "about" not in facts and tk.open(tmp_path / "m.safetensors").about == tk.About()
    assert "licence" not in str(tk.open(tmp_path / "m.safetensors"))


def test_classes_may_be_numbered(tmp_path: Path) -> None:
    tk.save(net(), tmp_path / "m.safetensors", about={"classes": {7: "a", 2: "b"}})
    about = tk.open(tmp_path / "m.safetensors").about
    assert about.classes == {7: "a", 2: "b"} and "2 (a, b)" in str(about)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"license": "MIT"}, "about.license", "'licence'"),
    ({"class": ["a"]}, "about.class", "'classes'"),
    ({"licence": 5}, "about.licence", "str"),
    ({"text": None}, "about.text", "str"),
    ({"classes": "ab"}, "about.classes", "array"),
    ({"classes": [1]}, "about.classes[0]", "str"),
    ({"classes": {"x": "a"}}, "about.classes", ""),
    ({"preprocessing": [1]}, "about.preprocessing", "dict"),
    ({"preprocessing": {1: 2}}, "about.preprocessing", "dict"),
    ({"preprocessing": {"mean": torch.zeros(3)}}, "about.preprocessing.mean", "mean"),
    ({"preprocessing": {"a": {"f": print}}}, "about.preprocessing.a.f", "a.f"),
    ({"text": "\ud800"}, "about", "surrogate"),
]


@pytest.mark.parametrize(("given", "path", "words"), WRONG, ids=[path for _, path, _ in WRONG])
def test_what_is_no_fact_is_refused_before_anything_is_written(
    given: dict[str, Any], path: str, words: str, tmp_path: Path
) -> None:
    for obj in (net(), {"x": 1}):
        with pytest.raises(UnsavableError) as caught:
            tk.save(obj, tmp_path / "m.safetensors", about=given)
        assert caught.value.path.startswith(path) and words in str(caught.value)
    for odd in ("MIT", 5, ["licence"]):
        with pytest.raises(UnsavableError, match="about="):
            tk.save(net(), tmp_path / "m.safetensors", about=odd)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_parents_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        tk.save(net(), tmp_path / "m.safetensors", about={"parents": "nope.pth"})
    with pytest.raises(LoadError):
        tk.save(net(), tmp_path / "m.safetensors", about={"parents": [5]})
    tk.save(net(), tmp_path / "m.safetensors", about={"parents": tk.Parent("gone.pth", licence="MIT")})
    assert tk.open(tmp_path / "m.safetensors").about.parents == (tk.Parent("gone.pth", licence="MIT"),)


def test_digests_of_parents_are_those_that_others_compute(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth")
    tk.save(net(), tmp_path / "b.safetensors")
    tk.save(net(), tmp_path / "c.safetensors", max_shard_size=60)
    index = tmp_path / "c.safetensors.index.json"
    tk.save(
        net(), tmp_path / "m.safetensors", about={"parents": [tmp_path / "a.pth", tmp_path / "b.safetensors", index]}
    )
    one, two, three = (parent.digest for parent in tk.open(tmp_path / "m.safetensors").about.parents)
    assert (
        one == f"blake3:{blake3((tmp_path / 'a.pth').read_bytes()).hexdigest()}" == tk.about(tmp_path / "a.pth").digest
    )
    facts, _, _ = read_parts(tmp_path / "b.safetensors")
    assert two == f"header:{facts['header']}" == header(tmp_path / "b.safetensors")
    files = [index, *sorted(tmp_path.glob("c-*.safetensors"))]
    lines = "".join(f"{blake3(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert len(files) > 2 and three == f"files:{blake3(lines.encode()).hexdigest()}" == header(index)
    with torch.no_grad():
        tk.save(net(1), tmp_path / "b.safetensors")
    assert header(tmp_path / "b.safetensors") != two


def test_what_was_loaded_is_a_parent_with_its_own_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(net().state_dict(), "old.pth")
    first = net()
    tk.load_into(first, "old.pth")
    tk.save(first, "one.safetensors", about={"licence": "MIT"})
    second = net(1)
    tk.load_into(second, "one.safetensors")
    tk.save(second, "two.safetensors")
    for file in ("old.pth", "one.safetensors"):
        Path(file).unlink()
    (parent,) = tk.open("two.safetensors").about.parents
    assert (parent.name, parent.licence, parent.digest[:7]) == ("one.safetensors", "MIT", "header:")
    assert parent.parents == (tk.Parent("old.pth"),), "a foreign file that was only loaded has no digest"
    text = str(tk.open("two.safetensors"))
    assert text.index("made from") < text.index("one.safetensors (MIT, header:") < text.index("<- old.pth")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), nn.DataParallel])
def test_the_lineage_follows_copies_and_parts_of_a_model(copied: Any, tmp_path: Path) -> None:
    tk.save(net(), tmp_path / "one.safetensors", about={"licence": "MIT"})
    model = net(1)
    tk.load_into(model, tmp_path / "one.safetensors")
    tk.save(copied(model), tmp_path / "two.safetensors")
    assert tk.open(tmp_path / "two.safetensors").about.parents[0].licence == "MIT"
    tk.save(nn.ModuleDict({"part": model[0]}), tmp_path / "three.safetensors")
    assert tk.open(tmp_path / "three.safetensors").about.parents[0].licence == "MIT"
    tk.save(net(), tmp_path / "other.safetensors")
    tk.load_into(model, tmp_path / "other.safetensors")
    tk.save(model, tmp_path / "four.safetensors")
    assert names(tk.open(tmp_path / "four.safetensors").about) == [str(tmp_path / "other.safetensors")]


def test_a_parent_that_is_named_and_loaded_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(net().state_dict(), "old.pth")
    model = net()
    tk.load_into(model, tmp_path / "old.pth")
    tk.save(model, "a.safetensors", about={"parents": ["old.pth", tmp_path / "old.pth"]})
    (parent,) = tk.open("a.safetensors").about.parents
    assert parent.name == str(tmp_path / "old.pth") and parent.digest.startswith("blake3:")


def test_files_of_older_torchkeeps_show_what_was_loaded(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "old.pth")
    model = net()
    tk.load_into(model, tmp_path / "old.pth")
    path = tmp_path / "a.safetensors"
    tk.save(model, path)
    facts, head, data = read_parts(path)
    del facts["about"]
    write_parts(path, facts, head, data)
    assert tk.open(path).about.parents == (tk.Parent(str(tmp_path / "old.pth")),)


def test_converting_and_saving_keep_all_of_it(tmp_path: Path) -> None:
    tk.save(net(), tmp_path / "p.safetensors")
    tk.save(TinyNet(), tmp_path / "a.safetensors", about=FULL | {"parents": [tmp_path / "p.safetensors"]})
    wanted = tk.open(tmp_path / "a.safetensors").about
    tk.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bf16")
    tk.save(tk.open(tmp_path / "b.safetensors"), tmp_path / "c.safetensors", max_shard_size=40)
    tk.save({"x": torch.ones(1)}, tmp_path / "o.safetensors", about=FULL)
    tk.convert(tmp_path / "o.safetensors", tmp_path / "q.safetensors", model_only=False)
    assert tk.open(tmp_path / "b.safetensors").about == wanted
    assert tk.open(tmp_path / "c.safetensors.index.json").about == wanted
    assert tk.open(tmp_path / "q.safetensors").about == tk.open(tmp_path / "o.safetensors").about
    assert tk.open(tmp_path / "a.safetensors").sub("head").about == wanted


def test_the_facts_of_a_checkpoint_are_changed_and_its_parents_stay(tmp_path: Path) -> None:
    for name in "pq":
        tk.save(net(ord(name)), tmp_path / f"{name}.safetensors")
    tk.save(net(), tmp_path / "a.safetensors", about=FULL | {"parents": [tmp_path / "p.safetensors"]})
    ckpt = tk.open(tmp_path / "a.safetensors")
    tk.save(ckpt, tmp_path / "b.safetensors", about={"licence": "", "parents": tmp_path / "q.safetensors"})
    about = tk.open(tmp_path / "b.safetensors").about
    assert about.licence == "" and about.text == "anything"
    assert [Path(name).stem for name in names(about)] == ["q", "p"]
    tk.save(ckpt, tmp_path / "c.safetensors", about=tk.About(text="new"))
    about = tk.open(tmp_path / "c.safetensors").about
    assert about.text == "new" and about.licence == "" and [Path(name).stem for name in names(about)] == ["p"]


def test_edits_name_their_sources_and_keep_what_stays_true(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tk.save(net(), path, about=FULL)
    (whole, parent) = (tk.open(path).about, tk.Parent(str(path), header(path), "Apache-2.0", FULL["source"]))
    for edited in (
        tk.edit.cast(path, "bf16"),
        tk.edit.rename(path, {"0": "stem"}),
        tk.edit.rename(tk.edit.cast(path, "f16"), {"0": "x"}),
    ):
        tk.save(edited, tmp_path / "b.safetensors")
        about = tk.open(tmp_path / "b.safetensors").about
        assert about.parents == (parent,) and about.source == ""
        assert (about.licence, about.classes, about.preprocessing) == (
            whole.licence,
            whole.classes,
            whole.preprocessing,
        )
    for edited in (tk.edit.select(path, "0"), tk.edit.drop(path, "1"), tk.edit.split(path)["1"]):
        assert edited.about.classes == () and edited.about.licence == "Apache-2.0" and edited.about.parents == (parent,)
    tk.convert(tk.edit.select(path, "0"), tmp_path / "c.safetensors")
    assert tk.open(tmp_path / "c.safetensors").about.parents == (parent,)


def test_files_of_two_licences_make_one_with_none_and_a_note(tmp_path: Path) -> None:
    one, two, none = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "none"))
    tk.save(net(1), one, about={"licence": "MIT", "classes": ["a", "b"], "training_data": "x"})
    tk.save(net(2), two, about={"licence": "GPL-3.0", "training_data": "x"})
    tk.save(net(3), none)
    for other, said in ((two, "GPL-3.0"), (none, "without one")):
        for made in (tk.edit.average(one, other), tk.edit.merge({"a": one, "b": other})):
            report = tk.save(made, tmp_path / "both.safetensors")
            assert any("licences" in note and "MIT" in note and said in note for note in report.notes)
            about = tk.open(tmp_path / "both.safetensors").about
            assert about.licence == "" and names(about) == [str(one), str(other)]
            assert about.classes == ("a", "b") and about.training_data == ("x" if other == two else "")
        model = net()
        loaded = tk.load_into(model, {"0": (one, "0"), "1": (other, "1")})
        saved = tk.save(model, tmp_path / "model.safetensors")
        assert all(any("licences" in note for note in report.notes) for report in (loaded, saved))
        assert names(tk.open(tmp_path / "model.safetensors").about) == [str(one), str(other)]
    alone = tk.edit.average(one, tk.edit.cast(one, "f32"))
    assert alone.about.licence == "MIT" and not any("licences" in str(finding) for finding in alone.findings)


def test_relatives_that_are_merged_again_and_again_do_not_double(tmp_path: Path) -> None:
    left, right = tmp_path / "l0.safetensors", tmp_path / "r0.safetensors"
    tk.save(net(1), left)
    tk.save(net(2), right)
    for number in range(1, 25):
        merged = tk.edit.average(left, right)
        left, right = tmp_path / f"l{number}.safetensors", tmp_path / f"r{number}.safetensors"
        tk.save(merged, left)
        tk.save(tk.edit.average(merged, merged, weights=[1, 2]), right, about={"text": str(number)})
    text = json.dumps(tk.to_json(tk.open(left).about))
    assert text.count('"name"') < 200 and "l0.safetensors" in text
    assert "and " in str(tk.open(left).about) and len(str(tk.open(left).about).splitlines()) < 25


def test_a_long_line_of_ancestors_is_cut_at_64(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tk.save({"x": torch.zeros(1)}, path)
    for number in range(70):
        tk.save({"x": torch.full((1,), float(number + 1))}, path, about={"text": str(number), "parents": [path]})
    parents, depth = tk.open(path).about.parents, 0
    while parents:
        parents, depth = parents[0].parents, depth + 1
    assert depth == 64


def test_a_digest_says_more_than_a_name() -> None:
    base = tk.About(parents=(tk.Parent("a", "header:1", parents=(tk.Parent("b", "header:2"),)),))
    assert with_parents(base, [tk.Parent("moved", "header:2"), tk.Parent("b"), tk.Parent("a")]) == base
    more = with_parents(base, [tk.Parent("a", "header:3"), tk.Parent("c"), tk.Parent("c", "header:4")])
    assert [(parent.name, parent.digest) for parent in more.parents[1:]] == [("a", "header:3"), ("c", "")]


def test_a_run_says_what_was_loaded_and_a_snapshot_is_a_parent(tmp_path: Path) -> None:
    tk.save(net(), tmp_path / "base.safetensors", about={"licence": "MIT"})
    model = net(1)
    tk.load_into(model, tmp_path / "base.safetensors")
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        run.save(1)
    ckpt = tk.Run(tmp_path / "run").open()
    assert names(ckpt.about) == [str(tmp_path / "base.safetensors")]
    tk.save(ckpt, tmp_path / "end.safetensors")
    (parent,) = tk.open(tmp_path / "end.safetensors").about.parents
    assert "snapshot" in parent.name and [one.name for one in parent.parents] == names(ckpt.about)
    fresh = net(2)
    tk.load_into(fresh, tmp_path / "run")
    tk.save(fresh, tmp_path / "next.safetensors", about={"parents": [f"{tmp_path / 'run'}@1"]})
    assert len(tk.open(tmp_path / "next.safetensors").about.parents) == 2


@pytest.mark.parametrize(
    ("metadata", "licence", "text", "parents"),
    [
        ({"license": "mit"}, "mit", "", []),
        ({"modelspec.license": "a", "license": "b"}, "a", "", []),
        ({"modelspec.description": "d", "modelspec.merged_from": "x, y,,x"}, "", "d", ["x", "y"]),
        ({"License": "mit", "description": "d", "author": "me", "format": "pt"}, "", "", []),
        ({"license": ""}, "", "", []),
    ],
)
def test_known_keys_of_other_programs_are_facts(
    metadata: dict[str, str], licence: str, text: str, parents: list[str], tmp_path: Path
) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "m.safetensors", metadata)
    about = tk.open(tmp_path / "m.safetensors").about
    assert (about.licence, about.text, names(about)) == (licence, text, parents)
    tk.convert(tmp_path / "m.safetensors", tmp_path / "n.safetensors")
    assert tk.open(tmp_path / "n.safetensors").about == about


LIES: list[Any] = [
    5,
    {"licence": 5},
    {"classes": "x"},
    {"classes": {"x": "y"}},
    {"parents": [{"digest": "x"}]},
    {"parents": {}},
    {"preprocessing": []},
    {"preprocessing": {"$": "int", "v": "0x5"}},
    {"preprocessing": {"a": {"$": "new"}}},
    {"preprocessing": {"a": {"$": "tensor", "v": "x"}}},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_lies_with_a_right_digest_are_damage_when_one_asks(lie: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"x": torch.ones(1)}, path)
    facts, head, data = read_parts(path)
    write_parts(path, facts | {"about": lie}, head, data)
    ckpt = tk.open(path)
    assert ckpt["x"].load() == 1, "the tensors are there all the same"
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError) as caught:
            _ = ckpt.about
        assert caught.value.file == str(path)
    with pytest.raises(CorruptCheckpointError):
        tk.about(path)


def test_hostile_lineages_cost_little(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"x": torch.ones(1)}, path)
    facts, head, data = read_parts(path)
    deep: dict[str, Any] = {"name": "a"}
    for number in range(300):
        deep = {"name": f"{number}", "parents": [deep]}
    wide = [{"name": f"{number}\x1b[31m"} for number in range(20_000)]
    write_parts(path, facts | {"about": {"parents": [deep, *wide]}}, head, data)
    ckpt = tk.open(path)
    assert len(ckpt.about.parents) == 20_001
    text = str(ckpt)
    assert "\x1b" not in text and len(text.splitlines()) < 50


def test_later_facts_are_left_to_later_torchkeeps(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"x": torch.ones(1)}, path)
    facts, head, data = read_parts(path)
    write_parts(
        path, facts | {"about": {"licence": "MIT", "colour": "red", "parents": [{"name": "a", "year": 1}]}}, head, data
    )
    assert tk.open(path).about == tk.About(licence="MIT", parents=(tk.Parent("a"),))


def test_odd_names_of_files_and_tied_meta_and_empty_tensors(tmp_path: Path) -> None:
    odd = tmp_path / b"o\xffdd \n.safetensors".decode("utf-8", "surrogateescape")
    model = TinyNet().to(torch.bfloat16)
    model.none = nn.Parameter(torch.zeros(0, 3))
    model.far = nn.Linear(2, 2, device="meta")
    tk.save(model, odd, about={"licence": "MIT"})
    tk.save(model, tmp_path / "b.safetensors", about={"parents": [odd]})
    (parent,) = tk.open(tmp_path / "b.safetensors").about.parents
    assert parent.licence == "MIT" and "o\\udcffdd" in parent.name
    assert "\n.safetensors" not in str(tk.open(tmp_path / "b.safetensors"))
    tk.save(net(), odd, about={"licence": "MIT"})
    loaded = net(1)
    tk.load_into(loaded, odd)
    tk.save(loaded, tmp_path / "c.safetensors")
    assert tk.open(tmp_path / "c.safetensors").about.parents[0].licence == "MIT"


def test_shards_say_what_all_of_them_are_whichever_has_the_first_name(tmp_path: Path) -> None:
    model = nn.ModuleDict({"z": nn.Linear(100, 100), "a": nn.Linear(100, 100)})
    tk.save(model, tmp_path / "m.safetensors", max_shard_size=41_000, about={"licence": "MIT"})
    ckpt = tk.open(tmp_path / "m.safetensors.index.json")
    assert ckpt.kind == "module" and len(ckpt.modules) == 3 and ckpt.about.licence == "MIT"
    assert [tk.open(path).about.licence for path in sorted(tmp_path.glob("m-*"))] == ["MIT", ""]


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    if isinstance(result.exception, tk.errors.TorchkeepError):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_shows_and_writes(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    tk.save(net(), a, about=FULL)
    tk.save(net(1), b, about={"licence": "MIT"})
    code, out = call("about", a, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["digest"] == header(a) and answer["about"]["classes"][:2] == ["rose", "tulip"]
    assert answer["about"]["preprocessing"]["size"] == 224 and answer["about"]["preprocessing"]["dtype"] == "float16"
    code, _ = call(
        "about", a, "--set", "licence=a=b", "--set", 'classes={"3": "x"}', "--set", "preprocessing=", "--set", "text=",
        "--parent", b, "-o", c,
    )  # fmt: skip
    about = tk.open(c).about
    assert code == 0 and (about.licence, about.classes, about.preprocessing, about.text) == ("a=b", {3: "x"}, {}, "")
    assert names(about) == [str(b)] and about.source == FULL["source"]
    assert json.loads(call("inspect", c, "--json")[1])["about"]["parents"][0]["licence"] == "MIT"
    assert tk.diff(a, c).equal
    for wrong in (["--set", "licence=x"], ["-o", c], ["--set", "licence", "-o", c], ["--set", "classes=x", "-o", c]):
        assert call("about", a, *wrong)[0] == 2
    with pytest.raises(UnsavableError, match="licens"):
        call("about", a, "--set", "licens=x", "-o", c)
    with pytest.raises(SaveError, match="the file that is being converted"):
        call("about", a, "--set", "licence=x", "-o", a)
