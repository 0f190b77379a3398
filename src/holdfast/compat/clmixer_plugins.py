"""The plugins of a CLMixer file: read, checked, and composed to one method of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.compat.clmixer_operations import (
    AS_CLMIXER,
    FUNCTIONS,
    KNOWN,
    OLD_NAMES,
    REPRESENTATION,
    RULES,
    WITHOUT_EFFECT,
    Known,
    Spec,
)
from holdfast.compat.clmixer_values import DATA, METHOD, Translation
from holdfast.config import kinds
from holdfast.config.words import nearest, shown
from holdfast.core.method import conflicts


@dataclass(frozen=True)
class Plugin:
    """One plugin of a file: its name, its hyperparameters with CLMixer's defaults, and its path for messages."""

    name: str
    values: dict[str, Any]
    path: str

    @property
    def where(self) -> str:
        """Path and name, for notes."""
        return f"{self.path} ({self.name})"


Composed = list[tuple[Plugin, Spec, dict[str, str]]]
"""Operations of ours in order, each with its plugin and the hyperparameters that its arguments are."""


def read_plugins(plugin_specs: Any, made: Translation) -> None:
    """The method (and criterion) that a list of plugins stands for."""
    if not isinstance(plugin_specs, list):
        raise made.error(
            "plugins", f'got {shown(plugin_specs)}, expected a list of {{"name": ..., "hyperparameters": ...}}.'
        )
    plugins = [read_plugin(one, f"plugins.{index}", made) for index, one in enumerate(plugin_specs)]
    translate([plugin for plugin in plugins if plugin is not None], made)


def read_plugin(plugin: Any, path: str, made: Translation) -> Plugin | None:
    """One plugin with its values checked; None for one that needs nothing here.

    Args:
        plugin: as the file has it.
        path: where it stands there.
        made: gets notes, and a tag.

    Raises:
        ConfigError: for a name, a hyperparameter or a value that CLMixer does not have.
    """
    if not isinstance(plugin, Mapping) or not isinstance(plugin.get("name"), str):
        raise made.error(path, f'got {shown(plugin)}, expected {{"name": ..., "hyperparameters": ...}}.')
    for key in plugin:
        if key not in ("name", "hyperparameters", "function"):
            near = nearest(key, ("name", "hyperparameters", "function"))
            advice = f"did you mean {near!r}?" if near else f'write it inside "hyperparameters": {{"{key}": ...}}.'
            raise made.error(f"{path}.{key}", f"unknown key {key!r} of a plugin; {advice}")
    name = plugin["name"]
    if name in OLD_NAMES:
        made.tell(f"{path}.name", f"{name} is what CLMixer calls {OLD_NAMES[name]} today.")
        name = OLD_NAMES[name]
    if name not in WITHOUT_EFFECT:
        name = made.choice(f"{path}.name", name, list(KNOWN), "operation")
    about = KNOWN.get(name, Known(REPRESENTATION, {}, lambda _: []))
    function = plugin.get("function", about.function)
    function = made.choice(f"{path}.function", function, FUNCTIONS, "function")
    tags = made.job.setdefault("tags", [])
    made.kept[f"tags.{len(tags)}"] = f"{path}.function"
    tags.append(f"{function}:{name}")
    values = plugin.get("hyperparameters")
    if values is not None and not isinstance(values, Mapping):
        raise made.error(f"{path}.hyperparameters", f"got {shown(values)}, expected an object.")
    if name in WITHOUT_EFFECT:
        made.tell(f"{path}.name", f"{name} {WITHOUT_EFFECT[name]}.")
        if values:
            made.tell(f"{path}.hyperparameters", f"is left out with {name}.")
        return None
    defaults = {**about.defaults, **about.extra}
    hyperparameters: dict[str, Any] = {}
    for key, value in (values or {}).items():
        where = f"{path}.hyperparameters.{key}"
        if key != AS_CLMIXER and key not in defaults:
            near = nearest(key, defaults)
            choices = ", ".join(defaults) or "none"
            advice = f"did you mean {near!r}?" if near else f"it has {choices}."
            raise made.error(where, f"unknown hyperparameter {key!r} of {name}; {advice}")
        if key in RULES:
            reader, *arguments = RULES[key]
            value = getattr(made, reader)(where, value, *arguments)
        if key in about.idle:
            made.tell(where, f"{about.idle[key]}.")
        if key == AS_CLMIXER and value and not about.mistake:
            made.tell(where, f"changes nothing: {name} does as in CLMixer.")
        hyperparameters[key] = value
    missing = [key for key in about.defaults if key not in hyperparameters and key not in about.idle]
    if missing:
        defaults_used = ", ".join(f"{key}={shown(about.defaults[key])}" for key in missing)
        made.tell(
            f"{path}.hyperparameters", f"has no {', '.join(missing)}; {defaults_used}, as in CLMixer's template.", DATA
        )
    return Plugin(name, {**about.defaults, **hyperparameters}, path)


def translate(plugins: Sequence[Plugin], into: Translation) -> None:
    """Put the method and criterion that a list of plugins stands for into a translation.

    Args:
        plugins: with checked values.
        into: whose `job` gets `method`, and `criterion` where one plain loss is the default's.

    Raises:
        ConfigError: for plugins of which one method can have only one.
    """
    losses = [plugin for plugin in plugins if KNOWN[plugin.name].loss]
    plain = len(losses) == 1 and losses[0].name in ("CrossEntropyOperation", "CrossEntropyProjectionOperation")
    plain = plain and not losses[0].values.get(AS_CLMIXER) and losses[0].values.get("loss_coeff", 1.0) == 1.0
    made: Composed = []
    for plugin in plugins:
        about = KNOWN[plugin.name]
        for spec, keys in about.made(plugin.values):
            if plain and spec["name"] == "cross_entropy":
                into.put("criterion", "cross_entropy", plugin.path)
                continue
            if plugin.values.get("loss_coeff", 1.0) != 1.0:
                spec, keys = {**spec, "weight": plugin.values["loss_coeff"]}, {**keys, "weight": "loss_coeff"}
            if spec["name"] == "merged_replay" and any(one["name"] == "merged_replay" for _, one, _ in made):
                continue
            made.append((plugin, spec, keys))
        _tell(plugin, about, into)
    if not losses:
        into.tell("plugins", "has no knowledge_incorporation; cross-entropy, where CLMixer has no loss at all.", METHOD)
    made = _memory_first(_with_memory(made, plugins, into))
    _check_conflicts(made, into)
    into.put("method", {"operations": [spec for _, spec, _ in made]} if made else {"name": "finetune"}, "plugins")
    for index, (plugin, _, keys) in enumerate(made):
        into.kept[f"method.operations.{index}"] = plugin.path
        for ours, theirs in keys.items():
            into.kept[f"method.operations.{index}.{ours}"] = f"{plugin.path}.hyperparameters.{theirs}"


def _tell(plugin: Plugin, about: Known, into: Translation) -> None:
    """Note what a plugin does differently."""
    if about.mistake and not plugin.values.get(AS_CLMIXER):
        into.tell(
            plugin.where, f'{about.mistake} ("{AS_CLMIXER}": true among its hyperparameters does so too).', METHOD
        )
    if about.note:
        into.tell(plugin.where, about.note, about.weight)
    if plugin.values.get("cls_budget") == 0:
        idle = f"got 0, so that nothing is kept or drawn: {plugin.name} does nothing."
        into.tell(f"{plugin.path}.hyperparameters.cls_budget", idle, METHOD)
    if plugin.values.get("n") == 0 and "n" in about.defaults:
        into.tell(f"{plugin.path}.hyperparameters.n", "got 0, which is the operation's own number here.")


def _with_memory(made: Composed, plugins: Sequence[Plugin], into: Translation) -> Composed:
    """Exemplars for a fine-tuning that has none; and CLMixer's way to put what it draws into the memory."""
    tuned = [plugin for plugin, spec, _ in made if spec["name"] == "balanced_finetune"]
    kept = [plugin for plugin, spec, _ in made if spec["name"] == "remember_exemplars"]
    if not tuned:
        return made
    last = tuned[-1]
    budget, same = last.values["cls_budget"], bool(last.values.get(AS_CLMIXER))
    if not kept:
        spec = {"name": "remember_exemplars", "per_class": budget, "selection": "random"}
        first: Composed = [(last, spec, {"per_class": "cls_budget"})]
        if same:
            return [*first, (last, {"name": "merged_replay"}, {}), *made]
        into.tell(last.where, "remembers as many samples of a class for itself, which nothing else replays.", METHOD)
        return [*first, *made]
    if same and plugins.index(last) > plugins.index(kept[-1]):
        return [
            (plugin, {**spec, "per_class": budget} if spec["name"] == "remember_exemplars" else spec, keys)
            for plugin, spec, keys in made
        ]
    return made


def _memory_first(made: Composed) -> Composed:
    """What is remembered, what counts the new data, what joins both, then the rest in the file's order.

    So the weights of classes are those of the new data, and ratios of classes those of the joined data, as in CLMixer.
    """
    order = {"remember_exemplars": 0, "weighted_cross_entropy": 1, "merged_replay": 2}
    return sorted(made, key=lambda one: order.get(one[1]["name"], 3))


def _check_conflicts(made: Composed, into: Translation) -> None:
    """Refuse two plugins of which a method can have only one, by their paths."""
    operations = kinds.names("operations")
    for number, (second, spec, _) in enumerate(made):
        for first, other, _ in made[:number]:
            for problem in conflicts([operations[other["name"]], operations[spec["name"]]]):
                raise into.error(
                    second.path,
                    f"{second.name} and {first.path} ({first.name}) cannot stand together: {problem}",
                )
