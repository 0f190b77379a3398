"""Which data a search may look at: the protocols that keep test data, and later experiences, out of its choices."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from holdfast.config.check import validated
from holdfast.config.job import Job, with_features
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream

PROTOCOLS = ("first-k", "validation", "transfer")
HELD_OUT = 0.2
"""Part of the training data that is held out for the choices, where the stream says nothing."""

MOST_FIRST = 3
FRESH = 1000
"""The first seed of the final runs; those of the search are below it."""

WORDS = {
    "first-k": "Settings were chosen on the validation data of the first {k} of {experiences} experiences; no label of"
    " a later one, and no test data, was looked at. What only shows after many experiences, it cannot see.",
    "validation": "Settings were chosen on the validation data of all {experiences} experiences; no test data were"
    " looked at. In use nobody has later experiences beforehand, so that this is the best that could be known.",
    "transfer": "Settings were chosen on another data set, {other}, and no data of this one were looked at. What is"
    " particular to this data set, it cannot see.",
}


@dataclass(frozen=True)
class Protocol:
    """What the trials of a search learn and are measured on, and what its final runs are.

    Attributes:
        name: one of `PROTOCOLS`.
        k: how many experiences the trials have, under `first-k`.
        other: the block of the data set that trials learn, under `transfer`.
        fresh_orders: whether the final runs have class orders of their own.
    """

    name: str = "first-k"
    k: int | None = None
    other: dict[str, Any] | None = None
    fresh_orders: bool = True

    def first(self, experiences: int) -> int:
        """How many experiences the trials have, of so many.

        Raises:
            ConfigError: where that leaves nothing to find out.
        """
        if self.name != "first-k":
            return experiences
        k = min(MOST_FIRST, experiences - 1) if self.k is None else self.k
        if not 2 <= k < experiences:
            fitting = f"k={min(3, experiences - 1)}, or " if experiences > 2 else ""
            raise ConfigError(
                f"protocol: first-k tunes on the first {k} of {experiences} experiences; it takes at least 2, and"
                f" fewer than all. Write {fitting}protocol=validation."
            )
        return k

    def tuned(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The job of a trial: measured on validation data alone, and only where it may look.

        Args:
            config: of the composition.
        """
        job = copy.deepcopy(dict(config))
        stream = job["stream"]
        if self.name == "transfer":
            if "dataset" not in stream:
                raise ConfigError("protocol: transfer changes the data set, and the stream has several. Take another.")
            stream["dataset"] = self.other
        split = stream["of"] if isinstance(stream.get("of"), dict) else stream
        if not split.get("validation"):
            split["validation"] = HELD_OUT
        job["trainer"] |= {"evaluate": "validation", "evaluate_before": False}
        if self.name == "first-k" and self.k is not None:
            job["trainer"]["limit_experiences"] = self.k
        return {**job, "references": [], "seeds": None, "loggers": [], "profiler": None, "experiment_name": None}

    def final(self, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The job of a final run: test data, a fresh seed and a fresh class order.

        Args:
            config: of the composition.
            seed: of everything random in it.
        """
        job = copy.deepcopy(dict(config))
        stream = job["stream"]["of"] if isinstance(job["stream"].get("of"), dict) else job["stream"]
        if self.fresh_orders and stream.get("class_order") in ("natural", "random"):
            stream |= {"class_order": "random", "seed": seed}
        job["trainer"] |= {"evaluate": "test"}
        return {**job, "seed": seed, "references": [], "seeds": None}

    def words(self, experiences: int) -> str:
        """What was looked at, and what that cannot see."""
        k = self.first(experiences) if self.name == "first-k" else experiences
        other = (self.other or {}).get("name", "another") if isinstance(self.other, dict) else self.other
        return WORDS[self.name].format(k=k, experiences=experiences, other=other)


def ended_by_validation(config: dict[str, Any]) -> list[str]:
    """Let a job that ends experiences by its test data look at validation data instead, and say so.

    Args:
        config: resolved; changed where it stands.

    Returns:
        A sentence, where something was changed.
    """
    trainer = config["trainer"]
    plateau = (config.get("scheduler") or {}).get("name") == "ReduceLROnPlateau"
    if trainer["monitor_on"] != "test" or not (trainer["patience"] or trainer["restore_best"] or plateau):
        return []
    trainer["monitor_on"] = "validation"
    stream = config["stream"]["of"] if isinstance(config["stream"].get("of"), dict) else config["stream"]
    stream["validation"] = stream.get("validation") or HELD_OUT
    return [
        "trainer.monitor_on: test data may end nothing in a search, nor in its final runs. It is validation here,"
        f" {stream['validation']:.0%} of each experience."
    ]


def tuning_stream(job: Job) -> Stream:
    """The stream of a trial: as its job says, with the test data taken away, so that nothing can look at them."""
    return _stream(json.dumps([job.config["stream"], job.config["seed"], job.config["trainer"]["limit_experiences"]]))


@functools.lru_cache(maxsize=2)
def _stream(text: str) -> Stream:
    block, seed, limit = json.loads(text)
    stream = validated({"stream": block, "seed": seed, "trainer": {"limit_experiences": limit}}).make_stream()
    return replace(stream, experiences=[replace(experience, test=None) for experience in stream])


def count(config: Mapping[str, Any]) -> int:
    """How many experiences the stream of a job has. Loads data where the configuration does not say."""
    stream, limit = config["stream"], config["trainer"]["limit_experiences"]
    experiences = (stream.get("of") or stream).get("experiences")
    if not isinstance(experiences, int):
        experiences = len(validated(dict(config)).make_stream())
    return min(experiences, limit) if limit else experiences


# Meta-features ---------------------------------------------------------------------------------------------

ROWS, WIDTH = 1000, 50
"""Most rows and principal components that meta-features are computed from."""


def meta_features(stream: Stream) -> dict[str, float]:
    """What a data set is like, from the training data of the experiences given, after CLMixer's choice.

    `ch` is the Calinski-Harabasz index of the classes, `c2` the imbalance of Lorena et al. 2019 (0 where all classes
    have equally many samples): `1 - 1/IR` with `IR = (C-1)/C sum_c n_c / (n - n_c)`. `linear_discr` and `naive_bayes`
    are the accuracies of a linear discriminant and of Gaussian naive Bayes over three folds. Computed on at most 1,000
    samples, reduced to 50 principal components; CLMixer takes all samples and features of a frozen backbone, and pymfe
    ten folds.

    Args:
        stream: whose labels may be looked at.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import calinski_harabasz_score
    from sklearn.model_selection import cross_val_score
    from sklearn.naive_bayes import GaussianNB

    inputs, labels = [], []
    for experience in stream:
        rows = np.random.default_rng(0).permutation(len(experience.train))[: max(1, ROWS // len(stream))]
        batch = next(iter(experience.train.batches(_tensor(rows), len(rows))))
        leaf = batch.inputs
        if not hasattr(leaf, "flatten") or experience.train.targets.is_floating_point():
            return {"classes": float(stream.classes), "experiences": float(len(stream))}
        inputs.append(leaf.flatten(1).double().numpy())
        labels.append(batch.targets.numpy())
    x, y = np.concatenate(inputs), np.concatenate(labels)
    counts = np.array([n for n in np.bincount(y) if n], dtype=np.float64)
    size, classes = counts.sum(), len(counts)
    features = {
        "classes": float(stream.classes),
        "experiences": float(len(stream)),
        "samples": float(sum(len(one.train) for one in stream)),
        "features": float(x.shape[1]),
    }
    if classes < 2 or counts.min() < 3:
        return features
    ratio = (classes - 1) / classes * float((counts / (size - counts)).sum())
    x = PCA(min(WIDTH, *x.shape), random_state=0).fit_transform(x - x.mean(0)) if x.shape[1] > WIDTH else x
    judges = {"linear_discr": LinearDiscriminantAnalysis(), "naive_bayes": GaussianNB()}
    features |= {"ch": float(calinski_harabasz_score(x, y)), "c2": 1 - 1 / ratio}
    return features | {name: float(cross_val_score(one, x, y, cv=3).mean()) for name, one in judges.items()}


MEASURES = {
    "samples": "training samples",
    "features": "numbers that a sample has",
    "ch": "Calinski-Harabasz index: how far the classes are apart; more is easier",
    "c2": "imbalance of the classes, 0 where all have as many samples",
    "linear_discr": "accuracy of a linear discriminant, three folds",
    "naive_bayes": "accuracy of Gaussian naive Bayes, three folds",
}
"""What each of the meta-features is."""


def described(job: Job) -> dict[str, Any]:
    """What the data of a job are like: classes and counts of each experience, and `meta_features` of what is learned.

    Of a model with a cache of a frozen backbone's features these are measured, and not the raw inputs.

    Args:
        job: whose data are loaded.

    Raises:
        ConfigError: for a job that learns from a source.
    """
    if job.learns_from_source:
        raise ConfigError("source is given, whose data are not known before they arrive. Give a stream instead.")
    stream = job.make_stream()
    of = job.config["model"].get("architecture") or job.config["model"]["name"]
    learned = with_features(stream, job.make_model(stream), job.config["device"])

    def counts(view: Any) -> dict[str, int]:
        if view is None or view.targets.is_floating_point() or view.targets.dim() > 1:
            return {}
        unique = np.unique(np.asarray(view.targets), return_counts=True)
        return {str(label): int(number) for label, number in zip(*unique, strict=True)}

    return {
        "stream": stream.name,
        "classes": [str(name) for name in stream.class_names or range(stream.classes)],
        "experiences": [{"name": one.name, "train": counts(one.train), "test": counts(one.test)} for one in stream],
        "measured_on": "inputs" if learned is stream else f"features of {of}",
        "measures": meta_features(learned),
    }


def _tensor(rows: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(rows)
