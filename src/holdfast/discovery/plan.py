"""What a search has before it starts: its job, its space without what cannot work, its points, what it will cost."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.config.compose import compose
from holdfast.config.job import make_method
from holdfast.config.read import Dialect
from holdfast.config.search import fixed_and_varying
from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.core.method import Method
from holdfast.discovery.protocols import Protocol, count, ended_by_validation, tuning_stream
from holdfast.discovery.rungs import Values, lengths
from holdfast.discovery.settings import Settings, made, parsed
from holdfast.discovery.space import Space, composed, kinds_default, own_numbers, without
from holdfast.discovery.trial import impossible, reach
from holdfast.runs.assemble import job_key

FIRST: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("nearest_class_mean", {"space": "inputs"}),
    ("slda", {}),
    ("fecam", {"adapt": 0}),
    *((name, {}) for name in ("er", "der_plus_plus", "gdumb", "icarl", "gem", "er_ace", "ncm", "er_exemplars", "mir",
                              "finetune", "ewc_online", "ranpac", "lwf", "mas", "si")),
)  # fmt: skip
"""What a search begins with, in this order: methods, or single operations, with their arguments.

The first three are those that together come nearest to the best of all published methods and single operations on five
data sets (`benchmarks/search_portfolio.py`); then the best known, and those with the best mean there.
"""

CONFIGURED = "as configured"
"""Where a point comes from that is the job's own method."""


@dataclass
class Plan:
    """A search as it was asked for, checked, with everything that follows from it.

    Attributes:
        settings: what to look for.
        base: the job, every default written out.
        space: what may be tried.
        experiences: of the stream.
        sweep: whether the method stays and only its numbers vary.
        notes: what the user should know before it starts.
        started: when it was begun to be made, by `time.perf_counter`; a budget counts from there.
    """

    settings: Settings
    base: dict[str, Any]
    space: Space
    experiences: int
    sweep: bool = False
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter, compare=False)

    @classmethod
    def of(
        cls,
        path: str | None,
        words: Sequence[str],
        folders: Sequence[Path] = (),
        dialects: Sequence[Dialect] = (),
        *,
        sweep: bool = False,
        **more: Any,
    ) -> Plan:
        """The plan of a command's arguments, everything checked; each operation is bound to the model once.

        Args:
            path: a space file, or for a sweep a job; None for none.
            words: settings of the search, and changes of the job.
            folders: the user's own config groups.
            dialects: other projects' ways to write a job.
            sweep: whether only numbers of the job's method vary.
            more: settings that go before those in the file.

        Raises:
            ConfigError: for whatever is wrong.
        """
        settings, changes, inside = parsed(None if sweep else path, words)
        settings |= {key: value for key, value in more.items() if value is not None}
        varying: dict[str, Any] = {}
        if sweep:
            changes, varying = fixed_and_varying(changes)
        composition = compose(path if sweep else None, changes, folders, dialects)
        config: dict[str, Any] = dict(composition.config)
        if inside:
            config = dict(compose(written(inside), changes, folders, dialects).config)
        search = composition.search
        if sweep and search is not None:
            varying = {**search.params, **varying}
            settings.setdefault("objectives", [search.metric])
            if search.method == "random":
                settings.setdefault("trials", search.trials)
        if varying:
            settings["parameters"] = {**varying, **dict(settings.get("parameters") or {})}
        return cls.made(made(settings), {**config, "references": [], "seeds": None}, sweep)

    @classmethod
    def made(cls, settings: Settings, config: Mapping[str, Any], sweep: bool = False) -> Plan:
        """The plan of settings and a job.

        Args:
            settings: checked.
            config: of the job.
            sweep: whether only numbers of the job's method vary.
        """
        started = time.perf_counter()
        base = {**validated(dict(config)).config, "seed": settings.seed}
        if base["protocol"] != "continual":
            raise ConfigError(f"protocol: a search looks among methods, and this job is {base['protocol']}.")
        notes = ended_by_validation(base)
        experiences = count(base)
        settings.made_protocol().first(experiences)
        if sweep:
            space = own_numbers(base, settings.parameters, experiences)
            if not space.common:
                raise ConfigError(
                    f"method: `{base['method'].get('name')}` declares no ranges. Say what shall vary: "
                    "optimizer.lr=interval(0.01,1)."
                )
            space.check()
            return cls(settings, base, space, experiences, True, notes, started)
        parameters = dict(settings.parameters)
        rate = (base.get("optimizer") or {}).get("lr")
        if "optimizer.lr" not in parameters and isinstance(rate, (int, float)) and rate > 0:
            parameters["optimizer.lr"] = {"low": rate / 10, "high": rate * 10, "log": True}
        space = composed(
            base,
            roles=settings.operations,
            slots=settings.slots,
            sizes=settings.sizes(kinds_default(base)),
            parameters=parameters,
            experiences=experiences,
        )
        space.check()
        plan = cls(settings, base, space, experiences, False, notes, started)
        plan.space = without(space, plan._problems())
        if not plan.space.slots:
            raise ConfigError("no operation fits this job. `holdfast list operations` shows what each needs.")
        return plan

    @classmethod
    def loaded(cls, about: Mapping[str, Any]) -> Plan:
        """The plan that `plain` wrote down; nothing is tried out again."""
        settings, base, sweep = made(about["settings"]), dict(about["base"]), bool(about["sweep"])
        experiences = int(about["experiences"])
        if sweep:
            return cls(settings, base, own_numbers(base, settings.parameters, experiences), experiences, True)
        space = composed(
            base,
            roles=settings.operations,
            slots=settings.slots,
            sizes=settings.sizes(kinds_default(base)),
            parameters={**about["common"], **settings.parameters},
            experiences=experiences,
        )
        return cls(settings, base, without(space, about["left_out"]), experiences)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        common = {}
        for axis in self.space.common if not self.sweep else ():
            numbers = {"low": axis.low, "high": axis.high, "log": axis.log, "whole": axis.whole}
            common[axis.name] = list(axis.choices) or numbers
        return {
            "settings": self.settings.plain(),
            "base": self.base,
            "experiences": self.experiences,
            "sweep": self.sweep,
            "left_out": dict(self.space.left_out),
            "common": common,
        }

    # What follows from it ------------------------------------------------------------------------------

    @functools.cached_property
    def protocol(self) -> Protocol:
        """Which data the trials may look at, `k` written out."""
        protocol = self.settings.made_protocol()
        if protocol.name != "first-k":
            return protocol
        return Protocol(protocol.name, protocol.first(self.experiences), None, protocol.fresh_orders)

    def told(self, count: int) -> str:
        """So many of what is tried, in words: compositions, or settings of one method."""
        word = "setting" if self.sweep else "composition"
        return f"{count} {word}{'' if count == 1 else 's'}"

    @functools.cached_property
    def prefixes(self) -> list[int]:
        """The lengths of the stream that trials learn, the shortest first."""
        most = self.protocol.first(self.experiences)
        shortest = self.settings.shortest or max(2, -(-most // 3))
        return [most] if self.settings.whole else lengths(shortest, most)

    @functools.cached_property
    def noise(self) -> Values:
        """How much of each objective may be chance: of accuracies the largest standard error, of the rest nothing."""
        stream = tuning_stream(validated(self.protocol.tuned(self.base)))
        samples = sum(len(one.validation) for one in stream if one.validation is not None)
        error = 0.5 / max(1, samples) ** 0.5
        shares = ("accuracy", "worst_class", "forgetting", "waacc", "wamica", "plasticity", "transfer")
        return tuple(error if any(word in name for word in shares) else 0.0 for name in self.settings.objectives)

    def trial_job(self, params: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """The resolved job of a trial.

        Args:
            params: as they are stored.
            seed: above that of the search; the stream stays the same.

        Raises:
            ConfigError: where the composition cannot be.
        """
        job = self.protocol.tuned(self.space.job(params))
        for block in (job["stream"], job["stream"].get("of")) if seed else ():
            if isinstance(block, dict) and block.get("seed", 0) is None:  # it would follow the job's
                block["seed"] = job["seed"]
        return validated({**job, "seed": job["seed"] + seed}).config

    def accepted(self, params: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
        """The key of a composition that can be trained.

        Args:
            params: as they are stored.
            keys: those that were tried.

        Raises:
            ConfigError: where it cannot be trained, or was tried.
        """
        config = self.trial_job(params)
        key = job_key(config)
        if key in keys:
            raise ConfigError("it was tried already")
        problem = impossible(config)
        if problem:
            raise ConfigError(problem)
        return key

    @functools.cached_property
    def literature(self) -> list[tuple[str, dict[str, Any]]]:
        """The published methods that are points of the space, the best known first; what is not one goes to `notes`."""
        if self.sweep:
            return [(CONFIGURED, self.space.usual())]
        names = kinds.names("methods")
        wanted = self.settings.methods
        listed = [*FIRST, *((name, {}) for name in names if name not in dict(FIRST))]
        points = []
        if isinstance(self.base["method"].get("operations"), list):  # a composition that the job itself has
            try:
                points.append((CONFIGURED, self.space.point(make_method(validated(self.base).block.method))))
                self.accepted(points[0][1], {})
            except HoldfastError as error:
                points.clear()
                self.notes.append(f"the job's own composition is no point of this search: {error}")
        for name, arguments in listed if wanted is None else ((name, {}) for name in wanted):
            try:
                params = self.space.point(published(name, arguments))
                self.accepted(params, {})
                points.append((name, params))
            except (HoldfastError, TypeError) as error:
                if wanted is not None:
                    self.notes.append(f"{name} is no point of this search: {error}")
        return points

    def _problems(self) -> dict[str, str]:
        """Why operations cannot be trained on this stream with this model, each tried alone with its defaults."""
        problems = {}
        for name in self.space.operations:
            params = self.alone(name)
            try:
                problem = impossible(self.protocol.tuned(self.space.job(params)))
            except HoldfastError as error:
                problem = str(error)
            if problem:
                problems[name] = problem.split(". Write")[0].removeprefix("method: ").replace("`custom`", f"`{name}`")
        return problems

    def alone(self, name: str) -> dict[str, Any]:
        """One operation with its defaults, on a memory where it needs one, as a composition; a filler with replay."""
        space = self.space
        params: dict[str, Any] = {f"{slot}.used": False for slot in space.slots} | space.usual()
        filler = name in space.fillers
        wanted = "joined_replay" if filler and "joined_replay" in space.operations else name
        slot = next((slot for slot, names in space.slots.items() if wanted in names), None)
        if slot is not None:
            params |= {slot: wanted, f"{slot}.used": True}
        if filler or (slot is not None and space.unfilled(params)):
            params["memory"] = name if filler else space.fillers[0]
        defaults = space.defaults()
        for one in (*space.chosen(params), *([params["memory"]] if "memory" in params else [])):
            params |= {axis.name: defaults[axis.name] for axis in space.operations[one]}
        return params

    # What it will cost ---------------------------------------------------------------------------------

    def measured_cost(self) -> tuple[str, float]:
        """The name of one composition, and the seconds that one experience takes it; measured on the shortest run."""
        points = self.literature
        name, params = next((one for one in points if one[0] == "er"), points[0] if points else ("one", {}))
        with tempfile.TemporaryDirectory() as folder:
            config = self.trial_job(params)
            tuning_stream(validated(config))  # loading is paid once for many trials
            started = time.perf_counter()
            reach(Path(folder), config, 1)
            return name, time.perf_counter() - started

    def seconds_per_composition(self, experience: float) -> float:
        """What one composition costs on average, those counted in that go on to longer prefixes."""
        total, share, before = 0.0, 1.0, 0
        for length in self.prefixes[:2]:
            total += share * (length - before) * experience
            share, before = share * self.settings.keep, length
        return total

    def seconds_of_finals(self, experience: float) -> float:
        """What the final runs cost."""
        return self.settings.finals * self.settings.final_seeds * self.experiences * experience


def published(name: str, arguments: Mapping[str, Any]) -> Method:
    """A method by name, or an operation that is one alone.

    Raises:
        ConfigError: where there is neither.
    """
    methods, operations = kinds.names("methods"), kinds.names("operations")
    if name in methods or name not in operations:
        return kinds.find("methods", name)(**arguments)  # type: ignore[no-any-return]
    return Method(operations[name](**arguments))


def written(job: Mapping[str, Any]) -> str:
    """What a user gave as a mapping, as a file of its own."""
    path = Path(tempfile.mkdtemp(prefix="holdfast-")) / "job.json"
    path.write_text(json.dumps(job))
    return str(path)
