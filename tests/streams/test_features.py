"""Features of a frozen backbone, computed once: right, whole, found again, and never another's."""

import threading
import warnings

import numpy
import pytest
import torch
from torch import nn

from holdfast.config import build
from holdfast.core.errors import ConfigError, DataError
from holdfast.methods import er, ewc, fecam, lwf, ranpac, simple_cil, slda
from holdfast.models import CachedBackbone, Classifier, FixedHead, FrozenBackbone
from holdfast.streams import feature_files, permuted, split
from holdfast.streams.data import LoaderData
from holdfast.streams.dataset import Dataset, Prepare
from holdfast.streams.datasets import arrays
from holdfast.streams.feature_files import Column, clear, default_folder, entries
from holdfast.streams.features import PassFeatures, cache_features
from holdfast.training import Trainer


class Counted(nn.Module):
    """A small convolutional backbone that counts the rows it has seen."""

    def __init__(self, seed=0, stride=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 4, 3, stride), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
            )
        self.rows = 0

    def forward(self, inputs):
        self.rows += len(inputs)
        return self.layers(inputs)


def images(rows=60, classes=4, seed=0, **look):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(rows) % classes
    pixels[:, 0, 0, :] = (labels * 60).to(torch.uint8)[:, None]
    return arrays(pixels, labels, pixels[: rows // 2], labels[: rows // 2], **look)


def stream_of(dataset=None, **arguments):
    return split(dataset or images(), experiences=2, **arguments)


def model_of(network, cached):
    torch.manual_seed(3)
    part = CachedBackbone(network) if cached else FrozenBackbone(network)
    return Classifier(nn.Sequential(part), FixedHead(16, classes=4))


def every(data):
    return data.gather(torch.arange(len(data))).inputs


def test_features_are_those_of_the_backbone_in_every_part_of_every_experience(tmp_path):
    stream = stream_of(validation=0.2)
    network = Counted().train()
    cached = cache_features(stream, network, tmp_path)
    assert network.training
    network.eval()
    for before, after in zip(stream, cached):
        for part in ("train", "test", "validation"):
            old, new = getattr(before, part), getattr(after, part)
            assert torch.equal(old.targets, new.targets)
            expected = network(every(old).float() / 255).detach()
            torch.testing.assert_close(every(new), expected, rtol=1e-5, atol=1e-6)
        assert before.classes == after.classes
    assert cached.input_shape == stream.input_shape


def test_a_second_pass_runs_the_backbone_on_a_few_rows_only(tmp_path):
    first, second = Counted(), Counted()
    cache_features(stream_of(), first, tmp_path)
    assert first.rows == 60 + 30  # training and test data, each once
    cache_features(stream_of(), second, tmp_path)
    assert second.rows <= 10


def test_splits_of_the_same_data_share_one_column(tmp_path):
    cache_features(stream_of(), Counted(), tmp_path)
    cache_features(split(images(), experiences=4), again := Counted(), tmp_path)
    cache_features(split(images(), experiences=2, validation=0.3, seed=5), more := Counted(), tmp_path)
    assert again.rows <= 10
    assert more.rows <= 10
    assert len(entries(tmp_path)) == 2


class Other(Counted):
    """The same layers in another class."""


@pytest.mark.parametrize(
    "change",
    [
        lambda: (stream_of(), Counted(seed=1)),
        lambda: (stream_of(), Counted(stride=1)),
        lambda: (stream_of(), Other()),
        lambda: (stream_of(images(seed=1)), Counted()),
        lambda: (stream_of(images(normalise=True)), Counted()),
        lambda: (permuted(images(), experiences=2), Counted()),
    ],
    ids=["weights", "structure", "class", "data", "prepare", "transform"],
)
def test_any_change_gives_other_files(tmp_path, change):
    cache_features(stream_of(), Counted(), tmp_path)
    before = {entry["key"] for entry in entries(tmp_path)}
    stream, network = change()
    network.eval()
    cached = cache_features(stream, network, tmp_path)
    assert network.rows >= 60
    assert len({entry["key"] for entry in entries(tmp_path)} - before) >= 1
    expected = network(stream.prepare(every(stream[1].train), False, None)).detach()
    torch.testing.assert_close(every(cached[1].train), expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_batch_norm_belong_to_the_key(tmp_path):
    cache_features(stream_of(), Counted(), tmp_path)
    moved = Counted()
    moved.layers[1].running_mean += 1
    moved.rows = 0
    cache_features(stream_of(), moved, tmp_path)
    assert moved.rows == 90


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "notes", "no notes", "no values"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, damage):
    expected = every(cache_features(stream_of(), Counted(), tmp_path)[0].train).clone()
    for entry in entries(tmp_path):
        values, notes = tmp_path / f"{entry['key']}.features", tmp_path / f"{entry['key']}.json"
        data = bytearray(values.read_bytes())
        if damage == "truncated":
            values.write_bytes(data[:-64])
        elif damage == "flipped":
            data[100] ^= 1
            values.write_bytes(data)
        elif damage == "longer":
            values.write_bytes(data + b"0000")
        elif damage == "notes":
            notes.write_text('{"rows": ')
        elif damage == "no notes":
            notes.unlink()
        else:
            values.unlink()
    network = Counted()
    again = cache_features(stream_of(), network, tmp_path)
    assert network.rows >= 90
    assert torch.equal(every(again[0].train), expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".features", ".json"}


def test_values_that_are_whole_but_not_the_backbones_are_noticed_by_computing_a_few_again(tmp_path):
    expected = every(cache_features(stream_of(), Counted(), tmp_path)[0].train).clone()
    for entry in entries(tmp_path):
        notes = tmp_path / f"{entry['key']}.json"
        notes.unlink()
        wrong = Column(tmp_path, entry["key"], entry["rows"], "float32", entry["of"])
        wrong.make(lambda start, stop, width=entry["width"]: torch.ones(stop - start, width))
    with pytest.warns(UserWarning, match="made again"):
        again = cache_features(stream_of(), Counted(), tmp_path)
    assert torch.equal(every(again[0].train), expected)


def test_a_pass_that_was_killed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "BLOCK", 8)
    values = torch.rand(30, 3)
    seen = []

    def compute(start, stop, stops_at=1000):
        if start >= stops_at:
            raise KeyboardInterrupt
        seen.append(start)
        return values[start:stop]

    column = Column(tmp_path, "a" * 64, 30, "float32", {})
    with pytest.raises(KeyboardInterrupt):
        column.make(lambda start, stop: compute(start, stop, 16))
    assert column.load() is None
    assert torch.equal(column.make(compute), values)
    assert seen == [0, 8, 16, 24]


def test_what_a_killed_pass_left_half_written_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "BLOCK", 8)
    values = torch.rand(30, 3)
    column = Column(tmp_path, "a" * 64, 30, "float32", {})
    with pytest.raises(IndexError):
        column.make(lambda start, stop: values[start:stop] if start < 16 else [][0])
    part = tmp_path / ("a" * 64 + ".part")
    data = bytearray(part.read_bytes())
    data[8 * 3 * 4 + 5] ^= 255  # in the second block
    part.write_bytes(data)
    seen = []
    found = column.make(lambda start, stop: seen.append(start) or values[start:stop])
    assert seen == [8, 16, 24]
    assert torch.equal(found, values)


def test_two_at_once_compute_once_and_get_the_same(tmp_path):
    values, passes, found = torch.rand(20, 3), [], []
    barrier = threading.Barrier(2)

    def compute(start, stop):
        passes.append(start)
        threading.Event().wait(0.05)
        return values[start:stop]

    def one():
        barrier.wait()
        found.append(Column(tmp_path, "b" * 64, 20, "float32", {}).make(compute))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passes == [0]
    assert all(torch.equal(one, values) for one in found)


def test_without_locks_both_compute_and_the_file_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "fcntl", None)
    values = torch.rand(20, 3)
    assert torch.equal(Column(tmp_path, "c" * 64, 20, "float32", {}).make(lambda a, b: values[a:b]), values)
    assert len(list(tmp_path.glob("*.part*"))) == 0


def test_the_file_is_mapped_and_cannot_be_written_through_it(tmp_path):
    cached = cache_features(stream_of(), Counted(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.features")}
    cached[0].train.store.inputs.zero_()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.features")} == before


def test_half_precision_halves_the_file_and_rounds(tmp_path):
    exact = every(cache_features(stream_of(), Counted(), tmp_path / "a")[0].train)
    cached = cache_features(stream_of(), Counted(), tmp_path / "b", precision="float16")
    half = every(cached[0].train)
    assert half.dtype == torch.float16
    assert cached.prepare(half).dtype == torch.float32
    assert torch.equal(half, exact.half())
    sizes = [sum(entry["bytes"] for entry in entries(tmp_path / name)) for name in ("a", "b")]
    assert sizes[0] == 2 * sizes[1]


class Huge(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1) * 1e6


def test_features_beyond_half_precision_are_refused_and_nothing_is_kept(tmp_path):
    with pytest.raises(DataError, match=r"not finite in float16.*float32"):
        cache_features(stream_of(), Huge(), tmp_path, precision="float16")
    assert entries(tmp_path) == []
    cache_features(stream_of(), Huge(), tmp_path)


@pytest.mark.parametrize("look", [{"crop": 2}, {"flip": True}])
def test_augmented_inputs_are_refused(tmp_path, look):
    with pytest.raises(ConfigError, match=r"augmented.*crop=0 and flip=false"):
        cache_features(stream_of(images(**look)), Counted(), tmp_path)


def test_a_prepare_that_does_not_say_what_it_does_is_refused(tmp_path):
    stream = stream_of()
    stream.prepare = lambda inputs, training, generator: inputs.float()
    with pytest.raises(ConfigError, match="does not say what it does"):
        cache_features(stream, Counted(), tmp_path)


class Items:
    """A map-style data set, whose items may be drawn anew at each reading."""

    def __init__(self, random=False, shade=0):
        self.targets = [row % 4 for row in range(12)]
        self.random = random
        self.shade = shade

    def __len__(self):
        return 12

    def __getitem__(self, row):
        image = torch.full((1, 8, 8), row * 20 + self.shade, dtype=torch.uint8)
        return (torch.randint_like(image, 255) if self.random else image), self.targets[row]


def loaded(**arguments):
    return Dataset("items", LoaderData(Items(**arguments)), None, 4, (1, 8, 8), prepare=Prepare())


def test_data_behind_a_loader_are_known_by_their_content(tmp_path):
    cache_features(stream_of(loaded()), first := Counted(), tmp_path)
    cache_features(stream_of(loaded()), second := Counted(), tmp_path)
    cache_features(stream_of(loaded(shade=1)), third := Counted(), tmp_path)
    assert (first.rows, third.rows) == (12, 12)
    assert second.rows <= 5


def test_items_that_change_from_reading_to_reading_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="another one when it is read again"):
        cache_features(stream_of(loaded(random=True)), Counted(), tmp_path)


def test_image_files_are_known_by_path_size_and_time(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the extra `images` (Pillow) is not installed")
    import os

    from holdfast.streams.datasets import image_folder

    for label in "ab":
        for number in range(4):
            path = tmp_path / "data" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.new("L", (8, 8), number * 30 + 100 * (label == "b")).save(path)

    def rows():
        network = Counted()
        data = image_folder(str(tmp_path / "data"), grayscale=True, in_memory=False)
        cache_features(split(data, experiences=1), network, tmp_path / "cache")
        return network.rows

    assert rows() == 8
    assert rows() <= 8
    assert len(entries(tmp_path / "cache")) == 2
    os.utime(tmp_path / "data" / "a" / "0.png", ns=(1, 1))
    rows()
    assert len(entries(tmp_path / "cache")) == 3


METHODS = [
    lambda: er(capacity=20),
    ewc,
    lwf,
    ranpac,
    simple_cil,
    lambda: fecam(adapt=0),
    lambda: slda(space="features"),
]


@pytest.mark.parametrize("method", METHODS, ids=["er", "ewc", "lwf", "ranpac", "simple_cil", "fecam", "slda"])
def test_methods_learn_and_predict_the_same_with_and_without_the_cache(tmp_path, method):
    found = []
    for cached in (False, True):
        stream, network = stream_of(), Counted()
        model = model_of(network, cached)
        if cached:
            stream = cache_features(stream, model.backbone[0].frozen, tmp_path)
        trainer = Trainer(method(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), batch_size=8, seed=1)
        events = trainer.fit(model, stream)
        raw = every(stream_of()[1].test)
        with trainer.engine.evaluating(), torch.no_grad():
            outputs = trainer.engine.predict(raw)
        correct = [event["correct"] for event in events if event["event"] == "evaluate"]
        found.append((model.head.weight.detach(), outputs, correct))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)
    assert found[0][2] == found[1][2]


def test_a_memory_holds_features(tmp_path):
    model = model_of(Counted(), cached=True)
    stream = cache_features(stream_of(), model.backbone[0].frozen, tmp_path)
    trainer = Trainer(er(capacity=10), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), batch_size=8)
    trainer.fit(model, stream)
    assert trainer.learner.memory.all()["inputs"].shape == (10, 16)


def test_tasks_and_labels_stay_as_they_were(tmp_path):
    stream = stream_of(paradigm="task")
    cached = cache_features(stream, Counted(), tmp_path)
    batches = [next(experience.train.batches(torch.arange(3), 3)) for experience in cached]
    assert [batch.task for batch in batches] == [0, 1]
    assert [experience.task for experience in cached] == [0, 1]


def test_features_pass_and_raw_inputs_are_prepared():
    prepare = PassFeatures(Prepare(mean=0.5), (1, 8, 8))
    assert torch.equal(prepare(torch.ones(2, 5, dtype=torch.float16)), torch.ones(2, 5))
    assert torch.equal(prepare(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)), torch.full((2, 1, 8, 8), 0.5))


# The model beside its backbone ----------------------------------------------------------------------------


def test_the_backbone_is_no_part_of_the_model_but_moves_and_stays_in_eval_mode():
    network = Counted()
    model = model_of(network, cached=True).train()
    assert not network.training
    assert sum(p.numel() for p in model.parameters()) == 16 * 4 + 4
    assert not any(p.requires_grad for p in network.parameters())
    model.to(torch.float64)
    assert network.layers[0].weight.dtype == torch.float64


def test_a_copy_of_the_model_shares_the_backbone():
    import copy

    model = model_of(Counted(), cached=True)
    assert copy.deepcopy(model).backbone[0].frozen is model.backbone[0].frozen


def test_a_state_learnt_on_another_backbone_is_refused():
    state = model_of(Counted(), cached=True).state_dict()
    model_of(Counted(), cached=True).load_state_dict(state)
    with pytest.raises(DataError, match="another backbone"):
        model_of(Counted(seed=1), cached=True).load_state_dict(state)


# Where it lies --------------------------------------------------------------------------------------------


def test_the_folder_is_that_of_the_variable_or_among_the_users_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    cache_features(stream_of(), Counted())
    assert len(entries(tmp_path / "own")) == 2
    monkeypatch.delenv("HOLDFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "holdfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder().name == "holdfast"


def test_clearing_frees_what_is_listed_and_leaves_other_files(tmp_path):
    cache_features(stream_of(), Counted(), tmp_path, name="counted")
    (tmp_path / "notes.json").write_text("{}")
    listed = entries(tmp_path)
    assert all(entry["of"]["backbone"] == "counted" and entry["width"] == 16 for entry in listed)
    assert sum(entry["rows"] for entry in listed) == 90
    assert clear(tmp_path) >= sum(entry["bytes"] for entry in listed)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_the_command_line_lists_and_clears(tmp_path):
    from typer.testing import CliRunner

    from holdfast.cli import app

    cache_features(stream_of(), Counted(), tmp_path, name="counted net")
    listed = CliRunner().invoke(app, ["cache", "list", "--folder", str(tmp_path)])
    assert listed.exit_code == 0
    assert "60 x 16 float32" in listed.output
    assert "counted net" in listed.output
    assert "2 in" in listed.output
    cleared = CliRunner().invoke(app, ["cache", "clear", "--folder", str(tmp_path)])
    assert cleared.output.startswith("0.0 MB freed")
    assert entries(tmp_path) == []
    wrong = CliRunner().invoke(app, ["cache", "clean", "--folder", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "did you mean 'clear'" in wrong.output


# From JSON ------------------------------------------------------------------------------------------------


def job(tmp_path, cache):
    return {
        "stream": {"name": "split", "dataset": {"name": "npz", "path": str(tmp_path / "tiny.npz")}, "experiences": 2},
        "model": {
            "name": "frozen",
            "library": "torchvision",
            "architecture": "resnet18",
            "weights": str(tmp_path / "resnet18.pt"),
            "cache": cache,
            "cache_folder": str(tmp_path / "cache") if cache else None,
        },
        "method": "simple_cil",
        "trainer": {"evaluate_before": False},
    }


@pytest.fixture
def tiny(tmp_path):
    zoo = pytest.importorskip("torchvision", reason="the extra `vision` (torchvision) is not installed")
    pixels = torch.randint(256, (24, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    labels = numpy.arange(24) % 4
    numpy.savez(tmp_path / "tiny.npz", x_train=pixels, y_train=labels, x_test=pixels[:8], y_test=labels[:8])
    numpy.save(tmp_path / "new.npy", pixels[:5].transpose(0, 3, 1, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(zoo.models.resnet18().state_dict(), tmp_path / "resnet18.pt")
    return tmp_path


def test_a_configuration_asks_for_the_cache(tiny):
    config = build.resolve(job(tiny, True))
    stream = build.build_stream(config["stream"])
    model = build.build_model(config["model"], stream)
    cached = build.with_features(stream, model)
    assert every(cached[0].train).shape == (12, 512)
    plain = build.build_model(build.resolve(job(tiny, False))["model"], stream).eval()
    assert build.with_features(stream, plain) is stream
    expected = plain.features(stream.prepare(every(stream[1].test)))
    torch.testing.assert_close(every(cached[1].test), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_runs_and_predictions_from_a_configuration_are_equal_with_and_without_the_cache(tiny):
    from holdfast.runs import predict, run

    tmp_path, matrices, predictions = tiny, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, cache in enumerate((False, True, True)):
            folder = tmp_path / str(number)
            run.run(build.resolve(job(tmp_path, cache)), folder, quiet=True)
            matrices.append((folder / "accuracy_matrix.csv").read_text())
            size = max(path.stat().st_size for path in (folder / "checkpoints").glob("*.pt"))
            assert size < 5e6 if cache else size > 4e7
            predict.predict(folder, [str(tmp_path / "new.npy")], tmp_path / f"out{number}")
            predictions.append((tmp_path / f"out{number}" / "predictions.csv").read_text())
    assert matrices[0] == matrices[1] == matrices[2]
    assert predictions[0] == predictions[1] == predictions[2]
    assert [entry["width"] for entry in entries(tmp_path / "cache")] == [512, 512]
