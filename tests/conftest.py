"""Toys that several folders of tests share, and figures that cost little where nobody looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from holdfast.runs import drawing
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
def quick_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures without room made for their text, except where they are tested: a run spends most of its time on that."""
    if request.path.name in ("test_report.py", "test_figures.py"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "LAYOUT", None)
        patch.setattr(drawing, "BOUNDS", None)
        yield
