from __future__ import annotations

import gzip
import inspect
import json
import struct
import sys

import numpy as np
import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.streams import datasets, domains, split
from holdfast.streams.data import LoaderData, TensorData
from holdfast.streams.dataset import Dataset
from holdfast.streams.datasets import (
    arrays,
    csv,
    digits,
    frame,
    idx,
    image_folder,
    mnist,
    npz,
    polynomial,
    synthetic,
    torch_dataset,
    torchvision,
    usps,
)
from holdfast.streams.datasets.build import encode, held_out
from holdfast.streams.datasets.vision import read_idx


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, rows=6, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(rows * 4, dtype=np.uint8).reshape(rows, 2, 2)
    labels = (np.arange(rows) % 3).astype(np.uint8)
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            data = idx_bytes(array)
            name = f"{part}-{what}-ubyte"
            (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return pixels, labels


def write_images(folder, names=("b", "a"), rows=5, side=6):
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    pixels = {}
    for name in names:
        (folder / name).mkdir(parents=True)
        for row in range(rows):
            pixels[name, row] = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            image.fromarray(pixels[name, row]).save(folder / name / f"{row}.png")
    return pixels


# Class encoding and splits


def test_labels_of_any_kind_are_numbered_in_sorted_order_and_keep_their_names():
    train, test, names = encode([30, 10, 20, 10], [20, 30])
    assert (train.tolist(), test.tolist(), names) == ([2, 0, 1, 0], [1, 2], ("10", "20", "30"))
    assert encode(np.array(["b", "a"], dtype=object))[2] == ("a", "b")
    assert encode(torch.tensor([0, 2, 1]))[0].tolist() == [0, 2, 1]
    assert encode(np.array([[1], [0]]))[0].tolist() == [1, 0]
    with pytest.raises(DataError, match="classes 9"):
        encode([1, 2], [9])
    with pytest.raises(DataError, match="fractions"):
        encode([0.5, 1.0])


@pytest.mark.parametrize("way", ["no", "spread", "end"])
def test_a_split_has_every_row_once_and_the_fraction_asked_for(way):
    targets = torch.arange(100) % 4
    kept, tested = held_out(targets, 0.25, 0, way)
    assert sorted(kept.tolist() + tested.tolist()) == list(range(100))
    assert len(tested) in (24, 25, 28)
    if way == "no":
        assert len(set(torch.bincount(targets[tested]).tolist())) == 1
    if way == "spread":
        assert tested.tolist() == list(range(3, 100, 4))
    if way == "end":
        assert tested.tolist() == list(range(75, 100))
    with pytest.raises(ConfigError, match="test_fraction is 1"):
        held_out(targets, 1, 0, way)


# In memory


def test_arrays_share_the_memory_of_what_they_are_given():
    pixels = np.zeros((10, 4, 4), dtype=np.uint8)
    data = arrays(pixels, np.arange(10) % 2, test_fraction=0.5)
    assert data.train.store.inputs.data_ptr() == pixels.ctypes.data
    assert data.test.store is data.train.store
    assert data.input_shape == (1, 4, 4)
    assert (len(data.train), len(data.test)) == (4, 6)


def test_arrays_normalise_by_the_training_part_alone():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 5, 5), dtype=torch.uint8, generator=generator)
    data = arrays(pixels[:30], torch.arange(30) % 3, pixels[30:], torch.arange(10) % 3, normalise=True)
    for channel in range(3):
        values = pixels[:30, channel].double() / 255
        assert data.prepare.mean[channel] == pytest.approx(values.mean().item(), abs=1e-9)
        assert data.prepare.std[channel] == pytest.approx(values.std(correction=0).item(), abs=1e-9)


def test_statistics_keep_their_digits_far_from_zero():
    values = torch.tensor([[1e6 + 1.0], [1e6 + 3.0]] * 600)
    prepare = arrays(values, [0, 1] * 600, test_fraction=0.0, normalise=True).prepare
    assert prepare.mean == [1e6 + 2.0]
    assert prepare.std == pytest.approx([1.0])


def test_channels_are_found_where_they_are():
    assert arrays(np.zeros((4, 5, 6, 3), np.uint8), [0, 1] * 2).input_shape == (3, 5, 6)
    assert arrays(np.zeros((4, 3, 5, 6), np.uint8), [0, 1] * 2).input_shape == (3, 5, 6)
    assert arrays(np.zeros((4, 5, 6), np.float32), [0, 1] * 2).input_shape == (5, 6)
    assert arrays(np.zeros((4, 3, 5, 3), np.uint8), [0, 1] * 2, layout="hwc").input_shape == (3, 3, 5)
    with pytest.raises(ConfigError, match="'hwc'"):
        arrays(np.zeros((4, 5)), [0, 1] * 2, layout="hwc")


def test_wrong_arrays_are_errors():
    with pytest.raises(DataError, match="3 inputs and 4 targets"):
        arrays(torch.zeros(3, 2), [0, 1, 0, 1])
    with pytest.raises(ConfigError, match="Give both or neither"):
        arrays(torch.zeros(3, 2), [0, 1, 0], torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="2 class names for 3 classes"):
        arrays(torch.zeros(3, 2), ["a", "b", "c"], class_names=["x", "y"])
    with pytest.raises(ConfigError, match="kind is 'clustering'"):
        arrays(torch.zeros(3, 2), [0, 1, 0], kind="clustering")


def test_a_data_set_with_labels_out_of_range_is_an_error():
    data = TensorData(torch.zeros(3, 1), torch.tensor([0, 1, 5]))
    with pytest.raises(DataError, match="0 to 5"):
        Dataset("d", data, None, 3, (1,))
    with pytest.raises(DataError, match="no training samples"):
        Dataset("d", data.subset(torch.tensor([], dtype=torch.int64)), None, 6, (1,))
    with pytest.raises(DataError, match="1 names"):
        Dataset("d", data, None, 6, (1,), ("a",))
    with pytest.raises(DataError, match="regression"):
        Dataset("d", TensorData(torch.zeros(3, 1), torch.rand(3)), None, 6, (1,))


def test_digits_are_raw_bytes_that_prepare_to_one():
    data = digits()
    raw = data.train.gather(torch.arange(200)).inputs
    assert raw.dtype == torch.uint8
    assert int(raw.max()) == 16
    assert data.prepare(raw).max() == 1.0
    assert torch.equal(digits().test.targets, data.test.targets)
    assert not torch.equal(digits(split_seed=1).test._rows, data.test._rows)
    assert set(torch.bincount(data.test.targets).tolist()) <= {35, 36, 37}


def test_synthetic_blobs_are_seeded_and_can_be_told_apart():
    data = synthetic(classes=4, features=30, samples=20, test_samples=10, seed=2)
    again = synthetic(classes=4, features=30, samples=20, test_samples=10, seed=2)
    every = torch.arange(80)
    train = data.train.gather(every)
    assert torch.equal(train.inputs, again.train.gather(every).inputs)
    centres = torch.stack([train.inputs[train.targets == label].mean(0) for label in range(4)])
    test = data.test.gather(torch.arange(40))
    nearest = torch.cdist(test.inputs, centres).argmin(1)
    assert (nearest == test.targets).float().mean() > 0.95
    with pytest.raises(ConfigError, match="classes=0"):
        synthetic(classes=0)


def test_any_torch_data_set_can_be_used():
    items = [(torch.full((1, 2, 2), row, dtype=torch.uint8), "cat" if row % 2 else "dog") for row in range(8)]
    numbered = [(image, 7 if name == "cat" else 3) for image, name in items]
    data = torch_dataset(numbered, test_fraction=0.25, class_names=["dog", "cat"])
    assert isinstance(data.train, LoaderData)
    assert (len(data.train), len(data.test), data.classes) == (6, 2, 2)
    stream = split(data, experiences=2)
    assert all(int(value) % 2 == 0 for batch in stream[0].train for value in batch.inputs[:, 0, 0, 0])


# IDX


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folders_are_read(tmp_path, packed):
    pixels, labels = write_mnist(tmp_path / "small", packed=packed)
    data = idx(str(tmp_path / "small"))
    assert (data.name, data.classes, data.input_shape) == ("small", 3, (1, 2, 2))
    assert data.train.gather(torch.arange(6)).inputs[:, 0].tolist() == pixels.tolist()
    assert data.test.targets.tolist() == labels.tolist()


def test_idx_images_can_be_padded_with_black(tmp_path):
    pixels, _ = write_mnist(tmp_path / "small", packed=False)
    data = idx(str(tmp_path / "small"), pad=2)
    assert data.input_shape == (1, 6, 6)
    found = data.train.gather(torch.arange(6)).inputs[:, 0]
    assert found[:, 2:4, 2:4].tolist() == pixels.tolist()
    assert int(found.sum()) == int(pixels.sum())
    with pytest.raises(ConfigError, match="pad=-1"):
        idx(str(tmp_path / "small"), pad=-1)


def test_idx_arrays_of_wider_types_are_read_in_the_right_byte_order(tmp_path):
    values = np.array([[1, -2], [300, 70000]], dtype=">i4")
    (tmp_path / "a").write_bytes(idx_bytes(values, 0x0C))
    assert read_idx(tmp_path / "a").tolist() == values.tolist()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"1", "too long"),
        (lambda data: b"\x01" + data[1:], "magic"),
        (lambda data: data[:6], "header"),
        (lambda data: b"", "magic"),
    ],
)
def test_damaged_idx_files_are_errors_that_name_the_file(tmp_path, change, word):
    file = tmp_path / "damaged-file"
    file.write_bytes(change(idx_bytes(np.zeros((3, 2), np.uint8))))
    with pytest.raises(DataError, match=rf"damaged-file.*{word}"):
        read_idx(file)


def test_a_truncated_gzip_file_is_an_error_that_names_it(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is truncated"):
        idx(str(tmp_path))


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        idx(str(tmp_path))
    monkeypatch.setenv("HOLDFAST_DATA", str(tmp_path))
    with pytest.raises(DataError, match="HOLDFAST_DATA"):
        mnist()
    write_mnist(tmp_path / "mnist")
    assert mnist().name == "mnist"


# npz


def test_npz_names_are_guessed_and_the_split_is_used(tmp_path):
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([5, 7, 5])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1], class_names=["u", "v"])
    data = npz(str(tmp_path / "a.npz"))
    assert (data.name, data.class_names, len(data.train), len(data.test)) == ("a", ("u", "v"), 3, 1)
    np.savez(tmp_path / "b.npz", x=x, y=y, split=[0, 0, 1], group=[4, 5, 4])
    data = npz(str(tmp_path / "b.npz"))
    assert data.train.gather(torch.arange(2)).inputs[:, 0].tolist() == x[:2].tolist()
    assert data.test.gather(torch.arange(1)).inputs[0, 0].tolist() == x[2].tolist()
    only = npz(str(tmp_path / "b.npz"), where={"group": [4]})
    assert (len(only.train), len(only.test), only.class_names) == (1, 1, ("5", "7"))
    ignored = npz(str(tmp_path / "b.npz"), split="", test_fraction=0.0)
    assert (len(ignored.train), ignored.test) == (3, None)
    other = npz(str(tmp_path / "b.npz"), where={"group": [5]}, split="", test_fraction=0.0)
    assert other.train.targets.tolist() == [1]
    np.savez(tmp_path / "c.npz", x=x, y=y, split=[1, 0, 1], group=[4, 5, 4])
    with pytest.raises(DataError, match="no training row"):
        npz(str(tmp_path / "c.npz"), where={"group": [4]})
    with pytest.raises(ConfigError, match="test inputs apart"):
        npz(str(tmp_path / "a.npz"), where={"class_names": [0]})


@pytest.mark.parametrize("name", ["x", "y", "split", "class_names"])
def test_an_npz_array_that_is_a_single_value_is_refused(tmp_path, name):
    arrays = {"x": np.zeros((4, 2)), "y": np.arange(4) % 2, "split": [0, 0, 1, 1], "class_names": ["u", "v"]}
    np.savez(tmp_path / "a.npz", **{**arrays, name: np.float64(1.0)})
    with pytest.raises(DataError, match=f"the array '{name}' is a single value"):
        npz(tmp_path / "a.npz")


def test_npz_arrays_may_lie_in_files_of_their_own(tmp_path):
    np.savez(tmp_path / "k-imgs.npz", np.zeros((4, 2, 2), np.uint8))
    np.savez(tmp_path / "k-labels.npz", np.array([0, 1, 0, 1]))
    assert npz(str(tmp_path / "k-imgs.npz"), test_fraction=0.5).classes == 2
    named = npz(str(tmp_path / "k-imgs.npz"), inputs="arr_0", targets="k-labels.npz:arr_0", test_fraction=0.5)
    assert len(named.train) == 2


def test_wrong_npz_files_are_errors(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.array([0]))
    with pytest.raises(DataError, match="'x' cannot be read"):
        npz(str(tmp_path / "objects.npz"))
    np.savez(tmp_path / "odd.npz", images_of_cats=np.zeros(3), y=np.zeros(3))
    with pytest.raises(DataError, match="Give inputs="):
        npz(str(tmp_path / "odd.npz"))
    with pytest.raises(DataError, match="did you mean 'images_of_cats'"):
        npz(str(tmp_path / "odd.npz"), inputs="image_of_cats")
    np.savez(tmp_path / "uneven.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(DataError, match="3 training inputs and 2 targets"):
        npz(str(tmp_path / "uneven.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz is no"):
        npz(str(tmp_path / "text.npz"))
    with pytest.raises(DataError, match="no file"):
        npz(str(tmp_path / "none.npz"))


# Tables


def test_csv_keeps_the_order_and_standardises_by_the_training_part(tmp_path):
    rows = [(float(row), float(row % 5), "yes" if row % 3 else "no") for row in range(40)]
    text = "a,b,answer\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    for file in ("t.csv", "t.csv.gz"):
        data = csv(str(tmp_path / file), target="answer", test_fraction=0.25)
        assert (data.name, data.class_names, data.input_shape) == ("t", ("no", "yes"), (2,))
        train = [row for row in range(40) if row % 4 != 3]
        batch = data.train.gather(torch.arange(30))
        assert batch.inputs[:, 0].tolist() == train
        assert batch.targets.tolist() == [1 if row % 3 else 0 for row in train]
        prepared = data.prepare(batch.inputs)
        assert torch.allclose(prepared.mean(0), torch.zeros(2), atol=1e-5)
        assert torch.allclose(prepared.std(0, correction=0), torch.ones(2), atol=1e-5)
        values = np.array(train, dtype=float)
        tested = data.prepare(data.test.gather(torch.arange(10)).inputs)[:, 0]
        expected = [(row - values.mean()) / values.std() for row in range(3, 40, 4)]
        assert tested.tolist() == pytest.approx(expected, abs=1e-5)


def test_csv_columns_can_be_chosen_and_targets_be_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("1;2;0.5\n3;4;1.5\n5;6;2.5\n7;8;3.5\n")
    data = csv(
        str(tmp_path / "t.csv"),
        target="2",
        features=["1"],
        kind="regression",
        delimiter=";",
        header=False,
        test_at="end",
    )
    assert data.train.gather(torch.arange(3)).inputs.flatten().tolist() == [2, 4, 6]
    assert data.test.targets.tolist() == [[3.5]]  # one number a row is a column, as outputs are
    assert (data.classes, data.kind) == (0, "regression")


def test_csv_class_numbers_are_sorted_as_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"0,{label}.0\n" for label in (10, 9, 10, 9)))
    assert csv(str(tmp_path / "t.csv"), test_fraction=0.0).class_names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ("a,b\n1,0\n,1\n", DataError, r"line 3: column 'a' is ''"),
        ("a,b\n1,0\nnan,1\n", DataError, r"line 3: column 'a' is 'nan'"),
        ("a,b\n1,0\n1\n", DataError, "line 3: 1 values for 2 columns"),
        ("a,b\n", DataError, "no samples"),
        ("", DataError, "no samples"),
        ("a,c\n1,0\n", ConfigError, "unknown column 'b'"),
    ],
)
def test_wrong_tables_are_errors_that_name_the_place(tmp_path, text, error, word):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=word):
        csv(str(tmp_path / "t.csv"), target="b")


def test_a_gzip_file_that_is_none_is_an_error(tmp_path):
    (tmp_path / "t.csv.gz").write_text("a,b\n")
    with pytest.raises(DataError, match=r"t\.csv\.gz cannot be read"):
        csv(str(tmp_path / "t.csv.gz"))


def test_a_data_frame_gives_what_its_file_gives(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0] * 3, "b": range(12), "y": list("abc") * 4})
    table.to_csv(tmp_path / "t.csv", index=False)
    one, two = frame(table, "y"), csv(str(tmp_path / "t.csv"))
    assert one.class_names == two.class_names
    assert one.prepare == two.prepare
    for first, second in ((one.train, two.train), (one.test, two.test)):
        every = torch.arange(len(first))
        assert torch.equal(first.gather(every).inputs, second.gather(every).inputs)
        assert torch.equal(first.targets, second.targets)
    assert frame(table, "a", features=["y"]).table.outputs == ("y=a", "y=b", "y=c")
    with pytest.raises(ConfigError, match="unknown column 'z'"):
        frame(table, "z")


# Folders of images


@pytest.mark.parametrize("in_memory", [True, False])
def test_image_folders_number_sorted_classes_and_hold_out_a_part_of_each(tmp_path, in_memory):
    pixels = write_images(tmp_path / "set")
    data = image_folder(str(tmp_path / "set"), in_memory=in_memory)
    assert isinstance(data.train, TensorData if in_memory else LoaderData)
    assert (data.name, data.class_names, data.input_shape) == ("set", ("a", "b"), (3, 6, 6))
    assert torch.bincount(data.test.targets).tolist() == [1, 1]
    found = {
        ("ab"[label], tuple(image.flatten().tolist()))
        for part in (data.train, data.test)
        for batch in part
        for image, label in zip(batch.inputs.permute(0, 2, 3, 1), batch.targets.tolist())
    }
    assert found == {(name, tuple(value.flatten().tolist())) for (name, _), value in pixels.items()}


def test_image_folders_with_parts_or_lists_use_them(tmp_path):
    write_images(tmp_path / "parts" / "train", rows=3)
    write_images(tmp_path / "parts" / "test", rows=2)
    data = image_folder(str(tmp_path / "parts"))
    assert (len(data.train), len(data.test)) == (6, 4)
    write_images(tmp_path / "lists", rows=3)
    (tmp_path / "lists" / "train.txt").write_text("a/0.png\nb/0.png\na/2.png\n")
    (tmp_path / "lists" / "test.txt").write_text("b/1.png\n")
    data = image_folder(str(tmp_path / "lists"))
    assert data.train.targets.tolist() == [0, 1, 0]
    assert data.test.targets.tolist() == [1]
    (tmp_path / "lists" / "test.txt").write_text("b/9.png\n")
    with pytest.raises(DataError, match=r"b/9\.png"):
        image_folder(str(tmp_path / "lists"))


def test_a_folder_like_tiny_imagenet_takes_the_classes_of_its_tests_from_the_file_beside_them(tmp_path):
    write_images(tmp_path / "train", names=("n01/images", "n02/images"), rows=3)
    write_images(tmp_path / "val", names=("images",), rows=2)
    with pytest.raises(DataError, match=r"no class of the test images \('images', ...\) is one of the training images"):
        image_folder(str(tmp_path))
    (tmp_path / "val" / "val_annotations.txt").write_text("0.png\tn02\t0\t0\t6\t6\n1.png\tn01\t0\t0\t6\t6\n")
    data = image_folder(str(tmp_path))
    assert data.class_names == ("n01", "n02")
    assert (len(data.train), data.test.targets.tolist()) == (6, [1, 0])
    (tmp_path / "val" / "val_annotations.txt").write_text("7.png\tn02\n")
    with pytest.raises(DataError, match=r"lists 7\.png, which is not in"):
        image_folder(str(tmp_path))


def test_images_are_resized_turned_grey_and_kept_out_of_memory_above_the_limit(tmp_path):
    write_images(tmp_path / "set", side=8)
    data = image_folder(str(tmp_path / "set"), size=[4, 6], grayscale=True, memory_limit_mb=0.0001)
    assert isinstance(data.train, LoaderData)
    assert data.input_shape == (1, 4, 6)
    assert data.train.gather(torch.tensor([0])).inputs.dtype == torch.uint8
    assert isinstance(image_folder(str(tmp_path / "set"), size=4).train, TensorData)


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_images(tmp_path / "set", names=("a",), side=8)
    write_images(tmp_path / "set", names=("b",), side=6)
    with pytest.raises(DataError, match="size="):
        image_folder(str(tmp_path / "set"))
    with pytest.raises(DataError, match="size"):
        list(image_folder(str(tmp_path / "set"), in_memory=False).train)
    assert image_folder(str(tmp_path / "set"), size=5).input_shape == (3, 5, 5)
    for part, side in (("train", 8), ("test", 6)):
        write_images(tmp_path / "parts" / part, names=("a",), side=side)
    with pytest.raises(DataError, match=r"test/a/0.png has \(6, 6\) pixels.*size="):
        image_folder(str(tmp_path / "parts"))


def test_wrong_image_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        image_folder(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no sub-folders"):
        image_folder(str(tmp_path))
    write_images(tmp_path / "set")
    (tmp_path / "set" / "a" / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"0\.png is no image"):
        image_folder(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="size is 0"):
        image_folder(str(tmp_path / "set"), size=0)


def test_a_missing_optional_library_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"holdfast\[images\]"):
        image_folder(str(tmp_path))
    with pytest.raises(ImportError, match=r"holdfast\[vision\]"):
        torchvision("MNIST")
    with pytest.raises(ImportError, match=r"holdfast\[hdf5\]"):
        usps()


# torchvision


def test_torchvision_sets_that_hold_their_pixels_stay_in_memory(tmp_path):
    pytest.importorskip("torchvision")
    pixels, labels = write_mnist(tmp_path / "MNIST" / "raw", rows=20, packed=False)
    data = torchvision("mnist", root=str(tmp_path))
    assert isinstance(data.train, TensorData)
    assert (data.name, data.input_shape, data.classes) == ("mnist", (1, 2, 2), 3)
    assert data.train.gather(torch.arange(20)).inputs[:, 0].tolist() == pixels.tolist()
    assert data.test.targets.tolist() == labels.tolist()


def test_torchvision_sets_that_are_read_as_files_go_through_a_loader(tmp_path):
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    lines = []
    for row in range(6):
        name = f"{'ab'[row % 2]}/{'ab'[row % 2]}_{row}.jpg"
        (tmp_path / "dtd" / "dtd" / "images" / "ab"[row % 2]).mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4 + row, 5, 3), 40 * row, np.uint8)).save(tmp_path / "dtd" / "dtd" / "images" / name)
        lines.append(name)
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir()
    (labels / "train1.txt").write_text("\n".join(lines[:4]))
    (labels / "test1.txt").write_text("\n".join(lines[4:]))
    data = torchvision("DTD", root=str(tmp_path), size=8)
    assert isinstance(data.train, LoaderData)
    assert (data.input_shape, data.class_names) == ((3, 8, 8), ("a", "b"))
    pixels = data.train.gather(torch.tensor([3])).inputs
    assert pixels.dtype == torch.uint8
    assert abs(float(pixels.float().mean()) - 120) <= 2


def test_torchvision_errors_name_what_is_wrong(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(ConfigError, match="did you mean 'CIFAR10'"):
        torchvision("CIFAR1O")
    with pytest.raises(DataError, match="download"):
        torchvision("CIFAR10", root=str(tmp_path))
    with pytest.raises(ConfigError, match="torch_dataset"):
        torchvision("FakeData", root=str(tmp_path))


# The namespace


def test_factories_describe_every_argument_and_take_plain_values():
    for name in datasets.__all__:
        factory = getattr(datasets, name)
        for parameter in inspect.signature(factory).parameters.values():
            assert f"        {parameter.name}: " in factory.__doc__, (name, parameter.name)
            if parameter.default is not inspect.Parameter.empty:
                json.dumps(parameter.default)


# Real data


def test_split_mnist_has_the_known_numbers_of_samples(real):
    data = mnist(real("mnist"))
    stream = split(data, experiences=5, validation=0.1)
    whole = [12665, 12089, 11263, 12183, 11800]
    assert [len(e.train) + len(e.validation) for e in stream] == whole
    assert [len(e.test) for e in stream] == [2115, 2042, 1874, 1986, 1983]
    assert all(abs(len(e.validation) - 0.1 * total) <= 1 for e, total in zip(stream, whole))
    assert data.train.store.inputs.dtype == torch.uint8


def test_the_cifar100_subset_loads(real):
    data = npz(real("cifar100_subset/cifar100_100x100train_100x20test.npz"))
    assert (data.input_shape, data.classes, data.class_names[:2]) == ((3, 32, 32), 100, ("apple", "aquarium_fish"))
    stream = split(data, experiences=10, class_order="random", seed=1)
    assert [len(e.train) for e in stream] == [1000] * 10
    assert [len(e.test) for e in stream] == [200] * 10


def test_deeppcb_loads_with_its_official_split_and_by_board_group(real):
    path = real("deeppcb/deeppcb_crops64.npz")
    data = npz(path)
    assert (data.input_shape, data.classes, len(data.train), len(data.test)) == ((1, 64, 64), 6, 6873, 3140)
    boards = [npz(path, where={"group": [group]}, split="") for group in (41, 12300, 92000)]
    stream = domains(boards)
    assert stream.classes == 6
    assert [len(e.train) + len(e.test) for e in stream] == [1642, 600, 660]


def test_the_digits_are_those_of_scikit_learn_with_and_without_its_import(monkeypatch):
    from sklearn.datasets import load_digits

    read, theirs = digits(test_fraction=0.0), load_digits()
    every = torch.arange(len(theirs.target))
    assert torch.equal(read.train.gather(every).inputs, torch.from_numpy(theirs.images).to(torch.uint8)[:, None])
    assert read.train.targets.tolist() == theirs.target.tolist()
    monkeypatch.setattr("numpy.loadtxt", lambda *_, **__: (_ for _ in ()).throw(OSError("moved")))
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: theirs)
    imported = digits(test_fraction=0.0)
    assert torch.equal(imported.train.gather(every).inputs, read.train.gather(every).inputs)
    assert torch.equal(imported.train.targets, read.train.targets)


def test_digits_of_three_sources_make_a_domain_stream(real):
    pytest.importorskip("h5py")
    stream = domains([mnist(real("mnist")), usps(real("usps")), digits()], size=16)
    assert (stream.input_shape, stream.classes) == ((1, 16, 16), 10)
    assert [len(e.train) for e in stream] == [60000, 7291, 1438]
    brightness = [stream.prepare(e.train.gather(torch.arange(500)).inputs).mean().item() for e in stream]
    assert all(0.1 < value < 0.4 for value in brightness)


def test_kmnist_test_images_load(real):
    data = npz(real("kmnist_test/kmnist-test-imgs.npz"))
    assert (len(data.train), len(data.test), data.input_shape) == (8000, 2000, (1, 28, 28))


def test_the_electricity_stream_loads_in_order(real):
    data = csv(real("streams/elec.csv.gz"))
    assert (len(data.train) + len(data.test), data.input_shape, data.classes) == (45312, (6,), 2)
    period = data.train.gather(torch.arange(3)).inputs[:, 0]
    assert period.tolist() == pytest.approx([0.0, 0.021277, 0.042553])


@pytest.mark.parametrize(
    ("degree", "low", "function"),
    [
        (1, -4, lambda x: x + 3),
        (2, -1, lambda x: 2 * x * x - 1),
        (3, 2, lambda x: (x - 3) ** 3),
    ],
)
def test_the_three_polynomials_are_the_published_ones(degree, low, function):
    random = np.random.RandomState(42)
    x = random.uniform(low, low + 2, size=(100, 1))
    noise = random.normal(0, 0.05, size=(100, 1))
    data = polynomial(degree=degree)
    train, test = (part.gather(torch.arange(len(part))) for part in (data.train, data.test))
    assert np.allclose(train.inputs.numpy(), x, atol=1e-6)
    assert np.allclose(train.targets.numpy(), function(x) + noise, atol=1e-5)
    assert np.allclose(test.inputs.numpy().ravel(), np.linspace(low, low + 2, 50), atol=1e-6)
    assert np.allclose(test.targets.numpy(), function(test.inputs.numpy()), atol=1e-5)
