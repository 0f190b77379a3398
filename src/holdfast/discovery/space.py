"""The space of a search: for each role none or some of its operations, with the ranges on their signatures."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.core.errors import ConfigError
from holdfast.core.method import Method, conflicts
from holdfast.core.operation import SHORT, Operation
from holdfast.discovery.axes import SIZES, Axis, Trial, declared, get, of_operation, put, size_of, written

SLOTS = {"retention": 2}
"""How many operations of a role a composition may have; one of the others."""

ACTING = ("batch", "criterion", "loss", "gradient", "take_step", "predict")
"""What an operation does that does more than to fill a memory for others."""

EVERYTHING = "it goes over the data of all experiences, which no continual learner has"

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """All that a search may try.

    Attributes:
        base: the job that everything else follows, without defaults missing.
        slots: name of a slot -> the operations that it may hold.
        operations: operation -> its axes.
        fillers: operations that fill a memory for others.
        sizes: how large the memory may be, in items.
        common: axes of keys of the job: `optimizer.lr`, `model`, `method.size`.
        experiences: of the stream, by which a memory per experience is shared out.
        left_out: operation -> why it cannot be in any composition here.
        fixed: whether the method stays that of `base` and only `common` varies.
        constants: operation -> arguments that it always has, where they are not those of its signature.
    """

    base: dict[str, Any]
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    operations: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    fillers: tuple[str, ...] = ()
    sizes: Axis = field(default_factory=lambda: Axis("memory.items", (200,)))
    common: tuple[Axis, ...] = ()
    experiences: int = 1
    left_out: Mapping[str, str] = field(default_factory=dict)
    fixed: bool = False
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    # From a trial to a job -----------------------------------------------------------------------------

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for everything that its composition has; returns the values as they are stored."""
        params: dict[str, Any] = {}
        for slot, names in self.slots.items():
            params[f"{slot}.used"] = Axis(f"{slot}.used", (False, True)).suggest(trial)
            if params[f"{slot}.used"]:
                params[slot] = Axis(slot, names).suggest(trial)
        for name in self.chosen(params):
            params |= {axis.name: axis.suggest(trial) for axis in self.operations[name]}
        if self.slots and self.unfilled(params):
            params["memory"] = Axis("memory", self.fillers).suggest(trial)
            params |= {axis.name: axis.suggest(trial) for axis in self.operations[params["memory"]]}
        if len(self.sizes.choices) != 1 and self.uses_memory(params):
            params[self.sizes.name] = self.sizes.suggest(trial)
        return params | {axis.name: axis.suggest(trial) for axis in self.common}

    def chosen(self, params: Params) -> list[str]:
        """The operations in the slots, each once."""
        return list(dict.fromkeys(params[slot] for slot in self.slots if slot in params))

    def unfilled(self, params: Params) -> bool:
        """Whether an operation draws from a memory that none of those in the slots fills.

        Raises:
            ConfigError: where the operations cannot stand in one method.
        """
        chosen = self.chosen(params)
        problems = conflicts(kinds.find("operations", name) for name in chosen)
        if problems:
            raise ConfigError(problems[0])
        return bool(Method(*(_made(self._block(name, params)) for name in chosen)).unfilled)

    def uses_memory(self, params: Params) -> bool:
        """Whether a composition has a memory whose size is to be said."""
        return "memory" in params or any(kinds.find("operations", name).fills for name in self.chosen(params))

    def job(self, params: Params) -> dict[str, Any]:
        """The job that stored values stand for; not checked yet."""
        config = copy.deepcopy(self.base)
        if not self.fixed:
            config["method"] = {"operations": self._ordered(params)}
        for axis in sorted(self.common, key=lambda one: one.name.count(".")):
            if axis.name in params:
                put(config, axis.name, axis.value(params[axis.name]))
        return config

    def check(self) -> None:
        """Refuse a value of the job's own keys that no job of this space can have.

        Raises:
            ConfigError: the job's own for that value.
        """
        blocks = [(axis.name, one) for axis in self.common if "." not in axis.name for one in axis.labels]
        usual = self.usual()
        for axis in self.common:
            for value in axis.labels or ((int if axis.whole else float)(end) for end in (axis.low, axis.high)):
                problems = []
                for others in ({}, *({name: one} for name, one in blocks if name != axis.name)):
                    try:
                        validated(self.job({**usual, **others, axis.name: value}))
                        break
                    except ConfigError as error:
                        problems.append(error)
                else:
                    raise problems[0]

    def named(self, params: Params) -> str:
        """A composition in a few words."""
        if self.fixed:
            return " ".join(f"{axis.name}={short(params.get(axis.name))}" for axis in self.common)
        chosen = [*self.chosen(params), *([params["memory"]] if "memory" in params else [])]
        return " + ".join(chosen) or "finetune"

    def axes(self) -> dict[str, Axis]:
        """Every axis by name, those of operations included."""
        by_name = {slot: Axis(slot, names) for slot, names in self.slots.items()}
        by_name |= {f"{slot}.used": Axis(f"{slot}.used", (False, True)) for slot in self.slots}
        if self.fillers:
            by_name["memory"] = Axis("memory", self.fillers)
        if len(self.sizes.choices) != 1:
            by_name[self.sizes.name] = self.sizes
        for axes in self.operations.values():
            by_name |= {axis.name: axis for axis in axes}
        return by_name | {axis.name: axis for axis in self.common}

    def defaults(self) -> dict[str, Any]:
        """The numbers and choices of every operation as its signature has them, and the common ones as the job has."""
        values: dict[str, Any] = {}
        for name, axes in self.operations.items():
            stated = {p.name: p.default for p in kinds.configurable("operations", kinds.find("operations", name))}
            values |= {axis.name: axis.nearest(stated[axis.name.split(".", 1)[1]]) for axis in axes}
        return values | self.usual()

    def _ordered(self, params: Params) -> list[dict[str, Any]]:
        """The operations in the order of the published methods: who changes the data first, who answers last."""
        early: list[dict[str, Any]] = []
        late: list[dict[str, Any]] = []
        for name in self.chosen(params):
            kind = kinds.find("operations", name)
            last = kind.role in ("bias mitigation", "uncertainty reduction") and name != "bias_correction"
            (late if last else early).append(self._block(name, params))
        early.sort(key=lambda block: block["name"] != "bias_correction")
        filler = [self._block(params["memory"], params)] if "memory" in params else []
        return [*early, *filler, *late]

    def _block(self, name: str, params: Params) -> dict[str, Any]:
        """One operation with its arguments."""
        kind, block = kinds.find("operations", name), {"name": name, **self.constants.get(name, {})}
        for axis in self.operations.get(name, ()):
            if axis.name in params:
                block[axis.name.split(".", 1)[1]] = axis.value(params[axis.name])
        if kind.fills and not any(block.get(key) is not None for key in SIZES):
            items = params.get(self.sizes.name, self.sizes.choices[0] if self.sizes.choices else int(self.sizes.low))
            block |= size_of(kind, items, self.experiences)
        return block

    # From a method to a point --------------------------------------------------------------------------

    def point(self, method: Method) -> dict[str, Any]:
        """The values that stand for a method, at the memory and the settings of this search.

        Raises:
            ConfigError: where it is not a point of this space, with the reason.
        """
        if method.wrap is not None:
            raise ConfigError(f"`{method.name}` changes the model, which a composition does not")
        params: dict[str, Any] = {f"{slot}.used": False for slot in self.slots}
        for operation in method:
            block = operation.config()
            name = block.pop("name")
            if name in self.fillers:
                params["memory"] = name
            else:
                free = [slot for slot, names in self.slots.items() if name in names and slot not in params]
                if not free:
                    why = self.left_out.get(name, "no slot of its role is free for it")
                    raise ConfigError(f"`{method.name}` has the operation `{name}`: {why}")
                params |= {free[0]: name, f"{free[0]}.used": True}
            params |= self._values(method.name, name, operation, block)
        if self.uses_memory(params) and len(self.sizes.choices) != 1:
            middle = self.sizes.labels[0] if self.sizes.choices else self.sizes.nearest(kinds_default(self.base))
            params[self.sizes.name] = middle
        return params | self.usual()

    def usual(self) -> dict[str, Any]:
        """The common axes as the base job has them."""
        return {axis.name: axis.nearest(get(self.base, axis.name)) for axis in self.common}

    def _values(self, method: str, name: str, operation: Operation, block: Mapping[str, Any]) -> dict[str, Any]:
        axes = {axis.name.split(".", 1)[1]: axis for axis in self.operations[name]}
        defaults = {p.name: p.default for p in kinds.configurable("operations", type(operation))}
        values = {}
        for key, value in block.items():
            if key in axes:
                values[axes[key].name] = axes[key].nearest(value)
            elif key in self.constants.get(name, {}):
                continue  # a point of this space has what the space says, as it has the nearest number
            elif value != defaults.get(key) and not (operation.fills and key in SIZES):
                raise ConfigError(f"`{method}` has {name}.{key}={value!r}, and the search does not vary that")
        return values


def composed(
    base: dict[str, Any],
    *,
    roles: Mapping[str, Iterable[str] | None],
    slots: Mapping[str, int],
    sizes: Axis,
    parameters: Mapping[str, Any],
    experiences: int,
) -> Space:
    """The space of compositions over what exists, before anything was found not to fit.

    Args:
        base: the job, every default written out.
        roles: word of a role -> the operations to choose from; None for all; a role left out stands for all. Those
            that only fill a memory are all there, unless some are named.
        slots: word of a role -> how many of its operations a composition may have; 0 leaves the role out.
        sizes: of the memory.
        parameters: name of a parameter -> what it may be instead of what its signature says.
        experiences: of the stream.
    """
    left_out: dict[str, str] = {}
    constants: dict[str, dict[str, Any]] = {}
    by_role: dict[str, list[str]] = {word: [] for word in SHORT.values()}
    axes: dict[str, tuple[Axis, ...]] = {}
    fillers: list[str] = []
    known = kinds.names("operations")
    for name, kind in known.items():
        word = SHORT[kind.role]
        listed, filler = roles.get(word), only_fills(kind)
        if listed is not None and name not in listed and (not filler or any(_fills(one) for one in listed)):
            continue
        if isinstance(kind.needs, frozenset) and "stream" in kind.needs:
            left_out[name] = EVERYTHING
            continue
        ranges = of_operation(name, kind, parameters)
        axes[name] = tuple(axis for axis in ranges if len(axis.choices) != 1)
        constants[name] = {axis.name.split(".", 1)[1]: axis.choices[0] for axis in ranges if len(axis.choices) == 1}
        (fillers if filler else by_role[word]).append(name)
    places: dict[str, tuple[str, ...]] = {}
    for word, names in by_role.items():
        count = slots.get(word, SLOTS.get(word, 1))
        if names and word in slots and count > len(names):
            raise ConfigError(f"slots.{word}: got {count}, and there are {len(names)} operations for it. Write fewer.")
        for number in range(count if names else 0):
            places[word if count == 1 else f"{word}.{number + 1}"] = tuple(names)
    common = [written(key, values) for key, values in parameters.items() if key.split(".")[0] not in known]
    fixed = {name: arguments for name, arguments in constants.items() if arguments}
    return Space(base, places, axes, tuple(fillers), sizes, tuple(common), experiences, left_out, constants=fixed)


def only_fills(kind: type[Operation]) -> bool:
    """Whether an operation does nothing but to fill a memory for others."""
    acts = any(getattr(kind, point) is not getattr(Operation, point) for point in ACTING)
    return kind.fills and kind.role == "knowledge retention" and not acts


def _fills(name: str) -> bool:
    """Whether an operation of this name does nothing but to fill a memory."""
    return only_fills(kinds.find("operations", name))


def own_numbers(base: dict[str, Any], parameters: Mapping[str, Any], experiences: int = 1) -> Space:
    """The space of one method's own numbers, for a sweep: those given, or else the ranges on its signature.

    Args:
        base: the job.
        parameters: key of the job -> what it may be; empty for those that the method declares and the learning rate.
        experiences: of the stream.
    """
    method = base["method"]
    if parameters:
        axes = tuple(written(key, values) for key, values in parameters.items())
        return Space(base, common=axes, experiences=experiences, fixed=True)
    own_axes: list[Axis] = []
    if isinstance(method.get("operations"), list):
        for number, block in enumerate(method["operations"]):
            if block.get("name") in kinds.names("operations"):
                kind = kinds.find("operations", block["name"])
                own_axes += _declared(f"method.operations.{number}", "operations", kind, block)
    else:
        own_axes += _declared("method", "methods", kinds.find("methods", method.get("name")), method)
    rate = (base.get("optimizer") or {}).get("lr")
    if isinstance(rate, (int, float)) and rate > 0:
        own_axes.append(Axis("optimizer.lr", (), rate / 10, rate * 10, True))
    return Space(base, common=tuple(own_axes), experiences=experiences, fixed=True)


def _declared(prefix: str, group: str, kind: Any, block: Mapping[str, Any]) -> list[Axis]:
    """The axes that a signature declares, around what the job says, without those that size a memory."""
    axes = []
    for parameter in kinds.configurable(group, kind):
        value = block.get(parameter.name)
        if parameter.name not in SIZES:
            stated = parameter if value is None else dataclasses.replace(parameter, default=value)
            axis = declared(f"{prefix}.{parameter.name}", stated)
            axes += [axis] if axis is not None else []
    return axes


def without(space: Space, problems: Mapping[str, str]) -> Space:
    """The space without operations that were found not to fit, with the reasons."""
    kept = {slot: tuple(name for name in names if name not in problems) for slot, names in space.slots.items()}
    return dataclasses.replace(
        space,
        slots={slot: names for slot, names in kept.items() if names},
        operations={name: axes for name, axes in space.operations.items() if name not in problems},
        fillers=tuple(name for name in space.fillers if name not in problems),
        left_out={**space.left_out, **problems},
    )


def kinds_default(base: Mapping[str, Any]) -> int:
    """The items in the memory of a job's own method, 200 where it has none."""
    capacity = (base.get("method") or {}).get("capacity")
    return int(capacity) if isinstance(capacity, int) else 200


def _made(block: dict[str, Any]) -> Operation:
    kind = kinds.find("operations", block["name"])
    return kind(**{key: value for key, value in block.items() if key != "name"})  # type: ignore[no-any-return]


def short(value: Any) -> str:
    """A value with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
