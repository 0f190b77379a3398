"""Values as people have them: missing, infinite, of 16 bits, counts, tokens; in arrays, npz files and image folders."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from holdfast.core.errors import ConfigError, DataError, HoldfastError
from holdfast.streams import split
from holdfast.streams.datasets import arrays, image_folder, npz, torch_dataset
from holdfast.streams.datasets.images import read_image


def rows(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3)).astype("f4"), np.array(["ok", "fault"] * (count // 2), dtype=object)


def inputs_of(data) -> torch.Tensor:
    return data.gather(torch.arange(len(data))).inputs


# Missing values


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_missing_inputs_are_refused_filled_or_dropped_as_it_is_written(gap):
    x, y = rows()
    x[3, 1] = gap
    with pytest.raises(DataError, match=r"1 of 20 samples .* row 3, feature 1"):
        arrays(x, y)
    filled = inputs_of(arrays(x, y, missing="mean", test_fraction=0.0).train)
    assert float(filled[3, 1]) == pytest.approx(float(np.delete(x[:, 1], 3).mean()))
    assert torch.equal(filled[:3], torch.from_numpy(x[:3]))
    with pytest.warns(UserWarning, match="1 of 20 rows"):
        kept = arrays(x, y, missing="drop", test_fraction=0.0).train
    assert torch.equal(inputs_of(kept), torch.from_numpy(np.delete(x, 3, 0)))


def test_test_data_are_filled_with_the_means_of_the_training_data():
    x, y = rows()
    tests, labels = rows(4)
    x[0, 2], tests[1, 2] = np.nan, np.nan
    data = arrays(x, y, tests, labels, missing="mean")
    assert float(inputs_of(data.test)[1, 2]) == pytest.approx(float(np.nanmean(x[:, 2])))
    with pytest.raises(DataError, match="test data"):
        arrays(rows()[0], y, tests, labels)


@pytest.mark.parametrize("gap", [None, float("nan"), "", "  ", np.datetime64("NaT")])
def test_missing_labels_are_no_class(gap):
    x, y = rows()
    y[5] = gap
    for missing in ("refuse", "mean"):
        with pytest.raises(DataError, match=r"labels are missing, the first in row 5"):
            arrays(x, y, missing=missing)
    with pytest.warns(UserWarning, match="left out"):
        data = arrays(x, y, missing="drop")
    assert data.class_names == ("fault", "ok")
    assert len(data.train) + len(data.test) == 19


def test_missing_numbers_to_predict_and_missing_float_labels_are_refused():
    x = rows()[0]
    with pytest.raises(DataError, match="labels are missing"):
        arrays(x, np.where(np.arange(20) == 2, np.nan, 1.0), kind="regression")
    with pytest.raises(DataError, match="labels are missing"):
        arrays(x, np.where(np.arange(20) == 2, np.nan, np.arange(20) % 2))
    with pytest.raises(DataError, match="every row"):
        arrays(np.full((4, 2), np.nan), [0, 1, 0, 1], missing="drop")
    with pytest.raises(DataError, match="no value at all"):
        arrays(np.full((4, 2), np.nan), [0, 1, 0, 1], missing="mean")


def test_gaps_of_an_npz_file_count_in_the_rows_that_are_used(tmp_path):
    x, y = rows()
    x[1, 0], group = np.nan, np.arange(20) % 4
    np.savez(tmp_path / "s.npz", x=x, y=y.astype(str), group=group)
    with pytest.raises(DataError, match="missing or infinite"):
        npz(str(tmp_path / "s.npz"))
    assert len(npz(str(tmp_path / "s.npz"), where={"group": [0, 2]}, test_fraction=0.0).train) == 10
    assert bool(inputs_of(npz(str(tmp_path / "s.npz"), missing="mean").train).isfinite().all())
    labels = np.where(np.arange(20) == 6, np.nan, np.arange(20) % 2)
    np.savez(tmp_path / "t.npz", x=rows()[0], y=labels)
    with pytest.raises(DataError, match="labels are missing"):
        npz(str(tmp_path / "t.npz"))
    with pytest.warns(UserWarning, match="left out"):
        assert npz(str(tmp_path / "t.npz"), missing="drop").class_names == ("0", "1")


def test_labels_that_are_numbers_in_an_object_column_are_sorted_as_numbers():
    assert arrays(rows()[0], np.array([9, 10] * 10, dtype=object)).class_names == ("9", "10")


# Kinds of numbers


@pytest.mark.parametrize("kind", ["i8", "i4", "i2", "u2", "u4", "i1"])
def test_counts_reach_the_model_as_they_are_and_bytes_as_parts_of_255(kind):
    counts = np.arange(60).reshape(20, 3).astype(kind)
    data = arrays(counts, np.arange(20) % 2, test_fraction=0.0)
    assert torch.equal(data.prepare(inputs_of(data.train)), torch.from_numpy(counts.astype("f4")))
    scaled = arrays(counts, np.arange(20) % 2, test_fraction=0.0, scale=10.0)
    torch.testing.assert_close(scaled.prepare(inputs_of(scaled.train)), torch.from_numpy(counts.astype("f4")) / 10)
    data = arrays(counts.astype("u1"), np.arange(20) % 2, test_fraction=0.0)
    torch.testing.assert_close(data.prepare(inputs_of(data.train)), torch.from_numpy(counts.astype("f4")) / 255)


def test_truth_values_are_zeros_and_ones_and_16_bit_images_floats_up_to_one():
    flags = arrays(np.eye(4, dtype=bool), [0, 1, 0, 1], test_fraction=0.0, scale=1.0)
    assert flags.prepare(inputs_of(flags.train)).max() == 1
    pixels = np.arange(4 * 25, dtype="u2").reshape(4, 5, 5) * 600
    data = arrays(pixels, [0, 1, 0, 1], test_fraction=0.0)
    assert data.input_shape == (1, 5, 5)
    seen = data.prepare(inputs_of(data.train))
    torch.testing.assert_close(seen[:, 0], torch.from_numpy(pixels.astype("f4")) / 65535)
    twelve = arrays(pixels // 16, [0, 1, 0, 1], test_fraction=0.0, scale=4095.0)
    assert 0.9 < float(twelve.prepare(inputs_of(twelve.train)).max()) < 1


def test_tokens_stay_whole_numbers_through_a_stream(tmp_path):
    tokens = np.arange(40).reshape(10, 4)
    data = arrays(tokens, np.arange(10) % 2, layout="tokens", test_fraction=0.0)
    stream = split(data, experiences=2)
    assert stream.prepare is None
    assert stream[0].train.gather(torch.tensor([0])).inputs.dtype == torch.int64
    np.savez(tmp_path / "t.npz", x=tokens.astype("u2"), y=np.arange(10) % 2)
    assert npz(str(tmp_path / "t.npz"), layout="tokens").prepare is None
    with pytest.raises(ConfigError, match="whole numbers"):
        arrays(tokens / 2, np.arange(10) % 2, layout="tokens")
    with pytest.raises(ConfigError, match="tokens"):
        arrays(tokens, np.arange(10) % 2, layout="tokens", normalise=True)


def test_inputs_that_are_no_numbers_are_refused_with_a_sentence():
    with pytest.raises(DataError, match="not numbers"):
        arrays(np.array([["a", "b"], ["c", "d"]]), [0, 1])


# Folders of images


def save(path, size=(8, 8), deep=False, seed=0):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).random(size)
    image.fromarray((pixels * 65535).astype("u2") if deep else (pixels * 255).astype("u1")).save(path)
    return pixels


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("grayscale", [True, False])
def test_16_bit_images_keep_their_differences(tmp_path, in_memory, grayscale):
    pixels = {n: save(tmp_path / n / f"{i}.png", deep=True, seed=i) for n in ("a", "b") for i in range(3)}
    data = image_folder(str(tmp_path), in_memory=in_memory, grayscale=grayscale, test_fraction=0.0)
    seen = data.prepare(inputs_of(data.train))
    assert seen.shape[1] == (1 if grayscale else 3)
    torch.testing.assert_close(seen[2, 0], torch.from_numpy(pixels["a"]).float(), rtol=0, atol=1e-4)
    assert image_folder(str(tmp_path), size=4, grayscale=True).input_shape == (1, 4, 4)


def test_images_of_8_and_16_bits_together_and_of_32_bits_are_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number in range(3):
        save(tmp_path / "a" / f"{number}.png")
        save(tmp_path / "b" / f"{number}.png", deep=True)
    for in_memory in (True, False):
        with pytest.raises(DataError, match=r"8 and of 16 bits|types"):
            inputs_of(image_folder(str(tmp_path), in_memory=in_memory, grayscale=True, test_fraction=0.0).train)
    image.fromarray(np.ones((4, 4), dtype="f4")).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="32 bits"):
        read_image(tmp_path / "f.tiff")


def test_images_are_found_however_deep_they_lie_below_their_class(tmp_path):
    for name in ("cat", "dog"):
        for part in ("", "x", "x/y", ".hidden", "__MACOSX"):
            save(tmp_path / name / part / "1.png")
        save(tmp_path / name / "._2.png")
    data = image_folder(str(tmp_path), test_fraction=0.0)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == 6


def test_training_and_test_images_may_lie_in_the_folder_of_each_class(tmp_path):
    for name, tests in (("cat", ("good",)), ("dog", ("good", "broken"))):
        for number in range(3):
            save(tmp_path / name / "train" / "good" / f"{number}.png")
        for test in tests:
            save(tmp_path / name / "test" / test / "0.png")
    data = image_folder(str(tmp_path))
    assert (data.class_names, len(data.train), len(data.test)) == (("cat", "dog"), 6, 3)
    assert data.test.targets.tolist() == [0, 1, 1]
    save(tmp_path / "owl" / "1.png")
    with pytest.raises(DataError, match=r"'owl' has none"):
        image_folder(str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "data/", "some/where/"])
@pytest.mark.parametrize("inner", ["{name}/{part}/{number}.png", "{part}/{name}/{number}.png", "{name}/s/{number}.png"])
def test_the_class_of_a_listed_image_is_the_folder_that_tells_them_apart(tmp_path, prefix, inner):
    lists = {"train": [], "test": []}
    for part, entries in lists.items():
        for name in ("cat", "dog"):
            for number in range(2):
                path = prefix + inner.format(name=name, part=part, number=f"{part}{number}")
                save(tmp_path / path)
                entries.append(path)
    for part, entries in lists.items():
        (tmp_path / f"{part}.txt").write_text("\ufeff" + "\n".join(entries) + "\n\n", encoding="utf-8")
    data = image_folder(str(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (4, 4)


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / name / "1.png")
    save(tmp_path / "loose.png")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="1 images lie in no folder"):
        image_folder(str(tmp_path), test_fraction=0.0)
    with pytest.warns(UserWarning, match="empty without images"):
        image_folder(str(tmp_path), test_fraction=0.0)


# Two data sets of torch


class Named(list):
    """A torch data set that says its classes, as torchvision's ImageFolder does."""

    def __init__(self, classes, targets):
        super().__init__((torch.full((2,), float(number)), number) for number in targets)
        self.classes, self.targets = classes, targets


def test_classes_of_training_and_test_data_sets_are_matched_by_name():
    train, test = Named(["ant", "bee", "cat"], [0, 1, 2]), Named(["ant", "cat"], [0, 1, 1])
    data = torch_dataset(train, test)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.test.targets.tolist() == [0, 2, 2]
    with pytest.raises(DataError, match="dog"):
        torch_dataset(train, Named(["ant", "dog"], [0, 1]))


# Anything


def test_random_arrays_are_taken_or_refused_with_a_sentence():
    rng = np.random.default_rng(0)
    refused: list[str] = []
    kinds = ["f4", "f8", "f2", "i1", "i8", "u1", "u2", "u4", "?", "O", "U3", "c8", "M8[s]"]
    for _ in range(150):
        shape = [int(rng.integers(0, 6)), *(int(rng.integers(0, 5)) for _ in range(rng.integers(0, 4)))]
        x = (rng.normal(size=shape) * 10 ** rng.integers(0, 30)).astype("f8")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = x.astype(str(rng.choice(kinds[:-3]))) if rng.random() < 0.9 else x.astype("U3")
            if x.dtype.kind == "f" and x.size and rng.random() < 0.3:
                x.flat[int(rng.integers(x.size))] = rng.choice([np.nan, np.inf])
            y = rng.choice([0, 1, 2], shape[0]).astype(str(rng.choice(["i8", "f4", "U2", "O", "?"])))
            if y.dtype.kind in "fO" and len(y) and rng.random() < 0.3:
                y[0] = np.nan if y.dtype.kind == "f" else None
            try:
                data = arrays(
                    x, y, missing=str(rng.choice(["refuse", "mean", "drop"])), normalise=bool(rng.integers(2))
                )
            except HoldfastError as error:
                refused.append(str(error))
                continue
            seen = data.prepare(inputs_of(data.train))
            assert bool(seen.isfinite().all())
    assert all(said.endswith(".") for said in refused)
    assert 20 < len(refused) < 130


def test_images_stand_upright_and_what_is_not_read_is_named(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(4 * 6 * 3, dtype="u1").reshape(4, 6, 3)
    (tmp_path / "set" / "a").mkdir(parents=True)
    image.fromarray(pixels).save(tmp_path / "set" / "a" / "0.png")
    tags = image.Exif()
    tags[0x0112] = 6  # a camera that was turned by a quarter
    turned = image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    turned.save(tmp_path / "set" / "a" / "1.png", exif=tags)
    data = image_folder(str(tmp_path / "set"), test_fraction=0.0)
    first, second = data.train.gather(torch.arange(2)).inputs
    assert torch.equal(first, second)
    (tmp_path / "set" / "a" / "2.heic").write_bytes(b"?")
    image.fromarray(pixels).save(
        tmp_path / "set" / "a" / "3.tif", save_all=True, append_images=[image.fromarray(255 - pixels)]
    )
    with pytest.warns(UserWarning, match="are not read") as told:
        image_folder(str(tmp_path / "set"), test_fraction=0.0)
    messages = " ".join(str(one.message) for one in told)
    assert "pages or frames are read by their first one" in messages
    assert "images that end in .heic are not read" in messages
