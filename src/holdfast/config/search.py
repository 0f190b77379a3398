"""Several runs from one command: changes that stand for several values, and what a file says of a sweep."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.config.overrides import Library
from holdfast.config.words import nearest, shown, without_json
from holdfast.core.errors import ConfigError


def expand(texts: Sequence[str], folders: Sequence[Path | str] = ()) -> list[list[str]]:
    """The changes of each job of a sweep, in Hydra's grammar: commas, `range(1,4)`, `choice(a,b)`, `glob(*)`.

    Args:
        texts: as typed; those with one value are in every job.
        folders: the user's own folders of config groups, which `glob` looks through too.

    Returns:
        For each job its changes; the last change varies fastest.

    Raises:
        ConfigError: where one cannot be read, or a `glob` fits nothing.

    Example:
        >>> expand(["method=er,ewc", "seed=range(0,2)", "trainer.epochs=1"])[1]
        ['method=er', 'seed=1', 'trainer.epochs=1']
    """
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    library = Library(folders)
    every: list[list[str]] = []
    for text in texts:
        override = in_grammar(text)
        if not override.is_sweep_override():
            every.append([text])
            continue
        key = text.split("=", 1)[0]
        value = override.value()
        if isinstance(value, Glob):
            group = override.key_or_group.replace(".", "/")
            names = library.matching(group, value.include, value.exclude)
            if not names:
                raise ConfigError(f"{text}: nothing in the group {group!r} fits. It has {library.choices(group)}.")
            every.append([f"{key}={name}" for name in names])
        else:
            check_count(value, text)
            try:
                every.append([f"{key}={one}" for one in override.sweep_string_iterator()])
            except HydraException as error:
                raise ConfigError(f"cannot read the change {text!r}: {str(error).splitlines()[0]}.") from None
    if (count := math.prod(map(len, every))) > MOST:
        raise ConfigError(f"these changes stand for {count:,} runs. Write fewer values: at most {MOST:,} runs.")
    return [list(combination) for combination in itertools.product(*every)]


MOST = 100_000
"""Runs that one command may stand for; more was never meant, and would fill the memory."""


def in_grammar(text: str, where: str = "the change ") -> Any:
    """One change as Hydra's parser reads it.

    Args:
        text: `key=value`.
        where: what a message calls it, before the text.

    Raises:
        ConfigError: where it cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(without_json(text))
    except HydraException as error:
        raise ConfigError(
            f"cannot read {where}{text!r}: {str(error).splitlines()[0]}. Write key=value, and quote a value with"
            " special characters: 'key=\"a, b\"'."
        ) from None


def check_count(value: Any, text: str) -> None:
    """Refuse a `range(...)` without end, or with more values than anybody can run.

    Args:
        value: of Hydra's parser.
        text: as it was written.
    """
    from hydra.core.override_parser.types import RangeSweep

    if not isinstance(value, RangeSweep):
        return
    start, stop, step = float(value.start or 0), float(value.stop or 0), float(value.step)
    if step == 0 or not all(map(math.isfinite, (start, stop, step))):
        raise ConfigError(f"{text}: a range goes by finite steps that are not 0. Write range(start,stop,step).")
    if (stop - start) / step > MOST:
        raise ConfigError(f"{text}: a range of {(stop - start) / step:.3g} values. Write at most {MOST:,}.")


def swept(texts: Sequence[str]) -> list[str]:
    """The keys that vary, in the order typed."""
    parsed = [in_grammar(text) for text in texts]
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def fixed_and_varying(texts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The changes that say one value, and the keys that shall vary with their values in Hydra's grammar.

    Example:
        >>> fixed_and_varying(["seed=1", "optimizer.lr=0.1,0.2"])
        (['seed=1'], {'optimizer.lr': 'choice(0.1,0.2)'})
    """
    keys = set(swept(texts))
    fixed, varying = [], {}
    for text in texts:
        key, _, value = text.partition("=")
        if key.lstrip("+") in keys:
            varying[key.lstrip("+")] = value if "(" in value else f"choice({value})"
        else:
            fixed.append(text)
    return fixed, varying


SWEEP, HYDRA, METRIC = "sweep", "hydra", "optimized_metric"
"""Keys of a file that are about the sweep and not about the job; the last two are Hydra's and Arena's."""

KEYS = ("params", "method", "trials", "seed", "seeds", "metric")
SWEEPER = ("_target_", "params", "n_trials", "direction", "sampler", "seed", "study_name", "storage", "n_jobs")
METRICS = {"test/acc/ave": "average_accuracy"}
"""Arena's names of measures."""


@dataclass(frozen=True)
class Search:
    """How settings are chosen, and by what the best is told.

    Attributes:
        params: key of the job -> its values, in Hydra's grammar: `choice(1,2)`, `range(1,4)`, `interval(0.1,1)`.
        method: `grid` for every combination, `random` for `trials` of them.
        trials: how many settings `random` draws.
        seed: of the drawing.
        seeds: runs of each setting, with the seeds 0, 1, ...
        metric: a measure of `metrics.json`, taken on validation data.
    """

    params: dict[str, str] = field(default_factory=dict)
    method: str = "grid"
    trials: int = 20
    seed: int = 0
    seeds: int = 1
    metric: str = "average_accuracy"

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def settings(self, typed: Sequence[str] = ()) -> list[list[str]]:
        """The changes of each run, settings in order, their seeds together.

        Args:
            typed: keys that the command line decides; they are no axes then.

        Raises:
            ConfigError: for values that cannot be read, or a grid of an interval.
        """
        axes = {key: text for key, text in self.params.items() if key not in typed}
        if self.method == "random":
            chosen = _drawn(axes, self.trials, self.seed)
        else:
            for key, text in axes.items():
                if "interval(" in text:
                    raise ConfigError(
                        f"sweep.params.{key}: {text!r} has no grid. Write method: random, or choice(...)."
                    )
            chosen = expand([f"{key}={text}" for key, text in axes.items()])
        seeds = [[]] if "seed" in typed or "seeds" in typed else [[f"seed={seed}"] for seed in range(self.seeds)]
        return [[*texts, *more] for texts in chosen for more in seeds]


def split_off(content: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's content without what it says of a sweep, and that under our names.

    Args:
        content: of the file.
        source: its name, for error messages.

    Raises:
        ConfigError: for a key that has no meaning here.

    Example:
        >>> split_off({"seed": 1, "sweep": {"params": {"optimizer.lr": [0.1, 0.2]}}}, "job.yaml")
        ({'seed': 1}, {'params': {'optimizer.lr': 'choice(0.1,0.2)'}})
    """
    rest = {key: value for key, value in content.items() if key not in (SWEEP, HYDRA, METRIC)}
    settings: dict[str, Any] = {}
    if SWEEP in content:
        settings = _checked(content[SWEEP], KEYS, f"{source}: sweep")
    if HYDRA in content:
        hydra = _checked(content[HYDRA], ("sweeper", "mode"), f"{source}: hydra")
        sweeper = _checked(hydra.get("sweeper") or {}, SWEEPER, f"{source}: hydra.sweeper")
        if sweeper.get("direction") not in (None, "maximize"):
            raise ConfigError(f"{source}: hydra.sweeper.direction: here it follows from the metric. Leave it out.")
        settings["params"] = {**(sweeper.get("params") or {}), **settings.get("params", {})}
        seed = sweeper.get("seed", (sweeper.get("sampler") or {}).get("seed"))
        named = {"trials": sweeper.get("n_trials"), "seed": seed}
        settings |= {key: value for key, value in named.items() if value is not None}
        if "sampler" in sweeper or "n_trials" in sweeper:
            settings.setdefault("method", "random")
    if METRIC in content:
        settings["metric"] = METRICS.get(content[METRIC], content[METRIC])
    if "params" in settings:
        params = _checked(settings["params"], None, f"{source}: sweep.params")
        settings["params"] = {key: _text(value) for key, value in params.items()}
    return rest, settings


def made(settings: Mapping[str, Any]) -> Search | None:
    """The search that the files of a job describe together, or None where they describe none.

    Raises:
        ConfigError: for a value that makes no sense.
    """
    if not settings:
        return None
    from holdfast.metrics import METRICS as KNOWN

    search = Search(**settings)
    if search.method not in ("grid", "random"):
        raise ConfigError(f"sweep.method: got {shown(search.method)}. Choose grid or random.")
    for key, least in (("trials", 1), ("seeds", 1), ("seed", 0)):
        number = getattr(search, key)
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ConfigError(f"sweep.{key}: got {shown(number)}, expected a whole number from {least} up.")
    if search.metric not in KNOWN:
        near = nearest(search.metric, KNOWN)
        advice = f"did you mean {near!r}?" if near else "docs/run_folder.md lists the measures."
        raise ConfigError(f"sweep.metric: unknown measure {shown(search.metric)}; {advice}")
    if not search.params:
        raise ConfigError("sweep.params: is missing; write the keys to vary: {optimizer.lr: [0.1, 0.01]}.")
    return search


def _checked(value: Any, keys: Sequence[str] | None, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{path}: got {shown(value)}, expected a mapping with {', '.join(keys or ['keys of the job'])}."
        )
    for key in value:
        if keys is not None and key not in keys:
            near = nearest(key, keys)
            advice = f"did you mean {near!r}?" if near else f"there are {', '.join(keys)}."
            raise ConfigError(f"{path}.{key}: unknown key {key!r}; {advice}")
    return dict(value)


def _text(value: Any) -> str:
    """Values of an axis in Hydra's grammar; a list of them is a choice."""
    if isinstance(value, list):
        return f"choice({','.join(one if isinstance(one, str) else json.dumps(one) for one in value)})"
    return value if isinstance(value, str) else json.dumps(value)


def _drawn(axes: Mapping[str, str], trials: int, seed: int) -> list[list[str]]:
    """Different settings, drawn independently; fewer if there are no more."""
    generator = random.Random(seed)
    drawn: dict[tuple[str, ...], None] = {}
    for _ in range(50 * trials):
        if len(drawn) == trials:
            break
        drawn[tuple(f"{key}={_draw(key, text, generator)}" for key, text in axes.items())] = None
    return [list(texts) for texts in drawn]


def _draw(key: str, text: str, generator: random.Random) -> str:
    """One value of an axis: any of those that are listed, or one of an interval."""
    from hydra.core.override_parser.types import IntervalSweep

    value = in_grammar(f"{key}={text}", "sweep.params: ").value()
    if not isinstance(value, IntervalSweep):
        return generator.choice(expand([f"{key}={text}"]))[0].split("=", 1)[1]
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    if "log" in value.tags:
        if low <= 0:
            raise ConfigError(
                f"sweep.params.{key}: {text!r} goes down to {low}, which has no logarithm. Start above 0."
            )
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        drawn = generator.uniform(low, high)
    return str(round(drawn)) if isinstance(low, int) and isinstance(high, int) else f"{drawn:.6g}"
