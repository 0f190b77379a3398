"""A CLMixer file as the space of a search: its lists of values and of plugins, as what CLMixer's grid runs through."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from holdfast.compat.clmixer import translated
from holdfast.compat.clmixer_operations import KNOWN, RETENTION, WITHOUT_EFFECT, Made
from holdfast.compat.clmixer_plugins import read_plugin
from holdfast.compat.clmixer_values import Translation
from holdfast.config import kinds
from holdfast.config.words import dotted
from holdfast.core.errors import ConfigError
from holdfast.core.operation import SHORT

OURS = {
    "optimisation.epochs": "trainer.epochs",
    "optimisation.batch_size": "trainer.batch_size",
    "optimisation.lr": "optimizer.lr",
    "optimisation.optimizer.weight_decay": "optimizer.weight_decay",
    "optimisation.optimizer.type": "optimizer",
    **dict.fromkeys(("model.model_type", "model.hidden_size", "model.lora", "data.backbone"), "model"),
}
"""What may stand in a list -> what it is the values of; of those that make one block, every combination is one."""

LISTS = ("approximators", "current_task_loss_dataset", "classes_simmilary")
"""Keys whose value is a list in CLMixer, which says nothing of several values."""

SLOW = ("CrossEntropyProjectionOperation", "LossApproxOperation", "LossLandscapeOperation")
"""Operations that measure thousands of losses after each experience, so that they are tried only where a file asks."""

Path = tuple[str, ...]


def space(content: Mapping[str, Any], source: str = "") -> tuple[dict[str, Any], list[str]]:
    """The space file that a CLMixer file stands for, and what is done differently or cannot be searched, in sentences.

    What stands in a list is varied over it; a plain value stays. A list inside `plugins` is of alternatives, `null`
    for none; where there is none, every operation of CLMixer's is an alternative, with the values of its own template.
    The composition of the file itself, the first of each list, is the job's method, which a search tries first.

    Args:
        content: of the file.
        source: its name, for messages.

    Raises:
        ConfigError: for a list where a search cannot vary anything, and for what `convert` refuses.
    """
    first, lists = _without_lists(content, source)
    made = translated(first, source)
    job, notes = made.job, made.notes
    parameters: dict[str, Any] = {}
    for ours in dict.fromkeys(OURS[dotted(path)] for path in lists):
        paths = [path for path in lists if OURS[dotted(path)] == ours]
        values, refused = _values(first, {path: lists[path] for path in paths}, ours, made)
        if refused:
            named = " and ".join(map(dotted, paths))
            notes.append(
                f"{named}: {refused[0]} {len(refused)} combinations of the lists are left out for such a reason."
            )
        parameters[ours] = values
    if "optimizer" in job:
        parameters.setdefault("optimizer.lr", [job["optimizer"]["lr"]])
    made_of = list(_made_of(content, source, notes))
    arguments = _arguments([spec for _, specs in made_of for spec, _ in specs])
    if "stream" in job and "duplicate_backbone" in arguments:
        arguments["duplicate_backbone"]["copies"] = [job["stream"]["experiences"]]
    parameters |= {f"{name}.{key}": values for name, by_key in arguments.items() for key, values in by_key.items()}
    operations: dict[str, list[str]] = {word: [] for word in SHORT.values()}
    for name in arguments:
        operations[_role(name)].append(name)
    method = job.get("method", {})
    if "weight_align" in arguments and job.get("model", {}).get("head") == "plain_cosine":
        notes.append(
            "plugins: WeightAlignOperation scales a linear head, and the file's model has a cosine classifier: it is "
            "left out. model.head=fixed gives every composition a linear head, so that it is tried too."
        )
    return {
        "operations": operations,
        "slots": _slots(job),
        "parameters": parameters,
        "methods": [method["name"]] if "name" in method else [],
        "job": job,
    }, notes


# Lists of values -------------------------------------------------------------------------------------------


def _without_lists(content: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[Path, list[Any]]]:
    """A file with the first of each list of values and of plugins, and the lists by their paths."""
    first = copy.deepcopy(dict(content))
    lists: dict[Path, list[Any]] = {}
    for path, block, key in _leaves({key: part for key, part in first.items() if key != "plugins"}):
        value = block[key]
        if not isinstance(value, list) or key in LISTS:
            continue
        if dotted(path) not in OURS:
            raise Translation(source).error(
                dotted(path),
                f"got a list of {len(value)}, and a search is for one stream, on one device. Write one of them, and "
                "search again for another.",
            )
        lists[path] = _some(value, dotted(path), source)
        block[key] = value[0]
    if isinstance(first.get("seed"), list):
        raise Translation(source).error(
            "seed", "got a list. Write one; the best compositions are trained with several (final_seeds=5)."
        )
    if isinstance(first.get("plugins"), list):
        kept = [one[0] if isinstance(one, list) and one else one for one in first["plugins"]]
        first["plugins"] = [_settings(one)[0] for one in kept if one is not None and one != []]
    return first, lists


def _leaves(block: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """The path, the object and the key of everything inside of objects that is no object."""
    for key, part in list(block.items()):
        if isinstance(part, dict):
            yield from _leaves(part, (*path, key))
        elif path:
            yield (*path, key), block, key


def _some(values: list[Any], path: str, source: str) -> list[Any]:
    if not values:
        raise Translation(source).error(path, "got an empty list. Write one value, or several.")
    return [one for number, one in enumerate(values) if one not in values[:number]]


def _values(
    first: Mapping[str, Any], lists: Mapping[Path, Sequence[Any]], ours: str, made: Translation
) -> tuple[list[Any], list[str]]:
    """The values of a key of ours for every combination of lists, and why some combinations cannot be."""
    values: list[Any] = []
    refused: list[str] = []
    for combination in itertools.product(*lists.values()):
        changed = copy.deepcopy(dict(first))
        for path, value in zip(lists, combination):
            block: Any = changed
            for key in path[:-1]:
                block = block[key]
            block[path[-1]] = value
        try:
            job = translated(changed, made.source).job
        except ConfigError as error:
            if len(lists) == 1:
                raise
            refused.append(str(error))
            continue
        block, _, key = ours.partition(".")
        value = job[block][key] if key else job[block]
        if block == "trainer":  # more epochs bring the rule by which they end
            made.job["trainer"] = {**job["trainer"], **made.job["trainer"]}
        if value not in values:
            values.append(value)
    if not values:
        raise ConfigError(refused[0])
    return values, refused


# Operations ------------------------------------------------------------------------------------------------


def _made_of(content: Mapping[str, Any], source: str, notes: list[str]) -> Iterator[tuple[str, Made]]:
    """CLMixer's name of each operation that may be in a composition, with what it is here, for each of its settings."""
    entries = content.get("plugins") or []
    places: list[tuple[str, Any]] = []
    for number, entry in enumerate(entries):
        listed = entry if isinstance(entry, list) else [entry]
        where = (
            f"plugins.{number}.{k}" if isinstance(entry, list) else f"plugins.{number}" for k in range(len(listed))
        )
        places += [(path, one) for path, one in zip(where, listed) if one is not None]
    if not any(isinstance(entry, list) for entry in entries):
        named = {one.get("name") for _, one in places if isinstance(one, Mapping)}
        rest = [name for name in KNOWN if name not in named and name not in SLOW]
        budget = _budget(one for _, one in places)
        places += [("plugins", {"name": name, "hyperparameters": budget if _remembers(name) else {}}) for name in rest]
        slow = [name for name in SLOW if name not in named]
        if slow:
            notes.append(
                f"plugins: {', '.join(slow)} measure thousands of losses after each experience, and are tried only "
                "where the file has them."
            )
    for path, plugin in places:
        for one in _settings(plugin):
            scratch = Translation(source)
            read = read_plugin(one, path, scratch)
            if read is None:
                continue
            about = KNOWN[read.name]
            if read.values.get("cls_budget") == 0 and not about.made(read.values):
                notes.append(f"{path}: {read.name} with a cls_budget of 0 is a composition without it.")
            weight = read.values.get("loss_coeff", 1.0)
            specs = about.made(read.values)
            yield read.name, [(spec if weight == 1.0 else {**spec, "weight": weight}, keys) for spec, keys in specs]


def _remembers(name: str) -> bool:
    """Whether an operation of CLMixer's fills a memory."""
    return "cls_budget" in KNOWN[name].defaults and KNOWN[name].function == RETENTION


def _budget(plugins: Iterable[Any]) -> dict[str, Any]:
    """What a file says of its memory, which is then that of every composition."""
    for one in plugins:
        if isinstance(one, Mapping) and one.get("name") in KNOWN and _remembers(one["name"]):
            return {key: value for key, value in (one.get("hyperparameters") or {}).items() if key == "cls_budget"}
    return {}


def _settings(plugin: Any) -> list[Any]:
    """A plugin once for each value in a list among its hyperparameters, the others at their first."""
    values = plugin.get("hyperparameters") if isinstance(plugin, Mapping) else None
    if not isinstance(values, Mapping) or plugin.get("name") in WITHOUT_EFFECT:
        return [plugin]
    lists = {key: value for key, value in values.items() if isinstance(value, list) and value and key not in LISTS}
    first = {**values, **{key: value[0] for key, value in lists.items()}}
    settings = [first] + [{**first, key: one} for key, value in lists.items() for one in value[1:]]
    return [{**plugin, "hyperparameters": one} for one in settings]


def _arguments(specs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Operation -> argument -> its values; what no file of CLMixer's can say stays as its signature has it."""
    arguments: dict[str, dict[str, list[Any]]] = {}
    for name in dict.fromkeys(spec["name"] for spec in specs):
        mine = [spec for spec in specs if spec["name"] == name]
        kind = kinds.find("operations", name)
        stated = {one.name: one.default for one in kinds.configurable("operations", kind) if not one.required}
        by_key: dict[str, list[Any]] = {}
        for key in dict.fromkeys([*(key for spec in mine for key in spec if key != "name"), *stated]):
            values = [spec.get(key, stated.get(key)) for spec in mine]
            if any(value is not None for value in values):
                by_key[key] = [value for number, value in enumerate(values) if value not in values[:number]]
        arguments[name] = by_key
    return arguments


def _role(name: str) -> str:
    return SHORT[kinds.find("operations", name).role]


def _slots(job: Mapping[str, Any]) -> dict[str, int]:
    """The roles of which the file's own composition has several operations, and how many."""
    own = [one["name"] for one in job.get("method", {}).get("operations", [])]
    roles = [_role(name) for name in own if not kinds.find("operations", name).fills]
    return {word: roles.count(word) for word in dict.fromkeys(roles) if roles.count(word) > 1}
