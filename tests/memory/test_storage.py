"""Columns of preallocated tensors."""

import gc
import io
import weakref

import pytest
import torch

from holdfast.core.errors import ConfigError, DataError
from holdfast.memory import Storage


def rows(count, width=3, start=0):
    return {
        "inputs": torch.arange(start, start + count, dtype=torch.uint8).unsqueeze(1),
        "targets": torch.arange(start, start + count),
        "logits": torch.full((count, width), float(start)),
    }


def test_dtypes_and_values_survive():
    storage = Storage(capacity=5)
    storage.write(slice(0, 3), rows(3))
    storage.write(torch.tensor([4, 1]), rows(2, start=10))
    read = storage.read(torch.tensor([4, 0, 1, 4]))
    assert read["inputs"].dtype == torch.uint8
    assert read["inputs"][:, 0].tolist() == [10, 0, 11, 10]
    assert read["targets"].tolist() == [10, 0, 11, 10]


@pytest.mark.parametrize("make", [lambda a, b: (a, b), lambda a, b: {"image": a, "angle": b}])
def test_nested_inputs_become_columns_and_are_restored(make):
    first, second = torch.arange(4, dtype=torch.uint8), torch.rand(4, 2)
    storage = Storage(capacity=4)
    storage.write(slice(0, 4), {"inputs": make(first, second), "targets": torch.arange(4)})
    assert len(storage.columns) == 3
    read = storage.read(torch.tensor([2, 1]))["inputs"]
    expected = make(first[[2, 1]], second[[2, 1]])
    assert type(read) is type(expected)
    names = expected if isinstance(expected, dict) else range(2)
    assert len(read) == 2
    assert all(torch.equal(read[name], expected[name]) for name in names)


def test_wider_logits_widen_the_column_and_pad_old_rows_with_nan():
    storage = Storage(capacity=3)
    storage.write(slice(0, 2), rows(2, width=2))
    storage.write(slice(2, 3), rows(1, width=4, start=7))
    logits = storage.read(slice(0, 3))["logits"]
    assert logits.shape == (3, 4)
    assert logits.isnan().tolist() == [[False, False, True, True]] * 2 + [[False] * 4]
    assert logits[:2, :2].eq(0).all()
    assert logits[2].eq(7).all()


def test_narrower_rows_are_refused():
    storage = Storage(capacity=3)
    storage.write(slice(0, 1), rows(1, width=4))
    with pytest.raises(DataError, match="logits"):
        storage.write(slice(1, 2), rows(1, width=3))


def test_float_inputs_never_widen():
    storage = Storage(capacity=3)
    storage.write(slice(0, 1), {"inputs": torch.rand(1, 2)})
    with pytest.raises(DataError, match="inputs"):
        storage.write(slice(1, 2), {"inputs": torch.rand(1, 3)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", torch.rand(1, 1)),
        ("targets", torch.zeros(1, 1, dtype=torch.int64)),
        ("targets", torch.zeros(2, dtype=torch.int64)),
        ("other", torch.zeros(1)),
        ("targets", 3.0),
    ],
)
def test_rows_unlike_the_first_ones_are_refused_and_nothing_is_written(name, value):
    storage = Storage(capacity=3)
    storage.write(slice(0, 1), rows(1))
    with pytest.raises(DataError):
        storage.write(slice(0, 1), {**rows(1, width=9, start=5), name: value})
    assert storage.read(slice(0, 1))["targets"].tolist() == [0]
    assert storage.columns["logits"].shape == (3, 3)


def test_half_precision_logits_join_a_float_column():
    storage = Storage(capacity=2)
    storage.write(slice(0, 1), rows(1))
    storage.write(slice(1, 2), {**rows(1), "logits": torch.ones(1, 3, dtype=torch.bfloat16)})
    assert storage.columns["logits"].dtype == torch.float32
    assert storage.read(slice(1, 2))["logits"].tolist() == [[1.0, 1.0, 1.0]]


def test_bytes_are_those_of_all_slots():
    storage = Storage(capacity=7)
    assert storage.nbytes == 0
    storage.write(slice(0, 1), rows(1))
    assert storage.nbytes == 7 * (1 + 8 + 3 * 4)


def test_neither_the_batch_nor_its_graph_is_kept_alive():
    storage = Storage(capacity=4)
    weight = torch.ones(3, requires_grad=True)
    data = torch.rand(1000, 3)
    batch = {"inputs": data[:2], "logits": data[:2] * weight}
    graph = weakref.ref(batch["logits"])
    source = weakref.ref(data)
    storage.write(slice(0, 2), batch)
    del batch, data
    gc.collect()
    assert graph() is None
    assert source() is None
    assert not storage.columns["logits"].requires_grad
    assert all(value._base is None for value in storage.columns.values())


def test_clearing_releases_the_columns():
    storage = Storage(capacity=4)
    storage.write(slice(0, 1), rows(1))
    column = weakref.ref(storage.columns["inputs"])
    storage.clear()
    assert column() is None
    assert storage.nbytes == 0
    storage.write(slice(0, 1), {"other": torch.zeros(1)})


def test_what_is_read_is_a_copy():
    storage = Storage(capacity=2)
    storage.write(slice(0, 2), rows(2))
    for slots in (slice(0, 2), torch.tensor([0, 1])):
        storage.read(slots)["targets"].fill_(99)
        assert storage.read(slots)["targets"].tolist() == [0, 1]


def test_state_goes_through_a_weights_only_file_and_holds_used_rows_only():
    storage = Storage(capacity=1000)
    storage.write(slice(0, 2), {**rows(2), "pair": (torch.zeros(2), torch.ones(2))})
    file = io.BytesIO()
    torch.save(storage.state(rows=2), file)
    assert file.tell() < 6000
    file.seek(0)
    other = Storage(capacity=1000)
    other.load(torch.load(file, weights_only=True))
    assert other.read(slice(0, 2))["pair"][1].tolist() == [1, 1]
    assert other.read(slice(0, 2))["targets"].tolist() == [0, 1]
    assert other.nbytes == storage.nbytes
    with pytest.raises(ConfigError, match="1000"):
        Storage(capacity=3).load(storage.state(2))


def test_rows_are_kept_on_the_device_asked_for():
    storage = Storage(capacity=2, device="cpu")
    storage.write(slice(0, 1), rows(1))
    assert storage.to("cpu") is storage
    assert {value.device.type for value in storage.columns.values()} == {"cpu"}


def test_a_storage_without_slots_is_refused():
    with pytest.raises(ConfigError, match="0 slots"):
        Storage(capacity=0)


def test_two_fields_cannot_become_one_column():
    with pytest.raises(DataError, match="same column"):
        Storage(capacity=2).write(slice(0, 1), {"a": (torch.zeros(1),), "a.0": torch.zeros(1)})
