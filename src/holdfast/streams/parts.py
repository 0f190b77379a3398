"""Streams of samples rather than classes: chunks, online batches, and scenarios that were saved."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.core.errors import ConfigError, DataError, unknown
from holdfast.core.experience import Stream
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, ranged
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import Scenario, Validation, ValidationSeed, cut, make_stream


@declares(paradigm="domain")
@ranged
def data_incremental(
    dataset: Dataset,
    experiences: Count = 5,
    shuffle: bool = True,
    validation: Validation = 0.0,
    validation_seed: ValidationSeed = 0,
    seed: int = 0,
) -> Stream:
    """The training data in chunks whose sizes differ by at most one; for classes and for regression.

    Shuffled, all chunks follow one distribution and each is tested on all test data. Unshuffled, chunks follow each
    other in the data set's order (time, for streams with drift), and the test data are cut in the same way.

    Args:
        dataset: what is cut.
        experiences: how many.
        shuffle: false keeps the data set's order.
        seed: of the shuffle.

    Raises:
        ConfigError: more experiences than samples.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> [len(experience.train) for experience in data_incremental(synthetic(classes=2, samples=5), experiences=3)]
        [4, 3, 3]
    """
    return make_stream(
        _chunked(dataset, "data_incremental", experiences, shuffle, validation, validation_seed, seed), dataset
    )


@declares(paradigm="domain")
@ranged
def online(
    dataset: Dataset,
    samples: Count = 10,
    of: Stream | dict[str, Any] | str | None = None,
    seed: int = 0,
) -> Stream:
    """Any stream cut into online batches: every experience is a few samples.

    Each chunk keeps the test data and task label of the experience it was cut from.

    Args:
        dataset: what the stream is made from.
        samples: training samples per experience.
        of: the stream to cut, or its name and arguments (`{"name": "split", "experiences": 5}`); None takes all data.
        seed: of the shuffle within each experience of the stream that is cut.

    Raises:
        ConfigError: fewer than one sample, an unknown stream.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> stream = online(synthetic(classes=4, samples=10), samples=10, of={"name": "split", "experiences": 2})
        >>> [experience.classes for experience in stream]
        [(0, 1), (0, 1), (2, 3), (2, 3)]
    """
    if of is None:
        whole = _chunked(dataset, "online", 1, True, 0.0, 0, seed)
        return make_stream(replace(whole, chunk=samples, chunk_seed=seed), dataset)
    stream = of if isinstance(of, Stream) else named_stream(of, dataset)
    described = {"name": "online", "of": stream.description, "chunk": samples, "chunk_seed": seed}
    with contextlib.suppress(ConfigError):  # what another package makes need not be a scenario
        scenario = Scenario.from_json(stream.description)
        if not scenario.chunk:
            described = replace(scenario, name="online", chunk=samples, chunk_seed=seed).to_json()
    made = cut(stream, samples, seed)
    return replace(made, name=f"online_{dataset.name}", description=described)


def named_stream(of: Mapping[str, Any] | str, dataset: Dataset) -> Stream:
    """The stream of this package that a name and arguments stand for."""
    arguments = {"name": of} if isinstance(of, str) else dict(of)
    name = arguments.pop("name", None)
    package = importlib.import_module("holdfast.streams")
    if not isinstance(name, str) or name not in package.__all__:
        raise ConfigError(unknown("stream", name, package.__all__))
    try:
        stream: Stream = getattr(package, name)(dataset, **arguments)
    except TypeError as error:
        raise ConfigError(f"the stream {name!r} cannot take {sorted(arguments)}. Its error says: {error}.") from error
    return stream


def saved(dataset: Dataset, scenario: dict[str, Any] | None = None, path: str | None = None) -> Stream:
    """The stream of a scenario that was saved: what `stream.description` holds.

    Args:
        dataset: the data set it was made for, or one with as many classes.
        scenario: the plain values.
        path: a JSON file with them, instead.

    Raises:
        ConfigError: neither or both given, or values that make no scenario.
        DataError: the file is no JSON.

    Example:
        >>> from holdfast.streams.datasets import synthetic
        >>> from holdfast.streams import indus
        >>> once = indus(synthetic(classes=3), seed=4)
        >>> again = saved(synthetic(classes=3), once.description)
        >>> again.description == once.description
        True
    """
    if (scenario is None) == (path is None):
        raise ConfigError("a saved stream needs its scenario or the path of its file. Give one of them.")
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise DataError(f"there is no file {path}. Give the path of a saved scenario.")
        try:
            scenario = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path} is no JSON: {error}. Save a scenario with `json.dump(stream.description, file)`."
            ) from error
    if not isinstance(scenario, dict):
        raise ConfigError(f"the scenario is of type {type(scenario).__name__}. Give the mapping that was saved.")
    if scenario.get("name") == "domains":
        raise ConfigError("a stream of several data sets cannot be made from one. Use domains with the data sets.")
    return make_stream(Scenario.from_json(scenario), dataset)


saved.check_arguments = {  # type: ignore[attr-defined]
    "scenario": {"name": "saved", "paradigm": "domain", "experiences": 3, "classes": 20, "draw": "shuffled"}
    | {"labels": list(range(20))}
}


def _chunked(
    dataset: Dataset, name: str, experiences: int, shuffle: bool, validation: float, validation_seed: int, seed: int
) -> Scenario:
    return Scenario(
        name=name,
        paradigm="domain",
        experiences=experiences,
        classes=dataset.classes,
        draw="shuffled" if shuffle else "ordered",
        labels=list(range(dataset.classes)),
        class_order=list(range(dataset.classes)),
        seed=seed,
        validation=validation,
        validation_seed=validation_seed,
    )
