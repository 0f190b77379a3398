"""What the values of a CLMixer file may be, where each is kept in a job of ours, and how single ones are changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.config import schema
from holdfast.config.words import dotted, nearest, shown
from holdfast.core.errors import ConfigError

METHOD, DATA, SMALL = range(3)
"""How much a difference matters: to the method, to the data and their evaluation, or hardly."""


@dataclass(frozen=True)
class Told:
    """Something that is translated differently.

    Attributes:
        path: of the file's key.
        text: what is done instead.
        weight: how much it matters, `METHOD` first.
    """

    path: str
    text: str
    weight: int = SMALL


@dataclass
class Translation:
    """A job of ours that grows from a CLMixer file, with where each of the file's values went.

    Attributes:
        source: the file's name, for messages.
        job: what the file means so far.
        kept: our path -> the file's path of the value there.
        told: what is translated differently.
    """

    source: str = ""
    job: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)

    def tell(self, path: str, text: str, weight: int = SMALL) -> None:
        """Note a difference."""
        self.told.append(Told(path, text, weight))

    def put(self, ours: str, value: Any, path: str) -> None:
        """Keep a value of the file at a path of ours.

        Args:
            ours: with dots; blocks on the way are made.
            value: there.
            path: of the file.
        """
        here: dict[str, Any] = self.job
        *blocks, key = ours.split(".")
        for block in blocks:
            here = here.setdefault(block, {})
        here[key] = value
        self.kept[ours] = path

    @property
    def notes(self) -> list[str]:
        """The differences in sentences, the most important first, equal ones once with the paths of all."""
        paths: dict[tuple[int, str], list[str]] = {}
        for one in self.told:
            places = paths.setdefault((one.weight, one.text), [])
            if one.path not in places:
                places.append(one.path)
        ordered = sorted(paths, key=lambda key: key[0])
        return [f"{', '.join(paths[weight, text])}: {text}" for weight, text in ordered]

    def error(self, path: str, text: str) -> ConfigError:
        """An error about the file's key at `path`."""
        return ConfigError(f"{self.source}: {path}: {text}" if self.source else f"{path}: {text}")

    def in_its_words(self, error: ConfigError) -> ConfigError:
        """An error about our job, with the file's keys in the place of ours."""
        text = str(error)
        for ours in sorted(self.kept, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.]){re.escape(ours)}(?=[:.=])", self.kept[ours], text)
        text = re.sub(r"(?<![\w.])method(?=(\.operations)?[.:])(\.operations)?", "plugins", text)
        return type(error)(text)

    # Values ----------------------------------------------------------------------------------------------------

    def whole(self, path: str, value: Any, low: int = 1) -> int:
        """A whole number, which may be written `3.0`."""
        number = self._number(path, value, f"a number of {low} or more, without a fraction")
        if number != int(number) or number < low:
            raise self.error(path, f"got {shown(value)}, expected a number of {low} or more, without a fraction.")
        return int(number)

    def rounded(self, path: str, value: Any, low: int = 1) -> int:
        """A whole number where CLMixer calls `int`: it may be written as text, and loses its fraction, as is noted."""
        written = isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,15}\s*", value)
        size = self.whole(
            path, int(value) if written or (isinstance(value, float) and abs(value) < 1e15) else value, low
        )
        if isinstance(value, str) or value != size:
            self.tell(path, f"{shown(value)} is taken as {size}, as CLMixer does.")
        return size

    def number(self, path: str, value: Any, low: float = 0.0, above: bool = False) -> float:
        """A number from `low` up, or above it."""
        wanted = f"a number above {low:g}" if above else f"a number of {low:g} or more"
        number = self._number(path, value, wanted)
        if number < low or (above and number == low):
            raise self.error(path, f"got {shown(value)}, expected {wanted}.")
        return number

    def flag(self, path: str, value: Any) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.error(path, f"got {shown(value)}, expected true or false.")
        return value

    def choice(self, path: str, value: Any, choices: Sequence[str], what: str) -> str:
        """One of some words."""
        if not isinstance(value, str) or value not in choices:
            near = nearest(value, choices) if isinstance(value, str) else None
            advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(choices)}."
            advice += f" CLMixer has {' and '.join(choices)}." if len(choices) == 2 else ""
            raise self.error(path, f"unknown {what} {shown(value)}; {advice}")
        return value

    def word(self, path: str, value: Any) -> str:
        """A string that is not empty."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(path, f"got {shown(value)}, expected a string.")
        return value

    def block(self, path: str, value: Any, keys: Iterable[str]) -> Mapping[str, Any]:
        """An object whose keys are among `keys`."""
        allowed = list(keys)
        if not isinstance(value, Mapping):
            raise self.error(path, f"got {shown(value)}, expected an object with {', '.join(allowed)}.")
        for key in value:
            if key not in allowed:
                where = f"{path}.{key}" if path else str(key)
                what = f"CLMixer's {path}" if path else "a CLMixer file"
                raise self.error(where, f"unknown key {key!r} of {what}; {_advice(path, key, allowed)}")
        return value

    def _number(self, path: str, value: Any, wanted: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = ""
            if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d*\.?\d+([eE][-+]?\d+)?\s*", value):
                hint = f" Write {value.strip()} without quotes."
            raise self.error(path, f"got {shown(value)}, expected {wanted}.{hint}")
        if abs(value) > 1e15:
            raise self.error(path, f"got {shown(value)}, expected {wanted}, and not so large.")
        return value


SECTIONS: dict[str, tuple[str, ...]] = {
    "optimisation": ("lr", "epochs", "optimizer", "batch_size", "device"),
    "model": ("model_type", "hidden_size", "lora"),
    "data": ("dataset_name", "data_path", "n_experiments", "backbone", "scenario"),
    "plugins": (),
    "human_knowledge": ("nbrs_known_classes", "classes_simmilary"),
    "seed": (),
}
"""Every key of CLMixer's files; `human_knowledge` is in all of them and read by none of its code."""


def _advice(path: str, key: str, known: Sequence[str]) -> str:
    """What to write instead of a key that is not known at a path of a file."""
    homes = {one: section for section, keys in SECTIONS.items() for one in keys}
    homes |= dict.fromkeys(("type", "weight_decay"), "optimisation.optimizer")
    homes |= dict.fromkeys(("hyperparameters", "function"), "plugins") | dict.fromkeys(SECTIONS, "the outermost object")
    if key.split(".")[0] in SECTIONS and "." in key:
        return f"write {key.split('.')[-1]!r} inside an object {key.rsplit('.', 1)[0]!r}."
    near = nearest(key, known)
    if key in homes and homes[key] != path and not near:
        return f"it belongs in {homes[key]}."
    if not path and key in schema.job_model().model_fields:
        advice = f"write {key}=... or {key}.KEY=... behind the file on the command line"
        return f"it is a key of Holdfast's own files: {advice}, or change what `holdfast convert` prints."
    return f"did you mean {near!r}?" if near else f"its keys are {', '.join(known)}."


def changed(content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of a CLMixer file with single values changed; a plugin is found by its number or its name.

    Raises:
        ConfigError: for a plugin that is not there, or a key inside something that has none.
    """
    result = copy.deepcopy(dict(content))
    for path, value in changes.items():
        here: Any = result
        for depth, part in enumerate(path[:-1]):
            if isinstance(here, list):
                here = here[_position(here, part, path)]
                if not isinstance(here, dict):
                    raise ConfigError(f"{dotted(path)}: got {shown(here)} there, which has no keys.")
                if path[depth + 1] not in ("name", "hyperparameters", "function"):
                    here = here.setdefault("hyperparameters", {})
            else:
                here = here.setdefault(part, {})
            if not isinstance(here, dict | list):
                raise ConfigError(f"{dotted(path)}: {dotted(path[: depth + 1])} is {shown(here)}, which has no keys.")
        if isinstance(here, list):
            here[_position(here, path[-1], path)] = value
        else:
            here[path[-1]] = value
    return result


def _position(plugins: list[Any], part: str, path: Sequence[str]) -> int:
    """The number of a plugin that is written as number or name."""
    names = [str(one.get("name")) for one in plugins if isinstance(one, Mapping)]
    if part.isdigit() and int(part) < len(plugins):
        return int(part)
    if part not in names:
        near = nearest(part, names)
        advice = f"did you mean {near!r}?" if near else f"the file has {len(plugins)}, counted from 0."
        raise ConfigError(f"{dotted(path)}: there is no plugin {part!r}; {advice}")
    return next(i for i, one in enumerate(plugins) if isinstance(one, Mapping) and one.get("name") == part)
