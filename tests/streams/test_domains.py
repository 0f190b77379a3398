"""Several data sets in one stream: classes by name, one normalisation, columns that mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.streams import domains
from holdfast.streams.dataset import Prepare
from holdfast.streams.datasets import arrays, csv, synthetic


def gases(names: str, name: str, shift: float = 0.0, count: int = 12, **options):
    rng = np.random.default_rng(len(name) + count)
    x = shift + rng.normal(size=(count, 2)).astype("f4")
    labels = [{"a": "acetone", "e": "ethanol", "t": "toluene"}[letter] for letter in names]
    return arrays(x, [labels[row % len(labels)] for row in range(count)], name=name, **options)


def names_of(stream, part: str = "train") -> list[set[str]]:
    return [{stream.class_names[label] for label in getattr(e, part).targets.tolist()} for e in stream]


def test_classes_of_one_name_are_one_class_whatever_their_numbers():
    stream = domains([gases("ae", "May"), gases("et", "June"), gases("ta", "July")])
    assert stream.class_names == ("acetone", "ethanol", "toluene")
    wanted = [{"acetone", "ethanol"}, {"ethanol", "toluene"}, {"acetone", "toluene"}]
    assert names_of(stream) == wanted
    assert names_of(stream, "test") == wanted
    assert stream.classes == 3
    assert [experience.classes for experience in stream] == [(0, 1), (1, 2), (0, 2)]


def test_the_labels_are_those_that_the_rows_had():
    one, two = gases("ae", "May"), gases("et", "June")
    stream = domains([one, two], validation=0.25)
    for dataset, experience in zip((one, two), stream):
        for part in (experience.train, experience.validation):
            for batch in part:
                for row, label in zip(batch.inputs, batch.targets.tolist()):
                    here = (dataset.train.gather(torch.arange(len(dataset.train))).inputs == row).all(1).nonzero()
                    assert dataset.names[int(dataset.train.targets[here[0]])] == stream.class_names[label]


@pytest.mark.parametrize("paradigm", ["class", "task"])
def test_other_paradigms_keep_classes_apart_and_say_so_unless_they_are_matched(paradigm):
    pair = [gases("ae", "May"), gases("et", "June")]
    with pytest.warns(UserWarning, match=r"'ethanol' occurs in several.*match='name'"):
        apart = domains(pair, paradigm=paradigm)
    assert apart.class_names == ("May acetone", "May ethanol", "June ethanol", "June toluene")
    same = domains(pair, paradigm=paradigm, match="name")
    assert [experience.classes for experience in same] == [(0, 1), (1, 2)]
    assert [experience.task for experience in same] == ([0, 1] if paradigm == "task" else [None, None])


def test_classes_can_be_matched_by_index_where_that_is_what_they_mean():
    stream = domains([gases("ae", "May"), gases("et", "June")], match="index")
    assert stream.classes == 2
    assert [experience.classes for experience in stream] == [(0, 1), (0, 1)]
    with pytest.raises(ConfigError, match="'apart'"):
        domains([gases("ae", "May"), gases("et", "June")], match="apart")


def test_numbered_classes_are_matched_by_their_numbers():
    stream = domains([synthetic(classes=2), synthetic(classes=3, seed=1)])
    assert stream.class_names == ("0", "1", "2")
    assert [experience.classes for experience in stream] == [(0, 1), (0, 1, 2)]


# One normalisation


def test_all_data_sets_are_normalised_by_the_statistics_of_the_first_or_of_all():
    one, two = gases("ae", "May", normalise=True), gases("ae", "June", shift=50.0, count=30, normalise=True)
    assert domains([one, two]).prepare == one.prepare
    pooled = domains([one, two], standardise="pooled")
    every = torch.cat([data.train.gather(torch.arange(len(data.train))).inputs for data in (one, two)]).double()
    assert pooled.prepare.mean == pytest.approx(every.mean(0).tolist(), rel=1e-5)
    assert pooled.prepare.std == pytest.approx(every.std(0, correction=0).tolist(), rel=1e-5)
    seen = torch.cat([pooled.prepare(e.train.gather(torch.arange(len(e.train))).inputs) for e in pooled])
    assert float(seen.abs().max()) < 5


def test_a_first_that_is_normalised_counts_for_all_and_others_alone_are_refused():
    one, two = gases("ae", "May", normalise=True), gases("ae", "June")
    assert domains([one, two]).prepare == one.prepare
    for pair, standardise in (([two, one], "first"), ([one, two], "pooled")):
        with pytest.raises(ConfigError, match="some are normalised"):
            domains(pair, standardise=standardise)
    assert domains([two, gases("ae", "July")]).prepare == Prepare()


def test_augmentations_that_differ_are_refused():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8, generator=generator)
    pair = [arrays(images, [0, 1] * 4, flip=flip) for flip in (True, False)]
    with pytest.raises(ConfigError, match="cropped and flipped"):
        domains(pair)


# Tables


@pytest.fixture
def months(tmp_path):
    """Seven files of sensor values a hundred thousand times as large as their noise, as of a drifting gas sensor."""

    def write(number: int, columns: str = "ohm,heat,label") -> str:
        rng = np.random.default_rng(number)
        rows = [f"{1e5 * (1 + number) + row},{row + rng.random():.3f},{'ae'[row % 2]}" for row in range(20)]
        path = tmp_path / f"month{number}.csv"
        path.write_text("\n".join([columns, *rows]) + "\n")
        return str(path)

    return write


@pytest.mark.parametrize("standardise", ["first", "pooled"])
def test_files_of_several_months_share_one_standardisation_and_train_to_finite_weights(months, standardise):
    from holdfast import Trainer, methods
    from holdfast.models import mlp

    stream = domains([csv(months(number)) for number in range(7)], standardise=standardise)
    assert stream.prepare.mean is not None
    seen = [stream.prepare(e.train.gather(torch.arange(len(e.train))).inputs).abs().max() for e in stream]
    assert float(max(seen)) < (10 if standardise == "pooled" else 1e6)
    if standardise == "pooled":
        net = mlp(input_shape=stream.input_shape, classes=2, hidden=[8], seed=0)
        Trainer(methods.er(capacity=20), optimizer={"name": "SGD", "lr": 0.05}, evaluate="none").fit(net, stream)
        assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_columns_in_another_order_or_of_other_words_are_refused(months, tmp_path):
    with pytest.raises(ConfigError, match=r"'ohm', month1 has 'heat'"):
        domains([csv(months(0)), csv(months(1, "heat,ohm,label"))])
    for name, colours in (("a", "red"), ("b", "blue")):
        rows = "".join(f"{colours},{number % 2}\n" for number in range(8))
        (tmp_path / f"{name}.csv").write_text(f"colour,label\n{rows}")
    with pytest.raises(ConfigError, match="'colour=red'"):
        domains([csv(str(tmp_path / "a.csv")), csv(str(tmp_path / "b.csv"))])
