"""Examples are read from wherever they are, and refused, with the place and the reason, where they cannot be used."""

from __future__ import annotations

import itertools
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import torchkeep as tk
from models import TinyNet
from torchkeep.core.drawing import in_shares
from torchkeep.datasets import _arrays, pairs
from torchkeep.errors import DataError, MissingDependencyError


def paint(path: Path, mode: str = "L", size: tuple[int, int] = (6, 4), value: Any = 128, **how: Any) -> Path:
    """An image of one colour, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **how)
    return path


def two_classes(folder: Path, each: int = 3, **how: Any) -> Path:
    for name, value in (("cat", 51), ("dog", 204)):
        for number in range(each):
            paint(folder / name / f"{number}.png", value=value, **how)
    return folder


class Squares(Dataset[Any]):
    """A data set as people write them."""

    classes = ("even", "odd")

    def __init__(self, count: int = 10) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Any:
        if place >= self.count:
            raise IndexError(place)
        return torch.full((1, 2, 2), float(place)), place % 2


class TestFolder:
    def test_grey_images_stay_at_one_channel(self, tmp_path: Path) -> None:
        examples = tk.read_examples(two_classes(tmp_path))
        assert examples.inputs.shape == (6, 1, 4, 6) and examples.inputs.dtype is torch.float32
        assert torch.allclose(examples.inputs[:, 0, 0, 0], torch.tensor([0.2] * 3 + [0.8] * 3))
        assert examples.classes == ("cat", "dog") and examples.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert examples.notes == ()
        tk.check_examples(examples, nn.Sequential(nn.Flatten(), nn.Linear(24, 5)))

    def test_grey_among_colours_is_given_three_channels_and_that_is_noted(self, tmp_path: Path) -> None:
        paint(two_classes(tmp_path) / "dog" / "red.png", "RGB", value=(255, 0, 0))
        examples = tk.read_examples(str(tmp_path))
        assert examples.inputs.shape == (7, 3, 4, 6)
        assert examples.inputs[-1, :, 0, 0].tolist() == [1, 0, 0]
        assert "6 of 7 images are grey" in examples.notes[0]

    @pytest.mark.parametrize(
        ("mode", "value", "suffix", "expected"),
        [
            ("1", 1, "png", [1.0]),
            ("LA", (51, 9), "png", [0.2]),
            ("I;16", 65535, "png", [1.0]),
            ("I;16", 13107, "tif", [0.2]),
            ("F", 0.25, "tif", [0.25]),
            ("P", 0, "png", [0.0, 0.0, 0.0]),
            ("RGBA", (255, 51, 0, 7), "png", [1.0, 0.2, 0.0]),
            ("CMYK", (0, 0, 0, 0), "jpg", [1.0, 1.0, 1.0]),
            ("RGB", (255, 51, 0), "bmp", [1.0, 0.2, 0.0]),
        ],
    )
    def test_every_kind_of_pixel(
        self, tmp_path: Path, mode: str, value: Any, suffix: str, expected: list[float]
    ) -> None:
        for name in ("a", "b"):
            paint(tmp_path / name / f"x.{suffix}", mode, value=value)
        examples = tk.read_examples(tmp_path)
        assert torch.allclose(examples.inputs[0, :, 0, 0], torch.tensor(expected), atol=0.01)
        assert any("transparency" in note for note in examples.notes) == (mode in {"LA", "RGBA"})

    def test_pixels_without_a_known_range_are_refused(self, tmp_path: Path) -> None:
        paint(two_classes(tmp_path) / "cat" / "far.tif", "F", value=300.0)
        with pytest.raises(DataError, match="range nothing says"):
            tk.read_examples(tmp_path)

    def test_the_orientation_that_a_camera_wrote_is_followed(self, tmp_path: Path) -> None:
        two_classes(tmp_path, size=(4, 6))
        turned = Image.new("L", (6, 4))
        turned.putpixel((0, 0), 255)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(tmp_path / "cat" / "turned.png", exif=exif)
        examples = tk.read_examples(tmp_path)
        assert examples.inputs.shape[2:] == (6, 4) and examples.inputs[3, 0, 0, 3] == 1

    def test_of_a_film_the_first_frame_is_taken(self, tmp_path: Path) -> None:
        frames = [Image.new("L", (6, 4), value) for value in (255, 0)]
        two_classes(tmp_path)
        frames[0].save(tmp_path / "cat" / "film.gif", save_all=True, append_images=frames[1:])
        examples = tk.read_examples(tmp_path)
        assert examples.inputs[3].min() == 1 and "1 of 7 images have several frames" in " ".join(examples.notes)

    def test_several_sizes_are_refused_with_what_was_seen(self, tmp_path: Path) -> None:
        odd = paint(two_classes(tmp_path) / "dog" / "wide.png", size=(9, 4))
        with pytest.raises(DataError) as caught:
            tk.read_examples(tmp_path)
        assert "4 x 6 (6), 4 x 9 (1)" in str(caught.value) and str(odd) in str(caught.value)
        assert "size=4" in caught.value.hint

    def test_a_size_covers_and_keeps_the_middle(self, tmp_path: Path) -> None:
        two_classes(tmp_path)
        striped = Image.new("L", (12, 4))
        striped.paste(255, (3, 0, 9, 4))
        striped.save(tmp_path / "cat" / "striped.png")
        examples = tk.read_examples(tmp_path, size=2)
        assert examples.inputs.shape == (7, 1, 2, 2) and examples.inputs[3].mean() > 0.9
        assert "2 sizes were brought to 2 x 2" in " ".join(examples.notes)
        assert tk.read_examples(tmp_path, size=(3, 5)).inputs.shape == (7, 1, 3, 5)
        for size in (0, -1, (2, 0), (1, 2, 3)):
            with pytest.raises(DataError, match="no height and width"):
                tk.read_examples(tmp_path, size=size)

    @pytest.mark.parametrize("damage", ["text", "torn", "empty", "checksum"])
    def test_an_image_that_cannot_be_read_is_named(self, tmp_path: Path, damage: str) -> None:
        bad = two_classes(tmp_path, size=(60, 40)) / "dog" / "1.png"
        whole = bad.read_bytes()
        bad.write_bytes(
            {"text": b"no image", "torn": whole[:-40], "empty": b"", "checksum": whole[:30] + b"?" + whole[31:]}[damage]
        )
        with pytest.raises(DataError, match=re.escape(str(bad))):
            tk.read_examples(tmp_path)

    def test_an_image_that_would_fill_the_memory_is_refused(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
        with pytest.raises(DataError, match=r"0\.png cannot be read as an image: DecompressionBomb"):
            tk.read_examples(two_classes(tmp_path))

    @pytest.mark.parametrize("held", ["nothing", "images", "texts", "empty folders"])
    def test_a_folder_without_classes(self, tmp_path: Path, held: str) -> None:
        if held == "images":
            paint(tmp_path / "a.png")
        elif held == "texts":
            (tmp_path / "cat").mkdir()
            (tmp_path / "cat" / "readme.txt").write_text("none")
        elif held == "empty folders":
            (tmp_path / "cat").mkdir()
        with pytest.raises(DataError, match=r"no classes|no image in any") as caught:
            tk.read_examples(tmp_path)
        assert "one folder a class" in caught.value.hint

    def test_train_and_val_are_no_classes(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            two_classes(tmp_path / part)
        with pytest.raises(DataError, match="parts and no classes"):
            tk.read_examples(tmp_path)
        assert tk.read_examples(tmp_path / "train").classes == ("cat", "dog")

    def test_what_is_no_image_is_left_out_and_said(self, tmp_path: Path) -> None:
        two_classes(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / ".ipynb_checkpoints").mkdir()
        (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
        (tmp_path / "cat" / "._0.png").write_bytes(b"x")
        paint(tmp_path / "cat" / "deep" / "ÄÖ 1.PNG")
        examples = tk.read_examples(tmp_path)
        assert examples.counts == (4, 3) and examples.classes == ("cat", "dog")
        assert "1 folders have no image and are no class: empty" in examples.notes
        assert any("Thumbs.db" in note for note in examples.notes)

    def test_a_limit_keeps_the_shares_and_is_the_same_every_time(self, tmp_path: Path) -> None:
        two_classes(tmp_path, each=10)
        for number in range(20):
            paint(tmp_path / "cat" / f"more{number}.png")
        examples = tk.read_examples(tmp_path, limit=8)
        assert examples.counts == (6, 2)
        assert torch.equal(examples.inputs, tk.read_examples(tmp_path, limit=8).inputs)
        assert tk.read_examples(tmp_path, limit=1).classes in {("cat",), ("dog",)}

    def test_more_than_fits_is_refused_before_it_is_read(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(_arrays.os, "sysconf", lambda name: 10)
        with pytest.raises(DataError, match="6 images of 4 x 6 would take"):
            tk.read_examples(two_classes(tmp_path))


class TestArrayFile:
    @pytest.mark.parametrize(
        "names",
        [("x", "y"), ("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels"), ("X", "Target")],
    )
    def test_names_that_people_use(self, tmp_path: Path, names: tuple[str, str]) -> None:
        arrays = {
            names[0]: np.ones((4, 2, 5, 3), np.uint8) * 255,
            names[1]: np.array([0, 1, 1, 0]),
            "x_test": np.ones(2),
        }
        np.savez(tmp_path / "data.npz", **arrays)
        examples = tk.read_examples(tmp_path / "data.npz")
        assert examples.inputs.shape == (4, 3, 2, 5) and examples.inputs.max() == 1
        assert examples.labels.tolist() == [0, 1, 1, 0]
        told = " ".join(examples.notes)
        assert "x_test is left out" in told and "divided by 255" in told and "channels last" in told

    def test_arrays_without_names(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", np.zeros((3, 7), np.float64), np.array(["b", "a", "b"]))
        examples = tk.read_examples(tmp_path / "data.npz")
        assert examples.inputs.dtype is torch.float32 and examples.classes == ("a", "b")
        assert examples.labels.tolist() == [1, 0, 1]

    def test_inputs_by_the_names_of_the_arguments(self, tmp_path: Path) -> None:
        tokens = np.arange(8, dtype=np.int32).reshape(4, 2)
        names = np.array(["no", "yes", "never"])
        arrays = {
            "input_ids": tokens,
            "attention_mask": tokens.astype(np.uint8) > 0,
            "label": [1, 0, 1, 0],
            "classes": names,
        }
        np.savez(tmp_path / "text.npz", **arrays)
        examples = tk.read_examples(tmp_path / "text.npz")
        assert examples.classes == ("no", "yes") and "1 of 3 classes have no example" in examples.notes[0]
        assert {name: tensor.dtype for name, tensor in examples.inputs.items()} == dict.fromkeys(
            ("input_ids", "attention_mask"), torch.int64
        )
        assert len(examples) == 4 and "input_ids int64[2]" in str(examples)

    def test_python_objects_are_refused_and_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        np.savez(tmp_path / "evil.npz", x=np.zeros((2, 2)), y=np.array([Evil(), Evil()], dtype=object))
        with pytest.raises(DataError, match="'y' holds Python objects"):
            tk.read_examples(tmp_path / "evil.npz")
        (tmp_path / "renamed.npz").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            tk.read_examples(tmp_path / "renamed.npz")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("keep", [0, 10, 200, -30])
    def test_a_torn_file(self, tmp_path: Path, keep: int) -> None:
        np.savez_compressed(tmp_path / "data.npz", x=np.random.rand(50, 4), y=np.arange(50) % 2)
        (tmp_path / "data.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:keep])
        with pytest.raises(DataError, match=r"data\.npz cannot be read as \.npz"):
            tk.read_examples(tmp_path / "data.npz")

    def test_what_lacks_is_said_with_what_is_there(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", weights=np.zeros(3))
        with pytest.raises(DataError, match=r"data\.npz has no labels: it has 'weights'"):
            tk.read_examples(tmp_path / "data.npz")
        np.savez(tmp_path / "data.npz", weights=np.zeros(3), y=np.zeros(2))
        with pytest.raises(DataError, match="no inputs of their length"):
            tk.read_examples(tmp_path / "data.npz")
        with pytest.raises(DataError, match="no such file"):
            tk.read_examples(tmp_path / "gone.npz")

    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path: Path, monkeypatch: Any) -> None:
        np.savez_compressed(tmp_path / "data.npz", x=np.zeros((1000, 100)), y=np.arange(1000) % 2)
        monkeypatch.setattr(_arrays.os, "sysconf", lambda name: 500)
        with pytest.raises(DataError, match=r"data\.npz would take 80"):
            tk.read_examples(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("digits", (1797, 1, 8, 8), 10), ("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2), ("iris", (150, 4), 3)],
)
def test_what_comes_with_scikit_learn(name: str, shape: tuple[int, ...], classes: int) -> None:
    examples = tk.read_examples(f"sklearn:{name}")
    assert examples.inputs.shape == shape and len(examples.classes) == classes
    assert examples.inputs.dtype is torch.float32 and examples.notes
    tk.check_examples(examples)


def test_other_names_of_scikit_learn_are_refused_and_a_missing_package_is_said(monkeypatch: Any) -> None:
    with pytest.raises(DataError, match="no data set 'sklearn:faces'"):
        tk.read_examples("sklearn:faces")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match="scikit-learn"):
        tk.read_examples("sklearn:digits")


def test_without_pillow_a_folder_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    two_classes(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependencyError, match=r"torchkeep\[trials\]"):
        tk.read_examples(tmp_path)


class TestPairs:
    def test_whole_arrays(self) -> None:
        inputs, labels = torch.randn(4, 3, dtype=torch.bfloat16), [0, 1, 0, 1]
        for source in ((inputs, labels), TensorDataset(inputs, torch.tensor(labels)), {"x": inputs, "y": labels}):
            examples = tk.read_examples(source)
            assert examples.inputs.dtype is torch.bfloat16 and torch.equal(examples.inputs, inputs)
            assert examples.labels.tolist() == labels and examples.notes == ()

    def test_bytes_of_whole_images(self) -> None:
        for images in (torch.zeros(2, 5, 6, dtype=torch.uint8), np.zeros((2, 5, 6, 1), np.uint8)):
            assert tk.read_examples((images, [0, 1])).inputs.shape == (2, 1, 5, 6)
        left = tk.read_examples((torch.zeros(2, 64, 14, 3), [0, 1]))
        assert left.inputs.shape == (2, 64, 14, 3) and left.notes == ()
        far = tk.read_examples((torch.full((2, 3, 4, 4), 255.0), [0, 1]))
        assert far.inputs.max() == 255 and "mostly 0 to 1" in far.notes[0]

    def test_tokens_and_masks(self) -> None:
        inputs = {
            "input_ids": torch.zeros(3, 5, dtype=torch.int32),
            "attention_mask": torch.ones(3, 5, dtype=torch.bool),
        }
        examples = tk.read_examples((inputs, np.array([1, 0, 1])))
        assert [tensor.dtype for tensor in examples.inputs.values()] == [torch.int64, torch.int64]
        rows = [({key: value[place] for key, value in inputs.items()}, place % 2) for place in range(3)]
        flat = [{**row, "labels": torch.tensor(label)} for row, label in rows]
        for source in (rows, flat, DataLoader(rows, batch_size=2), DataLoader(flat, batch_size=2)):
            read = tk.read_examples(source)
            assert read.labels.tolist() == [0, 1, 0] and read.inputs["attention_mask"].shape == (3, 5)
        assert tk.read_examples(examples, limit=2).inputs["input_ids"].shape == (2, 5)

    def test_data_sets_and_parts_of_them(self) -> None:
        for source in (Squares(), Subset(Squares(20), range(10)), DataLoader(Squares(), batch_size=4)):
            examples = tk.read_examples(source)
            assert examples.classes == ("even", "odd") and examples.inputs.shape == (10, 1, 2, 2)
        drawn = tk.read_examples(Squares(1000), limit=50)
        assert len(drawn) == 50 and drawn.inputs.max() > 500 and "50 of 1,000" in drawn.notes[0]
        assert torch.equal(drawn.inputs, tk.read_examples(Squares(1000), limit=50).inputs)
        assert len(tk.read_examples(DataLoader(Squares(), batch_size=None))) == 10

    def test_images_of_pillow(self) -> None:
        rows = [(Image.new("L", (6, 4), 255), "a"), (Image.new("RGB", (6, 4)), "b")]
        assert tk.read_examples(rows).inputs.shape == (2, 3, 4, 6)
        rows.append((Image.new("L", (3, 4)), "b"))
        with pytest.raises(DataError, match="the image of example 2 is one of the rarer"):
            tk.read_examples(rows)
        assert tk.read_examples(rows, size=2).inputs.shape == (3, 3, 2, 2)
        assert rows[0][0].getpixel((0, 0)) == 255, "the image is still the user's"

    def test_a_source_without_an_end(self, monkeypatch: Any) -> None:
        def endless() -> Iterator[Any]:
            for number in itertools.count():
                yield torch.zeros(2), number % 3

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return endless()

        for source in (endless(), Stream(), DataLoader(Stream(), batch_size=4)):
            examples = tk.read_examples(source, limit=7)
            assert examples.counts == (3, 2, 2) and "the first 7 examples were taken" in examples.notes
        monkeypatch.setattr(pairs, "_MOST", 50)
        with pytest.raises(DataError, match="goes on after 50 examples") as caught:
            tk.read_examples(endless())
        assert "limit=" in caught.value.hint
        assert len(tk.read_examples(itertools.islice(endless(), 40))) == 40

    def test_a_stream_that_would_fill_the_memory(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(_arrays.os, "sysconf", lambda name: 100)
        with pytest.raises(DataError, match="would take"):
            tk.read_examples((torch.zeros(100), number % 2) for number in itertools.count())

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ((torch.zeros(3, 2), [0, 1]), "differ in length: the labels 2, the inputs 3"),
            (({"a": torch.zeros(3), "b": torch.zeros(2)}, [0, 1, 0]), "the inputs 'b' 2"),
            ((torch.zeros(3, 2), [0, 1], [0, 1]), "3 members"),
            (TensorDataset(torch.zeros(3, 2)), "1 members"),
            (torch.zeros(3, 2), "inputs without labels"),
            (np.zeros((3, 2)), "inputs without labels"),
            ([], "gives no examples"),
            (([], []), "there are no examples"),
            ((torch.zeros(0, 2), []), "there are no examples"),
            ([torch.zeros(2)], "example 0 is a Tensor, not a pair"),
            ([(1, 0), (1, 0, 2)], "example 1 is 3 members"),
            ([{"text": 1}], "'text' and no label"),
            ([("a cat", 0), ("a dog", 1)], "of type"),
            ([(torch.zeros(2), 0), (torch.zeros(3), 1)], r"several shapes: \[2\] \(1\), \[3\] \(1\)"),
            ([({"a": 1}, 0), ({"b": 1}, 1)], "example 0 has a, example 1 has b"),
            ([({"a": 1}, 0), (1, 1)], "several kinds: array, dict"),
            ({"train": [1]}, "no labels: it has 'train'"),
            (5, "cannot be read from a int"),
            (None, "cannot be read from a NoneType"),
            ("no/such/place", "neither a file or folder"),
            ("", "neither a file or folder"),
            ("a\0b", "neither a file or folder"),
            (nn.Sequential(nn.Linear(1, 1)), "example 0 is a Linear"),
        ],
    )
    def test_what_is_no_data_set(self, source: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            tk.read_examples(source)

    def test_the_example_that_fails_is_named(self) -> None:
        class Broken(Squares):
            def __getitem__(self, place: int) -> Any:
                return super().__getitem__(place // 0 if place == 3 else place)

        with pytest.raises(DataError, match="example 3 cannot be read: ZeroDivisionError"):
            tk.read_examples(Broken())

    @pytest.mark.parametrize("limit", [0, -1, 2.5, True])
    def test_a_limit_is_a_positive_number(self, limit: Any) -> None:
        with pytest.raises(DataError, match="no number of examples"):
            tk.read_examples(Squares(), limit=limit)

    def test_sizes_of_whole_images(self) -> None:
        examples = tk.read_examples((torch.rand(2, 3, 8, 12), [0, 1]), size=4)
        assert examples.inputs.shape == (2, 3, 4, 4) and "8 x 12 images were brought to 4 x 4" in examples.notes[0]
        with pytest.raises(DataError, match="no images"):
            tk.read_examples("sklearn:iris", size=4)


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "numbers", "classes"),
        [
            ([0, 2, 1], [0, 2, 1], ("0", "1", "2")),
            ([1.0, 0.0, 1.0], [1, 0, 1], ("0", "1")),
            ([[1], [0], [1]], [1, 0, 1], ("0", "1")),
            ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], [1, 0, 2], ("0", "1", "2")),
            ([True, False, True], [1, 0, 1], ("False", "True")),
            (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
            ([7, 1, 7], [1, 0, 1], ("1", "7")),
            (torch.tensor([1, 0, 1], dtype=torch.uint8), [1, 0, 1], ("0", "1")),
            (np.array(["b", "a", "b"], dtype=object), [1, 0, 1], ("a", "b")),
            ([torch.tensor(1), np.int8(0), 1], [1, 0, 1], ("0", "1")),
        ],
    )
    def test_what_stands_for_classes(self, labels: Any, numbers: list[int], classes: tuple[str, ...]) -> None:
        examples = tk.read_examples((torch.zeros(3, 2), labels))
        assert examples.labels.tolist() == numbers and examples.labels.dtype is torch.int64
        assert examples.classes == classes

    def test_numbers_with_gaps_keep_their_names_and_say_so(self) -> None:
        assert "1, 7 are numbered from 0" in tk.read_examples((torch.zeros(3, 2), [7, 1, 7])).notes[0]

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            ([0, 1, 0.5], r"example 2 is 0\.5: labels are whole numbers"),
            ([0, float("nan"), 1], "example 1 is nan"),
            ([0, float("inf"), 1], "example 1 is inf"),
            ([0, -1, 1], "example 1 is -1: labels run from 0"),
            ([[1, 1], [0, 1], [1, 0]], "2 numbers an example"),
            ([[[1]], [[1]], [[1]]], "shape"),
            ([0, "cat", 1], "example 0 is 0, and others are names"),
            ([None, None, 1], "says no class"),
            ([[1], [0, 1], [1]], "no single column"),
        ],
    )
    def test_what_does_not(self, labels: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            tk.read_examples((torch.zeros(3, 2), labels))

    def test_a_label_beyond_the_named_classes(self) -> None:
        data = Squares()
        data.classes = ("even",)  # type: ignore[assignment]
        with pytest.raises(DataError, match="example 1 is 1: it is out of range, for there are 1 classes"):
            tk.read_examples(data)
        arrays = {"x": torch.zeros(3, 2), "y": ["a", "b", "x"], "classes": ["a", "b"]}
        with pytest.raises(DataError, match="example 2 is 'x', none of the 2 classes"):
            tk.read_examples(arrays)
        assert tk.read_examples({**arrays, "y": ["b", "a", "b"]}).labels.tolist() == [1, 0, 1]


class TestNamed:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "my_photos.py").write_text(
            "import torch\n"
            "pairs = [(torch.zeros(2), n % 2) for n in range(6)]\n"
            "def make(): return torch.zeros(6, 2), [0, 1] * 3\n"
            "def fails(): raise RuntimeError('no disk')\n"
            "def wants(folder): return folder\n"
            "class Photos(torch.utils.data.Dataset):\n"
            "    def __len__(self): return 6\n"
            "    def __getitem__(self, n): return torch.zeros(2), n % 2\n"
            "    @classmethod\n"
            "    def small(cls): return cls()\n"
            "number = 5\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        yield
        sys.modules.pop("my_photos", None)

    @pytest.mark.parametrize("name", ["pairs", "make", "Photos", "Photos.small"])
    def test_a_data_set_or_what_makes_one(self, name: str) -> None:
        examples = tk.read_examples(f"my_photos:{name}")
        assert examples.counts == (3, 3) and examples.title == f"my_photos:{name}"

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("my_photos:gone", "cannot be imported"),
            ("no_such_module:x", "cannot be imported"),
            ("my_photos:fails", "failed: RuntimeError: no disk"),
            ("my_photos:wants", "failed: TypeError"),
            ("my_photos:number", "gives a int, which is no data set"),
            ("my_photos:", "neither a file"),
            ("my photos:x", "neither a file"),
        ],
    )
    def test_what_gives_none(self, name: str, said: str) -> None:
        with pytest.raises(DataError, match=said):
            tk.read_examples(name)

    def test_a_file_of_code_is_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        for source in (tmp_path / "evil.py", f"{tmp_path}/evil.py"):
            with pytest.raises(DataError, match="no data set of a known kind"):
                tk.read_examples(source)
        assert not (tmp_path / "ran").exists()


def made(inputs: Any, labels: Any = (0, 1, 0, 1), classes: tuple[str, ...] = ("a", "b")) -> tk.Examples:
    return tk.Examples(inputs, torch.as_tensor(labels), classes)


class TestChecks:
    @pytest.mark.parametrize(
        ("examples", "said"),
        [
            (made(torch.zeros(4, 2), [0, 0, 0, 0]), "all 4 examples are of one class, 'a'"),
            (made(torch.zeros(4, 2), [0, 0, 0, 1]), "the class 'b' has one example"),
            (made(torch.zeros(4, 2), classes=("a", "b", "c")), "the class 'c' has no example"),
            (made(torch.zeros(4, 2), [0, 0, 1, 2], ("a", "b", "c")), "2 classes have fewer than two"),
            (made(torch.zeros(4, 2), [0, 1, 2, 1]), "example 2 is 2, and there are 2 classes"),
            (made(torch.zeros(4, 2), [0, 1, -1, 1]), "example 2 is -1"),
            (made(torch.zeros(4, 2), [0.0, 1.0, 0.5, 1.0]), r"float32\[4\], not int64"),
            (made(torch.zeros(4, 2), [[0], [1], [0], [1]]), r"int64\[4, 1\]"),
            (made(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "there are no examples"),
            (made(torch.zeros(3, 2)), "3 rows, and there are 4 labels"),
            (made({"a": torch.zeros(4, 2), "b": torch.zeros(5)}), "the inputs 'b' have 5 rows"),
            (made({}), "no inputs"),
            (made(torch.zeros(4, 0)), "nothing in each"),
            (made(torch.zeros(4, 2, device="meta")), "meta device"),
            (made(torch.zeros(4, 2).to_sparse()), "of layout"),
            (
                made(torch.tensor([[0.0], [1.0], [float("nan")], [float("inf")]])),
                "example 2 has NaN in the inputs; 2 of 4",
            ),
            (
                made({"t": torch.tensor([0.0, 1.0, 2.0, float("-inf")])}),
                "example 3 has an infinite number in the inputs 't'",
            ),
        ],
    )
    def test_what_cannot_be_learned_from(self, examples: tk.Examples, said: str) -> None:
        with pytest.raises(DataError, match=said) as caught:
            tk.check_examples(examples)
        assert caught.value.exit_code == 55 and isinstance(caught.value, ValueError)

    def test_pixels_that_are_no_numbers_far_behind(self) -> None:
        inputs = torch.zeros(700, 1, 2, 2, dtype=torch.bfloat16)
        inputs[600, 0, 1, 1] = float("nan")
        with pytest.raises(DataError, match="example 600 has NaN"):
            tk.check_examples(made(inputs, torch.arange(700) % 2))

    def test_it_wants_examples(self) -> None:
        with pytest.raises(DataError, match="not Examples"):
            tk.check_examples((torch.zeros(4, 2), [0, 1, 0, 1]))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("model", "inputs", "takes", "gets", "hint"),
        [
            (nn.Conv2d(3, 2, 1), torch.zeros(4, 1, 5, 5), "3 channels into Conv2d", r"float32\[1, 5, 5\]", "adapt_input"),
            (nn.Sequential(nn.Conv2d(1, 2, 1)), torch.zeros(4, 5, 5), "1 channels into Conv2d 0", r"\[5, 5\]", "None"),
            (nn.Linear(3, 2), torch.zeros(4, 7), "3 features into Linear", r"float32\[7\]", "shape"),
            (nn.Linear(3, 2).double(), torch.zeros(4, 3), "in float64", "float32", r"model\.to\(torch\.float32\)"),
            (nn.Linear(3, 2).bfloat16(), torch.zeros(4, 3), "in bfloat16", "float32", "dtype"),
            (nn.Embedding(9, 2), torch.tensor([[1], [2], [9], [3]]), "9 tokens", "from 1 to 9", "below 9"),
            (nn.Embedding(9, 2), torch.tensor([[1], [-1], [2], [3]]), "9 tokens", "from -1 to 3", "below 9"),
            (nn.Linear(3, 2), {"input": torch.zeros(4, 3), "mask": torch.ones(4)}, "arguments input", "mask", "leave out mask"),
        ],
        ids=["channels", "no channel", "features", "double", "bf16", "token", "negative token", "argument"],
    )  # fmt: skip
    def test_what_the_model_cannot_take(self, model: nn.Module, inputs: Any, takes: str, gets: str, hint: str) -> None:
        with pytest.raises(DataError) as caught:
            tk.check_examples(made(inputs), model)
        taken, _, got = caught.value.message.partition(", and gets ")
        assert re.search(takes, taken) and re.search(gets, got), caught.value.message
        assert re.search(hint, caught.value.hint), caught.value.hint

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (nn.Sequential(nn.Conv2d(1, 2, 3)), "not one row of class scores"),
            (nn.Flatten(0), "not one row of class scores"),
            (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))), "1 rows for 2 examples"),
            (nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), "have no shape yet"),
        ],
    )
    def test_what_gives_no_scores(self, model: nn.Module, said: str) -> None:
        with pytest.raises(DataError, match=said):
            tk.check_examples(made(torch.zeros(4, 1, 5, 5)), model)

    def test_a_model_that_gives_no_numbers(self) -> None:
        model = TinyNet()
        nn.init.constant_(model.head.weight, float("nan"))
        with pytest.raises(DataError, match="NaN or infinite scores"):
            tk.check_examples(made(torch.zeros(4, 1, 5, 5)), model)

    @pytest.mark.parametrize(
        "wrap",
        [lambda model: model, nn.DataParallel, lambda model: torch.compile(model, backend="eager")],
        ids=["bare", "parallel", "compile"],
    )
    def test_the_model_and_the_generators_stay_as_they_are(self, wrap: Any) -> None:
        inner = TinyNet().train()
        inner.bn.eval()
        before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
        examples, state = made(torch.rand(4, 1, 5, 5)), torch.get_rng_state()
        tk.check_examples(examples, wrap(inner))
        assert torch.equal(state, torch.get_rng_state()) and inner.training and not inner.bn.training
        assert all(torch.equal(before[name], tensor) for name, tensor in inner.state_dict().items())
        assert all(parameter.grad is None for parameter in inner.parameters())

    def test_a_model_on_the_meta_device_is_asked_for_shapes_alone(self) -> None:
        tk.check_examples(made(torch.rand(4, 1, 5, 5)), TinyNet().to("meta"))
        with pytest.raises(DataError, match="1 channels"):
            tk.check_examples(made(torch.rand(4, 3, 5, 5)), TinyNet().to("meta"))

    def test_text_goes_by_the_names_of_arguments(self) -> None:
        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
                states = self.words(input_ids)
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                return (self.head((states * mask[..., None]).sum(dim=1)), states)

        ids = torch.arange(20).reshape(4, 5)
        tk.check_examples(made({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), Encoder())
        tk.check_examples(made(ids), Encoder())
        with pytest.raises(DataError, match="input_ids from 1 to 20"):
            tk.check_examples(made({"input_ids": ids + 1}), Encoder())


def test_every_beginning_of_an_order_has_each_class_in_its_share() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = in_shares(labels, 0)
    assert sorted(order.tolist()) == list(range(100)) and not torch.equal(order, in_shares(labels, 1))
    for count in (10, 20, 50):
        found = torch.bincount(labels[order[:count]], minlength=3) / count
        assert torch.allclose(found, torch.tensor([0.6, 0.3, 0.1]), atol=0.11)
    assert torch.bincount(labels[in_shares(labels, 0, least=2)[:6]]).tolist() == [2, 2, 2]


def test_examples_tell_what_they_are() -> None:
    examples = replace(made(torch.zeros(4, 1, 2, 2)), title="mine", notes=("a note",))
    assert str(examples).splitlines() == [
        "mine", "  examples  4", "  classes   2: a, b", "  inputs    float32[1, 2, 2] each", "", "  a note"
    ]  # fmt: skip
    assert len(examples.take(torch.tensor([1]))) == 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([0.0, 1, 1, 0]), ("0", "1")),
        (torch.tensor([0, 2, 2, 0]).bfloat16(), ("0", "2")),
        (np.array([0, 1, 1, 0], dtype=np.longdouble), ("0", "1")),
        ([b"a", b"\xc3\xa9", b"a", b"a"], ("a", "é")),
        (np.array([b"a", b"\xff", b"a", b"a"]), ("\\xff", "a")),
    ],
)
def test_classes_are_called_by_what_the_labels_mean(labels: Any, classes: tuple[str, ...]) -> None:
    assert tk.read_examples((torch.zeros(4, 2), labels)).classes == classes


def test_names_of_examples_are_no_names_of_classes(tmp_path: Path) -> None:
    given = {"x": np.zeros((4, 2)), "y": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", names=["1.png", "2.png", "3.png", "4.png"], **given)
    np.savez(tmp_path / "b.npz", names=["cat", "dog"], **given)
    read = [tk.read_examples(tmp_path / name) for name in ("a.npz", "b.npz")]
    assert [one.classes for one in read] == [("0", "1"), ("cat", "dog")]
    assert read[0].notes == ("names is left out",)


def test_odd_kinds_of_numbers_are_read_or_refused() -> None:
    labels = torch.arange(4) % 2
    wide = tk.read_examples((np.ones((4, 2), dtype=np.longdouble), labels))
    assert isinstance(wide.inputs, torch.Tensor) and wide.inputs.dtype is torch.float32
    for inputs, said in (
        (np.ma.masked_equal(np.eye(4), 1), "masked"),
        (torch.zeros(4, 2, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
    ):
        with pytest.raises(DataError, match=said):
            tk.check_examples(tk.read_examples((inputs, labels)))


def test_a_size_is_a_whole_number_of_any_kind() -> None:
    given = torch.rand(4, 3, 6, 6), torch.arange(4) % 2
    for size in (np.int64(3), [3, 3], (np.int32(3), 3)):
        assert tk.read_examples(given, size=size, limit=np.int64(2)).tensors[""].shape == (2, 3, 3, 3)  # type: ignore[arg-type]
    for wrong in (True, 3.0, "33", (3,), (3, 0), [3, 3.5]):
        with pytest.raises(DataError, match="no height and width"):
            tk.read_examples(given, size=wrong)  # type: ignore[arg-type]


def test_a_mask_of_truth_values_is_tried_out() -> None:
    class Masked(nn.Linear):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x * mask)

    inputs = {"x": torch.rand(4, 3), "mask": torch.eye(4, 3, dtype=torch.bool)}
    tk.check_examples(tk.Examples(inputs, torch.arange(4) % 2, ("a", "b")), Masked(3, 2))


def test_what_fails_in_the_code_of_the_user_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    def breaking() -> Iterator[Any]:
        yield torch.zeros(2), 0
        raise OSError("the disk is gone")

    with pytest.raises(DataError, match="after 1 examples: OSError: the disk is gone"):
        tk.read_examples(breaking())
    (tmp_path / "broken_data.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="cannot be imported: ZeroDivisionError"):
        tk.read_examples("broken_data:make")
