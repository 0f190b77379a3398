"""How the tests are run: in several processes of one thread each, one file alone in one, without needless imports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestModule

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process for each processor: more threads would only be in the way

MOST = 8
"""Processes at most: each imports torch, which takes two seconds and some hundred megabytes."""

SOURCE = Path(__file__).parent / "src"
ALL_SLOW = ("\npytestmark = pytest.mark.slow", "\npytestmark = [pytest.mark.slow")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Take the options that pyproject.toml gives to xdist also where it is not installed or switched off."""
    parser.addoption("--examples", action="store_true", help="also run the examples that draw and train for longer")
    if not pluginmanager.has_plugin("xdist"):
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name, help="of pytest-xdist, which is not here; the tests run in one process")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules without an example, and among fast tests the files of slow ones, which import whole libraries.

    Every process imports what it collects: Lightning, transformers and the like take seconds each.
    """
    if collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    if collection_path.is_relative_to(SOURCE):
        return ">>>" not in text or None
    return (config.option.markexpr == "not slow" and any(mark in text for mark in ALL_SLOW)) or None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Iterator[Any]:
    """Look for examples in the sources alone."""
    collectors = yield
    if file_path.is_relative_to(SOURCE):
        return collectors
    return [collector for collector in collectors if not isinstance(collector, DoctestModule)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the longer examples out, unless they are asked for."""
    if not config.getoption("--examples"):
        for item in items:
            if item.get_closest_marker("examples"):
                item.add_marker(pytest.mark.skip(reason="a longer example; run with --examples"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No other process for a single file, which is over before two of them have started."""
    paths = [argument.split("::")[0] for argument in config.args]
    if all(path.endswith((".py", ".md")) for path in paths) and len(set(paths)) == 1:
        return 0
    said = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", "")
    if said.isdigit():
        return int(said)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, here)
