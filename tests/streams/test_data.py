from __future__ import annotations

import copy
import os
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from holdfast.core.errors import ConfigError, DataError
from holdfast.streams import views
from holdfast.streams.data import LoaderData, TensorData, concat, materialise
from holdfast.streams.transforms import Permute, Rotate


def numbered(rows: int = 100) -> TensorData:
    return TensorData(torch.arange(rows * 3).view(rows, 3), torch.arange(rows) % 4)


class Items:
    """A map-style data set that counts how often it is read."""

    def __init__(self, rows: int, known: bool = True) -> None:
        self.rows = rows
        self.reads = 0
        if known:
            self.targets = [row % 3 for row in range(rows)]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        change = getattr(self, "target_transform", int)
        return torch.full((2, 2), row, dtype=torch.uint8), change(row % 3)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 1000])
def test_batches_hold_the_samples_in_the_given_order(batch_size):
    data = numbered()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    seen = list(data.batches(order, batch_size))
    for number, batch in enumerate(seen):
        expected = order[number * batch_size : (number + 1) * batch_size].tolist()
        assert batch.inputs.tolist() == [[3 * row, 3 * row + 1, 3 * row + 2] for row in expected]
        assert batch.targets.tolist() == [row % 4 for row in expected]
    assert sum(len(batch.targets) for batch in seen) == 100


def test_more_samples_than_one_chunk_are_given_once_each(monkeypatch):
    monkeypatch.setattr(views, "CHUNK_BYTES", 24 * 10)
    data = numbered(95)
    seen = [row[0] // 3 for batch in data.batches(torch.arange(95), 4) for row in batch.inputs.tolist()]
    assert seen == list(range(95))


def test_a_subset_of_a_subset_points_at_the_right_rows_whether_contiguous_or_not():
    data = numbered()
    scattered = data.subset(torch.tensor([9, 3, 50, 51, 52, 3]))
    assert scattered.subset(torch.tensor([2, 3, 4])).gather(torch.tensor([1])).inputs.tolist() == [[153, 154, 155]]
    assert isinstance(scattered.subset(torch.tensor([2, 3, 4]))._rows, range)
    assert scattered.subset(torch.tensor([5, 0])).gather(torch.tensor([0, 1])).inputs[:, 0].tolist() == [9, 27]
    middle = data.subset(torch.arange(20, 40))
    assert middle.subset(torch.arange(5, 8)).gather(torch.tensor([2])).inputs[0, 0] == 81


def test_a_subset_cannot_reach_rows_beyond_its_own():
    with pytest.raises(IndexError):
        next(numbered().subset(torch.arange(10)).batches(torch.tensor([10]), 1))


def test_subsets_share_the_memory_of_the_inputs():
    data = numbered()
    subset = data.subset(torch.tensor([1, 5])).derive(target_shift=3)
    assert subset.store.inputs.data_ptr() == data.store.inputs.data_ptr()


def test_changing_a_batch_does_not_change_the_data():
    data = numbered()
    for batch in data.batches(torch.arange(100), 10):
        batch.inputs.zero_()
        batch.targets.zero_()
    assert data.gather(torch.tensor([99])).inputs.tolist() == [[297, 298, 299]]
    assert data.targets[3] == 3


def test_label_map_and_shift_apply_to_targets_and_batches_alike():
    data = TensorData(torch.zeros(4, 1), torch.tensor([0, 1, 2, 1]), label_map=torch.tensor([2, 0, 1]), target_shift=10)
    assert data.targets.tolist() == [12, 10, 11, 10]
    assert data.gather(torch.tensor([2, 0])).targets.tolist() == [11, 12]


def test_a_label_that_the_map_does_not_know_is_an_error():
    with pytest.raises(DataError, match="0 to 2"):
        TensorData(torch.zeros(3, 1), torch.tensor([0, 1, 2]), label_map=torch.tensor([0, 1]))


def test_an_empty_order_gives_no_batch_and_an_empty_gather_an_empty_one():
    data = numbered()
    empty = torch.tensor([], dtype=torch.int64)
    assert list(data.batches(empty, 5)) == []
    assert data.gather(empty).inputs.shape == (0, 3)
    assert len(data.subset(empty)) == 0
    assert list(data.subset(empty)) == []


def test_tuples_and_mappings_of_tensors_are_gathered_together():
    data = TensorData({"a": torch.arange(5), "b": torch.arange(10).view(5, 2)}, torch.zeros(5))
    batch = next(data.batches(torch.tensor([4, 0, 2]), 2))
    assert batch.inputs["a"].tolist() == [4, 0]
    assert batch.inputs["b"].tolist() == [[8, 9], [0, 1]]
    pair = TensorData((torch.arange(5), torch.arange(5) * 2), torch.zeros(5))
    assert [part.tolist() for part in next(iter(pair)).inputs] == [[0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]


def test_inputs_and_targets_of_different_number_are_an_error():
    with pytest.raises(DataError, match="3 inputs and 4 targets"):
        TensorData(torch.zeros(3, 1), torch.zeros(4))


def test_a_batch_size_below_one_is_an_error():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(numbered().batches(torch.arange(3), 0))


def test_moving_keeps_one_copy_for_all_views():
    data = numbered()
    first, second = data.subset(torch.arange(10)).to("meta"), data.subset(torch.tensor([3, 1])).to("meta")
    assert first.store is second.store
    assert first.store is not data.store
    assert data.to("cpu").store is data.store
    assert first.targets.device.type == "cpu"


def test_data_survive_pickling_and_deep_copies():
    data = numbered().subset(torch.tensor([4, 2]))
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert torch.equal(again.gather(torch.tensor([0, 1])).inputs, data.gather(torch.tensor([0, 1])).inputs)


def test_concat_of_one_store_is_one_view_of_it():
    data = numbered()
    union = concat([data.subset(torch.tensor([7, 1])), data.subset(torch.arange(10, 13))])
    assert isinstance(union, TensorData)
    assert union.store is data.store
    assert union.gather(torch.arange(5)).inputs[:, 0].tolist() == [21, 3, 30, 33, 36]


def test_concat_of_different_transforms_gives_what_the_parts_give_in_any_order():
    data = numbered(10)
    parts = [data.derive(transform=Permute(seed)) for seed in range(3)]
    union = concat(parts)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    seen = torch.cat([batch.inputs for batch in union.batches(order, 4)])
    labels = torch.cat([batch.targets for batch in union.batches(order, 4)])
    for place, row in enumerate(order.tolist()):
        part, inner = divmod(row, 10)
        one = parts[part].gather(torch.tensor([inner]))
        assert seen[place].tolist() == one.inputs[0].tolist()
        assert labels[place] == one.targets[0]
    assert (
        union.subset(torch.tensor([25, 0])).gather(torch.tensor([0])).inputs[0].tolist()
        == seen[order.tolist().index(25)].tolist()
    )


def test_concat_of_concats_is_flat():
    parts = [numbered(4) for _ in range(3)]
    nested = concat([concat(parts[:2]), parts[2]])
    assert len(nested.store) == 3
    assert torch.equal(nested.targets, torch.cat([part.targets for part in parts]))
    shifted = concat([concat(parts[:2]).derive(target_shift=4), parts[2]])
    assert shifted.targets.tolist() == [4, 5, 6, 7, 4, 5, 6, 7, 0, 1, 2, 3]


def test_concat_of_different_tasks_labels_every_row():
    data = numbered(10)
    parts = [data.subset(torch.arange(4)).derive(task=0), data.subset(torch.arange(4, 6)).derive(task=3)]
    union = concat(parts)
    assert union.gather(torch.tensor([5, 0, 4])).task.tolist() == [3, 0, 3]
    tasks = [batch.task.tolist() for batch in union.subset(torch.tensor([4, 3, 5])).batches(torch.tensor([1, 0, 2]), 2)]
    assert tasks == [[0, 3], [3]]
    assert concat([parts[0], parts[0]]).task == 0
    assert concat([parts[0], data]).task is None


def test_concat_of_nothing_is_an_error():
    with pytest.raises(ConfigError):
        concat([])


def test_loader_data_give_the_same_batches_as_tensor_data():
    loader = LoaderData(Items(20)).subset(torch.tensor([5, 6, 2, 19]))
    tensors = TensorData(
        torch.arange(20, dtype=torch.uint8).view(20, 1, 1).expand(20, 2, 2), torch.arange(20) % 3
    ).subset(torch.tensor([5, 6, 2, 19]))
    order = torch.tensor([3, 0, 1])
    for one, two in zip(loader.batches(order, 2), tensors.batches(order, 2), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
    assert torch.equal(loader.gather(order).inputs, tensors.gather(order).inputs)


def test_loader_data_read_with_workers_in_the_same_order():
    data = LoaderData(Items(9), workers=1).derive(transform=lambda inputs: inputs + 1)
    order = torch.tensor([8, 1, 4, 0, 2])
    assert [batch.inputs[:, 0, 0].tolist() for batch in data.batches(order, 2)] == [[9, 2], [5, 1], [3]]


def test_targets_are_found_with_a_look_at_two_items_where_the_data_set_has_them():
    items = Items(12)
    assert LoaderData(items).targets.tolist() == [row % 3 for row in range(12)]
    assert items.reads == 2
    subset = Subset(items, [3, 4])
    assert LoaderData(ConcatDataset([subset, items])).targets.tolist()[:3] == [0, 1, 0]
    assert items.reads == 6
    tensors = TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
    assert LoaderData(tensors).targets.tolist() == [2, 0, 1]
    unknown = Items(5, known=False)
    assert LoaderData(unknown).targets.tolist() == [0, 1, 2, 0, 1]
    assert unknown.reads == 5


def test_a_target_transform_of_the_data_set_is_applied():
    items = Items(4)
    items.target_transform = lambda target: 10 + target
    assert LoaderData(items).targets.tolist() == [10, 11, 12, 10]


def test_concat_of_loader_data_reads_the_right_items():
    one, two = LoaderData(Items(4)), LoaderData(Items(6)).subset(torch.tensor([5, 3]))
    union = concat([one, two])
    assert isinstance(union, LoaderData)
    assert [batch.inputs[:, 0, 0].tolist() for batch in union.batches(torch.tensor([4, 0, 5]), 2)] == [[5, 0], [3]]


def test_reading_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for data in (LoaderData(Items(9)), numbered().derive(transform=Permute(3))):
        list(data.batches(torch.arange(9), 2))
    assert torch.equal(before, torch.get_rng_state())


def test_samples_of_different_shapes_are_an_error_that_names_the_remedy():
    data = LoaderData([(torch.zeros(2), 0), (torch.zeros(3), 1)])
    with pytest.raises(DataError, match="size"):
        data.gather(torch.tensor([0, 1]))


def test_materialised_data_equal_the_lazy_ones():
    images = torch.randint(0, 256, (30, 1, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for transform in (Permute(4), Rotate(33.0)):
        lazy = TensorData(images, torch.zeros(30), transform=transform)
        eager = materialise(lazy)
        assert eager.transform is None
        assert torch.equal(eager.store.inputs, transform(images))
        order = torch.tensor([4, 29, 0])
        assert torch.equal(eager.gather(order).inputs, lazy.gather(order).inputs)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_epoch_over_many_images_takes_little_memory():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    images = torch.from_numpy(np.full((200 * 2**20 // 3072, 3, 32, 32), 7, dtype=np.uint8))
    data = TensorData(images, torch.zeros(len(images), dtype=torch.int64))
    parts = [data.subset(torch.randperm(len(data))) for _ in range(3)]
    list(parts[0].batches(torch.arange(2000), 100))
    before, most = resident(), 0
    for part in parts:
        for number, _ in enumerate(part.batches(torch.randperm(len(part)), 1000)):
            most = max(most, resident()) if number % 4 == 0 else most
    assert most - before < 60 * 2**20


# Data sets of others ---------------------------------------------------------------------------------------


X, Y = torch.arange(12.0).view(6, 2), torch.tensor([2, 0, 1, 2, 0, 1])


class Mappings:
    """Items as the `datasets` library gives them."""

    def __init__(self, *keys: str, label: str = "label") -> None:
        self.keys, self.label = keys, label

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> dict[str, object]:
        return {**dict.fromkeys(self.keys, X[row]), self.label: int(Y[row])}


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)


class Coarse(Dataset):
    """Says other targets than its items have, as a wrapper that forgot to change them."""

    targets = [0, 1, 2, 3, 4, 5]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        torch.rand(1), np.random.rand(), random.random()
        return X[row], int(Y[row])


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X, Y, torch.arange(6)),
        TensorDataset(X, Y, torch.rand(6), torch.arange(6)),
        TensorDataset(X, Y.view(6, 1)[:, 0]),
        [(x, y, row) for row, (x, y) in enumerate(zip(X, Y))],
        Mappings("image"),
        Mappings("pixel_values", label="labels"),
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        DataLoader(TensorDataset(X, Y, torch.arange(6)), batch_size=4),
        Coarse(),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_inputs_and_targets_are_found_in_the_usual_data_sets(dataset):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    data = LoaderData(dataset)
    assert data.targets.tolist() == Y.tolist()
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert torch.equal(data.gather(torch.tensor([4, 1])).inputs, X[[4, 1]])


def test_several_inputs_of_mappings_stay_named_without_their_target():
    found = LoaderData(Mappings("input_ids", "attention_mask")).gather(torch.tensor([3])).inputs
    assert sorted(found) == ["attention_mask", "input_ids"]


def test_a_loader_with_a_sampler_of_a_part_gives_that_part():
    loader = DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([5, 0, 2]), num_workers=0)
    data = LoaderData(loader)
    assert data.targets.tolist() == [1, 2, 1]
    assert torch.equal(data.gather(torch.tensor([0])).inputs, X[5:6])


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (TensorDataset(X, torch.ones(6, 2), Y), "3 tensors"),
        (TensorDataset(X), "one tensor"),
        (Endless(), "no length"),
        (DataLoader(Endless()), "IterableDataset"),
        (iter([(X[0], 1)]), "no length"),
        (DataLoader(TensorDataset(X, Y), collate_fn=list), "collate function"),
        (DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 6, 6)), "WeightedRandomSampler"),
        ([(row, x, y) for row, (x, y) in enumerate(zip(X, Y))], "begins with the number"),
        ([{"image": x} for x in X], "Give targets"),
        (list(X), "no target"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_data_sets_whose_targets_cannot_be_told_are_refused_with_a_sentence(dataset, said):
    with pytest.raises(DataError, match=said):
        LoaderData(dataset)


def test_targets_that_are_given_are_taken_whatever_the_items_hold():
    tensors = TensorDataset(X, torch.ones(6, 2), Y)
    assert LoaderData(tensors, targets=Y).targets.tolist() == Y.tolist()
