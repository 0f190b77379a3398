"""Toys that several folders of tests share, and reports without figures where nobody looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

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


@pytest.fixture(scope="module", autouse=True)
def no_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports without figures, which take longer to draw than a small run takes, except in files that ask for them.

    A file asks with `FIGURES = True`.
    """
    if getattr(request.module, "FIGURES", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "LAYOUT", None)
        patch.setattr(drawing, "BOUNDS", None)
        patch.setattr(report, "draw", lambda *_, **__: [])
        patch.setattr(report, "training_plots", lambda *_: [])
        patch.setattr(source_report, "figures", lambda *_: [])
        yield
