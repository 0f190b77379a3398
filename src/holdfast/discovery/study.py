"""The study of a search: its trials in a storage of Optuna's, what they measured, and what is tried next."""

from __future__ import annotations

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError, needs_extra
from holdfast.discovery.axes import Axis
from holdfast.discovery.rungs import Level, Values, ordered
from holdfast.discovery.settings import Settings
from holdfast.discovery.space import Space
from holdfast.discovery.trial import TRIALS, Entry, entry

if TYPE_CHECKING:
    from optuna import Study

NAME = "holdfast"
HEARTBEAT, GRACE = 10, 60
"""Seconds between two signs of life of a trial, and after which it is taken for lost."""

AGAIN = 6
"""How often a storage is opened whose tables another process is making."""

TRIES = 3
"""How often a composition is begun whose worker was lost."""


def library() -> Any:
    """Optuna, which does not talk.

    Raises:
        ImportError: where it is not installed, with what to install.
    """
    try:
        import optuna
    except ImportError as error:
        raise needs_extra("a search", "optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks on what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Book:
    """The trials of a search, kept in a storage that several processes share.

    Args:
        url: of the storage: `sqlite:///file.db`, `postgresql+psycopg://host/base`.
        settings: of the search.
        space: of the compositions.
        about: what else is kept with the study, as JSON.
        name: of the study.
    """

    def __init__(
        self, url: str, settings: Settings, space: Space, about: Mapping[str, Any] | None = None, name: str = NAME
    ) -> None:
        self.settings, self.space = settings, space
        optuna = library()
        with quiet():
            self.study: Study = optuna.create_study(
                storage=storage(url),
                study_name=name,
                directions=["maximize" if way == "up" else "minimize" for way in settings.better],
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=settings.seed),
            )
        for key, value in (about or {}).items():
            self.study.set_user_attr(key, value)

    # What there is -------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every trial, in order."""
        return [entry(one) for one in self.study.get_trials(deepcopy=False)]

    def levels(self, entries: Sequence[Entry]) -> dict[int, Level]:
        """Length -> the compositions that kept to all limits there, with their objectives, smaller is better.

        Where one was measured with several seeds there, they are means; with one of these gone wrong it is left out.
        """
        by_length: dict[int, dict[str, list[Values]]] = {}
        wrong = {(one.key, one.length) for one in entries if one.state in ("diverged", "failed")}
        for one in entries:
            values = self.objectives(one)
            if one.state == "done" and values is not None and self.within(one) and (one.key, one.length) not in wrong:
                by_length.setdefault(one.length, {}).setdefault(one.key, []).append(self.settings.turned(values))
        return {
            length: {key: tuple(sum(column) / len(column) for column in zip(*rows)) for key, rows in level.items()}
            for length, level in sorted(by_length.items())
        }

    def objectives(self, one: Entry) -> Values | None:
        """Its objectives; None where one has no value."""
        if all(name in one.values for name in self.settings.objectives):
            return tuple(one.values[name] for name in self.settings.objectives)
        return None

    def within(self, one: Entry) -> bool:
        """Whether it keeps to every limit."""
        return all(over <= 0 for over in self.over(one).values())

    def over(self, one: Entry) -> dict[str, float]:
        """How far beyond each limit."""
        return self.settings.over(one.values, min(1.0, one.length / self.space.experiences))

    # What is next --------------------------------------------------------------------------------------

    def enqueue(
        self,
        params: Mapping[str, Any],
        key: str,
        length: int,
        origin: str = "sampler",
        extra: Mapping[str, Any] | None = None,
        tries: int = 0,
        seed: int = 0,
    ) -> None:
        """Let a free worker train a composition until it has learned `length` experiences."""
        attributes = {"key": key, "length": length, "origin": origin, "extra": dict(extra or {}), "tries": tries}
        attributes |= {"seed": seed}
        with quiet():
            self.study.enqueue_trial(dict(params), user_attrs=attributes)

    def best(self, entries: Sequence[Entry], count: int) -> list[str]:
        """The keys of the best compositions: those of the longest prefix first, then those of shorter ones.

        What differs from another one in nothing that matters is left out.
        """
        levels, repeated = self.levels(entries), self.repeated(entries)
        keys = dict.fromkeys(key for length in reversed(levels) for key in ordered(levels[length]))
        return [key for key in keys if key not in repeated][:count]

    def repeated(self, entries: Sequence[Entry]) -> set[str]:
        """The compositions that measured, in all but cost, the very same as one tried before that is no dearer.

        The longest prefix that both learned says so: an operation may do nothing at first.
        """
        measured: dict[str, dict[int, tuple[object, Values]]] = {}
        for one in entries:
            values = self.objectives(one)
            if one.state == "done" and one.seed == 0 and values is not None and self.within(one):
                measured.setdefault(one.key, {})[one.length] = one.outcome, self.settings.turned(values)
        repeated: set[str] = set()
        before: dict[tuple[int, object], list[str]] = {}  # those of one outcome, of which few are alike
        for key, mine in measured.items():
            alike = dict.fromkeys(one for length in mine for one in before.get((length, mine[length][0]), ()))
            for other in alike:
                (outcome, values), (theirs, best) = (one[max(mine.keys() & measured[other].keys())]
                                                     for one in (mine, measured[other]))  # fmt: skip
                if outcome == theirs and all(a <= b for a, b in zip(best, values)):
                    repeated.add(key)
                    break
            else:
                for length, (outcome, _) in mine.items():
                    before.setdefault((length, outcome), []).append(key)
        return repeated

    # What was lost -------------------------------------------------------------------------------------

    def look_for_lost(self) -> None:
        """Give trials that show no sign of life any more to another worker, though nobody asks for one now."""
        with quiet():
            library().storages.fail_stale_trials(self.study)

    def begin_again(self, gone: Callable[[Entry], bool]) -> list[Entry]:
        """Give trials whose worker is gone to another one, at most `TRIES` times.

        Args:
            gone: whether the worker of a running trial is gone.
        """
        optuna = library()
        for one in self.entries():
            if one.state == "running" and gone(one):
                with quiet():
                    self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        latest = {(one.key, one.length, one.seed): one for one in self.entries()}
        lost = [one for one in latest.values() if one.state == "lost"]
        for one in lost:
            if one.tries + 1 < TRIES:
                self.enqueue(one.params, one.key, one.length, one.origin, one.extra, one.tries + 1, one.seed)
        return lost


def storage(url: str) -> Any:
    """The storage at an address, with signs of life, so that trials of lost workers are begun again.

    Raises:
        ConfigError: where it cannot be reached.
    """
    optuna = library()
    again = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=TRIES - 1)
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for left in reversed(range(AGAIN)):
        try:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=again,
            )
        except ImportError as error:
            raise ConfigError(
                f"--storage: {url.split('@')[-1]} needs a driver that is not installed ({error}). For PostgreSQL: "
                "pip install 'psycopg[binary]', and write postgresql+psycopg://..."
            ) from None
        except Exception as error:
            if left and any(word in str(error) for word in ("UniqueViolation", "already exists")):
                time.sleep(0.5)  # another process is making the tables of an empty database
                continue
            reason = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise ConfigError(f"--storage: cannot use {url.split('@')[-1]}: {reason}. Check the address.") from None
    raise AssertionError("the last try returns or raises")


def check_database(path: Path) -> None:
    """Refuse the file of a study that is damaged, before anything is read from it; one that is not there will be made.

    Raises:
        ConfigError: with what can be done about it.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=60)) as database:
            problem = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
            pages, size = (database.execute(f"PRAGMA {one}").fetchone()[0] for one in ("page_count", "page_size"))
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    if problem != "ok" or path.stat().st_size < pages * size:
        raise damaged(path, problem if problem != "ok" else "its end is missing")


def damaged(path: Path, reason: object) -> ConfigError:
    """What is to be said of the file of a study that cannot be read."""
    return ConfigError(
        f"{path} is damaged: {' '.join(str(reason).split())}. Delete it, and type the same again: what is in "
        f"{path.parent / TRIALS} is not trained anew. Or choose another --out."
    )


def taken(path: Path) -> int | None:
    """A lock that one process of this machine has at a time, as an open file; None if there are no such locks.

    SQLite locks no rows, so that two workers that ask for what waits at the same moment would both get the same trial.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def distribution(axis: Axis) -> Any:
    """An axis as Optuna writes it down."""
    kinds = library().distributions
    if axis.choices:
        return kinds.CategoricalDistribution(axis.labels)
    if axis.whole:
        return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
