"""How the training of an experience goes, and what is different in some experiences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from holdfast.core.errors import ConfigError, unknown
from holdfast.training.optimization import OptimizerFactory, SchedulerFactory, optimizer_factory

Changes = Mapping[str, Any]
PerExperience = Mapping[str | int, Changes] | Sequence[Changes | None]
"""Changes by experience (`{0: ..., "2-4": ..., "5-": ...}`), or a list with one entry for each, None for none."""

AUGMENTATIONS = ("crop", "flip")
"""Arguments of `streams.prepare.Prepare` that act in training only."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What may differ from one experience to the next; the meanings are those of `Trainer`'s arguments.

    Raises:
        ConfigError: for a number that makes no sense, or two lengths at once.
    """

    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None = None
    scheduler_every: str = "epoch"
    epochs: int = 1
    iterations: int | None = None
    batch_size: int = 32
    drop_last: bool = False
    reset_optimizer: bool = False
    clip_norm: float | None = None
    clip_by: str = "norm"
    accumulate: int = 1
    limit_train_batches: int | float | None = None
    patience: int | None = None
    restore_best: bool = False
    augment: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"the trainer got {name}={value}. Give a number of at least 1.")
        if self.clip_by not in ("norm", "value"):
            raise ConfigError(f"the trainer got clip_by={self.clip_by!r}. Choose norm or value.")
        if self.scheduler_every not in ("step", "epoch"):
            raise ConfigError(f"a scheduler got every={self.scheduler_every!r}. Choose step or epoch.")
        check_limit("limit_train_batches", self.limit_train_batches)
        if self.augment is not None:
            for name in self.augment:
                if name not in AUGMENTATIONS:
                    raise ConfigError(unknown("augmentation", name, AUGMENTATIONS))

    def changed(self, changes: Changes) -> Settings:
        """These settings with some others; `epochs` puts `iterations` out of force.

        Raises:
            ConfigError: for a name that is no setting of an experience.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(unknown("setting of an experience", name, known))
        new = dict(changes)
        if "optimizer" in new:
            new["optimizer"] = optimizer_factory(new["optimizer"])
        if new.get("epochs") is not None and "iterations" not in new:
            new["iterations"] = None
        return dataclasses.replace(self, **new)


def check_limit(name: str, limit: int | float | None) -> None:
    """Refuse a limit on batches that is neither a number of them nor a fraction."""
    if limit is not None and (limit <= 0 or (isinstance(limit, float) and limit > 1)):
        raise ConfigError(f"the trainer got {name}={limit}. Give a number of batches, or a fraction up to 1.0.")


def by_experience(given: PerExperience | None, experiences: int) -> dict[int, dict[str, Any]]:
    """The changes of each experience that has some.

    Args:
        given: as the user wrote it; where two keys name the same experience, the later one wins for what both say.
        experiences: of the stream.

    Raises:
        ConfigError: for an experience that the stream has not, or a list of another length.

    Example:
        >>> by_experience({"0": {"epochs": 9}, "1-": {"epochs": 2}, 2: {"batch_size": 8}}, experiences=3)
        {0: {'epochs': 9}, 1: {'epochs': 2}, 2: {'epochs': 2, 'batch_size': 8}}
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(given) != experiences:
            raise ConfigError(
                f"per_experience lists {len(given)} experiences, and the stream has {experiences}. "
                'Give one entry for each (null where nothing changes), or name them: {"0": ..., "3-": ...}.'
            )
        return {index: dict(changes) for index, changes in enumerate(given) if changes}
    found: dict[int, dict[str, Any]] = {}
    for key, changes in given.items():
        for index in indices(key, experiences):
            found.setdefault(index, {}).update(changes)
    return dict(sorted(found.items()))


def indices(key: str | int, experiences: int | None = None) -> range:
    """The experiences that a key of `per_experience` names: `3`, `"3"`, `"2-4"`, or `"2-"` for all from 2 on.

    Args:
        key: as written.
        experiences: of the stream; None where that is not known yet.

    Raises:
        ConfigError: for something else, or an experience that the stream has not.
    """
    parts = re.fullmatch(r"(\d+)(-(\d*))?", str(key))
    if parts is None or (parts[3] and int(parts[3]) < int(parts[1])):
        raise ConfigError(f'per_experience: {key!r} names no experiences. Write "3", "2-4", or "2-" for all from 2 on.')
    first = int(parts[1])
    highest = int(parts[3]) if parts[3] else first
    if experiences is not None and highest >= experiences:
        raise ConfigError(
            f"per_experience: there is no experience {highest}. The stream has {experiences}, counted from 0 to "
            f"{experiences - 1}."
        )
    if parts[2] and not parts[3] and experiences is not None:
        highest = experiences - 1
    return range(first, highest + 1)


def augmented(prepare: Callable[..., Any] | None, augment: Mapping[str, Any] | None) -> Callable[..., Any] | None:
    """`prepare` with other random changes of the training inputs.

    Raises:
        ConfigError: where the stream has no `Prepare` to change.
    """
    if augment is None:
        return prepare
    describe = getattr(prepare, "describe", None)
    if describe is None:
        raise ConfigError(
            "per_experience changes crop or flip, and this stream prepares its inputs in a way of its own. "
            "Leave augment out."
        )
    kind: Any = type(prepare)
    return kind(**{**describe(), **augment})  # type: ignore[no-any-return]
