"""Classes chosen and joined, fields in blocks, the regions of a simulation, and pictures of what is given back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import Trainer, datasets, methods, models, streams
from holdfast.config.build import build_model, build_stream
from holdfast.core.errors import ConfigError, DataError
from holdfast.runs import given_back, reconstructions
from holdfast.streams.datasets.chosen import CIFAR100_COARSE

DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR = DATA / "cifar100_subset" / "cifar100_100x100train_100x20test.npz"
KHI = DATA / "picongpu_khi" / "khi_t950_6regions_16384particles.npz"


def test_a_sub_dataset_has_the_samples_of_some_classes_in_the_order_that_was_asked_for() -> None:
    data = datasets.synthetic(classes=5, features=3, samples=4, test_samples=2, seed=0)
    part = datasets.sub_dataset(data, ["3", 1])
    batch = part.train.gather(torch.arange(len(part.train)))
    for new, old in ((0, 3), (1, 1)):
        expected = data.train.gather((data.train.targets == old).nonzero().flatten()).inputs
        assert torch.equal(batch.inputs[batch.targets == new], expected)
    kept = datasets.sub_dataset(data, [3, 1], renumber=False)
    assert (kept.classes, sorted(kept.train.targets.unique().tolist())) == (5, [1, 3])
    assert part.test is not None
    assert len(part.test) == 4
    for labels, said in (([7], "no such class"), ([1, 1], "twice"), ([], "empty"), (["nine"], "unknown class")):
        with pytest.raises(ConfigError, match=said):
            datasets.sub_dataset(data, labels)


def test_the_coarse_classes_of_cifar_are_twenty_of_five() -> None:
    assert len(CIFAR100_COARSE) == 20
    assert len({name for names in CIFAR100_COARSE.values() for name in names}) == 100
    if not CIFAR.is_file():
        pytest.skip("the subset of CIFAR-100 is not here")
    data = datasets.cifar100_coarse(str(CIFAR), normalise=False)
    fine = datasets.npz(str(CIFAR))
    assert data.classes == 20
    assert data.train.targets.bincount().tolist() == [500] * 20
    for row in (0, 777, 9999):
        coarse_name = data.names[int(data.train.targets[row])]
        named = fine.names[int(fine.train.targets[row])]
        assert {named, f"{named}_tree"} & set(CIFAR100_COARSE[coarse_name])


def test_fields_come_in_blocks_that_are_put_together_again_to_the_grid(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    grids = [random.normal(size=(2, 4, 6)).astype(np.float32) for _ in range(3)]
    for number, grid in enumerate(grids):
        np.save(tmp_path / f"E_{number}.npy", grid)
    data = datasets.fields(str(tmp_path), block=[2, 3], components=[1], test_fraction=0.25)
    assert (data.input_shape, data.group_names, len(data.train), len(data.test or ())) == (
        *((1, 2, 3), ("E_0", "E_1", "E_2"), 9, 3),
    )
    first = grids[0][1]
    scaled = (first - first.mean()) / first.std()
    blocks = torch.cat([part.gather((groups == 0).nonzero().flatten()).inputs for part, groups in (
        (data.train, data.groups), (data.test, data.test_groups)
    )])  # type: ignore[union-attr, operator]  # fmt: skip
    expected = {tuple(np.round(scaled[r : r + 2, c : c + 3].ravel(), 4)) for r in (0, 2) for c in (0, 3)}
    assert {tuple(np.round(block.flatten().numpy(), 4)) for block in blocks} == expected
    batch = streams.grouped(data)[2].train.gather(torch.arange(2))
    assert torch.equal(batch.inputs, batch.targets)
    for arguments, said in (
        ({"block": [5, 3]}, "smaller blocks"),
        ({"block": [2, 3], "components": [2]}, "Count from 0"),
        ({"block": [4, 6]}, "only one such block"),
    ):
        with pytest.raises(ConfigError, match=said):
            datasets.fields(str(tmp_path), **arguments)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no files"):
        datasets.fields(str(tmp_path), block=[2, 3], pattern="*.npz")
    (tmp_path / "E_9.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="holds no array"):
        datasets.fields(str(tmp_path), block=[2, 3])


def khi_file(path: Path) -> Path:
    """Two regions whose momenta differ by far."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for number, (name, middle) in enumerate((("gpu8", 0.2), ("gpu11", -0.2))):
        arrays[f"{name}_particles"] = random.normal(middle, 0.01, (64, 6)).astype(np.float32)
        arrays[f"{name}_radiation"] = np.linspace(number, number + 1, 16, dtype=np.float32)
    np.savez(path, **arrays)
    return path


def test_khi_has_a_group_for_each_region_and_three_tasks(tmp_path: Path) -> None:
    path = str(khi_file(tmp_path / "khi.npz"))
    clouds = datasets.khi(path, points=8, bins=4)
    assert (clouds.input_shape, clouds.group_names) == ((8, 6), ("region 8", "region 11"))
    assert [len(one.train) for one in streams.grouped(clouds)] == [6, 6]
    light = datasets.khi(path, task="radiation", points=8, bins=4)
    batches = [one.train.gather(torch.arange(2)).targets for one in streams.grouped(light)]
    assert torch.equal(batches[0][0], batches[0][1])  # a region has one spectrum
    assert not torch.equal(batches[0], batches[1])
    momenta = streams.inversion(datasets.khi(path, task="momentum", bins=4), of={"name": "grouped"})
    assert (momenta.input_shape, momenta.outputs) == ((7,), 3)
    assert float(momenta[0].train.targets.mean()) > 0.9 > -0.9 > float(momenta[1].train.targets.mean())
    with pytest.raises(ConfigError, match="at most half"):
        datasets.khi(path, points=64, bins=4)
    with pytest.raises(ConfigError, match="Give at most that"):
        datasets.khi(path, points=8, bins=17)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no array NAME_particles"):
        datasets.khi(str(tmp_path / "other.npz"))


@pytest.mark.skipif(not KHI.is_file(), reason="the Kelvin-Helmholtz boxes are not here")
def test_the_kelvin_helmholtz_boxes_are_six_regions_of_16384_particles() -> None:
    data = datasets.khi(str(KHI), points=1024)
    assert data.group_names == tuple(f"region {number}" for number in (8, 9, 10, 11, 13, 14))
    assert len(data.train) + len(data.test or ()) == 6 * 16


def test_pictures_of_reconstructions_are_drawn_and_refused_in_sentences() -> None:
    images, volume = torch.rand(9, 1, 6, 5), torch.rand(7, 4, 5)
    pairs = reconstructions.reconstruction_pairs(images, images * 0.5, columns=4)
    assert [len(axes.images) for axes in pairs.axes] == [1] * 8
    assert np.allclose(pairs.axes[4].images[0].get_array(), images[0, 0] * 0.5)
    colours = reconstructions.reconstruction_pairs(torch.rand(2, 3, 6, 5), torch.rand(2, 3, 6, 5))
    assert colours.axes[0].images[0].get_array().shape == (6, 5, 3)
    grid = reconstructions.reconstructions_by_task(images[:2], [[images[0], None], [images[2], images[1]]], ["a", "b"])
    assert sum(bool(axes.images) for axes in grid.axes) == 5
    slices = reconstructions.volume_slices(volume, volume + 1, axis=1, slices=3, colours="jet")
    assert np.allclose(slices.axes[0].images[0].get_array(), volume[:, 0])
    assert np.allclose(slices.axes[5].images[0].get_array(), volume[:, 3] + 1)
    pandas = pytest.importorskip("pandas")
    table = reconstructions.frame_map(pandas.DataFrame({"a": [1.0, 4.0], "b": [2.0, np.nan]}, index=["x", "y"]))
    assert {text.get_text() for text in table.axes[0].texts} == {"1", "4", "2"}
    with pytest.raises(ConfigError, match="of one shape"):
        reconstructions.reconstruction_pairs(images, images[:, :, :3])
    with pytest.raises(ConfigError, match="one for each task"):
        reconstructions.reconstructions_by_task(images[:2], [[images[0]]])
    with pytest.raises(ConfigError, match="Give \\[depth"):
        reconstructions.volume_slices(volume, axis=3)


def test_the_drift_of_codes_is_the_squared_way_of_their_mean_since_an_experience_was_learned() -> None:
    data = datasets.synthetic(classes=4, features=6, samples=8, seed=0)
    stream = streams.reconstruction(data, of={"name": "split", "experiences": 2})
    model = models.autoencoder(input_shape=(6,), classes=6, hidden=[8], latent=2, seed=0)
    drift = reconstructions.LatentDrift(model, stream)
    drift({"event": "train"})
    drift({"event": "experience"})
    before = drift.means[0][0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    drift.look()
    matrix = drift.matrix()
    assert matrix.shape == (2, 2)
    assert np.isnan(matrix[0, 1])
    assert matrix[0, 0] == matrix[1, 1] == 0
    assert matrix[1, 0] == pytest.approx(float((drift.means[1][0] - before).square().mean()))
    with pytest.raises(ConfigError, match="no `encode`"):
        reconstructions.LatentDrift(torch.nn.Linear(2, 2), stream)


@pytest.mark.parametrize(
    ("data", "model", "pictures"),
    [
        ({"name": "synthetic", "features": 6}, {"name": "autoencoder", "hidden": [8]}, {"errors_by_number"}),
        (
            {"name": "digits"},
            {"name": "conv_autoencoder", "channels": [4], "latent": 4},
            {"reconstructions", "reconstructions_over_time"},
        ),
    ],
)
def test_a_run_keeps_what_its_model_gives_back_and_trains_as_without(
    data: dict[str, Any], model: dict[str, Any], pictures: set[str], tmp_path: Path
) -> None:
    stream = build_stream({"name": "reconstruction", "dataset": data, "of": {"name": "split", "experiences": 3}}, 0)
    weights, names = [], [one.name for one in stream]
    for kept in (False, True):
        events: list[dict[str, Any]] = []
        net = build_model(model, stream, 0)
        record = given_back.keeping(events.append, tmp_path, net, stream) if kept else events.append
        trainer = Trainer(
            methods.er(capacity=20), criterion=torch.nn.functional.mse_loss, batch_size=256, record=record
        )
        trainer.fit(net, stream)
        weights.append(torch.cat([value.flatten() for value in net.state_dict().values()]))
        assert sum(event["event"] == "experience" for event in events) == 3
    assert torch.equal(*weights)
    found = given_back.read_given_back(tmp_path)
    assert found is not None
    learned = np.isfinite(found.after).reshape(3, 3, -1).all(-1)
    assert np.array_equal(learned, np.tril(np.ones((3, 3), dtype=bool)))
    net.eval()
    with torch.no_grad():
        again = net(torch.from_numpy(found.originals[0])).numpy()
    assert np.allclose(found.after[2, 0], again, atol=1e-5)
    assert {name for name, *_ in given_back.pictures_of(found, names)} == pictures | {"latent_drift"}
    other = streams.split(datasets.synthetic(classes=4, features=6, samples=8, seed=0), experiences=2)
    assert given_back.keeping(print, tmp_path, net, other) is print  # its targets are classes
