"""Toys that several folders of tests share, and reports without figures where nobody looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holdfast.discovery import report as search_report
from holdfast.runs import drawing, report, source_report
from holdfast.testing.toys import (
    KeepAt,
    batches,
    equal,
    model,
    model_for,
    stream,
    stream_for,
    through_disk,
    train,
    weights,
    wrap,
)


def pytest_configure(config: pytest.Config) -> None:
    """Say which paths are not there: with several workers pytest only says that no tests ran."""
    paths = [Path(word.split("::")[0]) for word in config.args]
    missing = [str(path) for path in paths if not (config.invocation_params.dir / path).exists()]
    if missing and not hasattr(config, "workerinput"):
        raise pytest.UsageError(f"there is no {' and no '.join(missing)}")


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        stream=stream,
        stream_for=stream_for,
        model=model,
        model_for=model_for,
        train=train,
        wrap=wrap,
        weights=weights,
        equal=equal,
        through_disk=through_disk,
        batches=batches,
        KeepAt=KeepAt,
    )


UNDRAWN: list[tuple[ModuleType, str, Any]] = [
    (drawing, "LAYOUT", None),
    (drawing, "BOUNDS", None),
    (report, "draw", lambda *_, **__: []),
    (report, "training_plots", lambda *_: []),
    (search_report, "pictures", lambda *_: []),
    (source_report, "figures", lambda *_: []),
    (source_report, "pictures", lambda *_: []),
]
DRAWN = [(module, name, getattr(module, name)) for module, name, _ in UNDRAWN]


@pytest.fixture(scope="module", autouse=True)
def no_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports without figures, which take longer to draw than a small run takes, except where somebody looks at them.

    A file asks for them with `FIGURES = True`, a test with the fixture `figures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name, instead in UNDRAWN if not getattr(request.module, "FIGURES", False) else ():
            patch.setattr(module, name, instead)
        yield


@contextmanager
def drawing_them() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in DRAWN:
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session")
def with_figures() -> Callable[[], AbstractContextManager[None]]:
    """`with with_figures():` draws them, for a report that several tests look at."""
    return drawing_them


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with their figures."""
    for module, name, value in DRAWN:
        monkeypatch.setattr(module, name, value)
