"""Every source of ours passes the checks that are shipped for sources, and every boundary those for boundaries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import streams
from holdfast.boundaries import OnDrift
from holdfast.core.source import Source
from holdfast.sources import Csv, Experiences, Folder, HoldOut, Parquet, Queued, Replay, Toy8, Window
from holdfast.streams import datasets
from holdfast.testing import check_boundary, check_source


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = np.arange(60)
    lines = ["a,b,label", *(f"{row},{row % 7},{row % 3}" for row in rows.tolist())]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for number, part in enumerate(np.split(rows, 3)):
        np.savez(tmp_path / f"{number}.npz", x=part[:, None].astype(np.float32), y=part % 3)
    (tmp_path / "END").touch()
    return tmp_path


def queued(path: str, policy: Any = "block") -> Source:
    """A queue over a table.

    Args:
        path: of a table.
        policy: of the queue.
    """
    return Queued(Csv(path, batch_size=4), policy)


def windowed(path: str) -> Source:
    """A window over the rows of a table that are not held out.

    Args:
        path: of a table.
    """
    return Window(HoldOut(Csv(path, batch_size=4), 0.2), rows=12, batch_size=4, min_steps=2, max_steps=2)


SOURCES: dict[str, Callable[[Path], tuple[Callable[..., Source], dict[str, Any]]]] = {
    "csv": lambda folder: (Csv, {"path": str(folder / "t.csv"), "batch_size": 7}),
    "folder": lambda folder: (Folder, {"path": str(folder), "classes": 3, "batch_size": 7}),
    "replay": lambda folder: (Replay, {"path": str(folder / "0.npz"), "batch_size": 7}),
    "toy8": lambda folder: (Toy8, {"npoints": 32, "steps": 3, "batch_size": 7}),
    "queue": lambda folder: (queued, {"path": str(folder / "t.csv")}),
    "drop": lambda folder: (queued, {"path": str(folder / "t.csv"), "policy": "drop"}),
    "window": lambda folder: (windowed, {"path": str(folder / "t.csv")}),
    "experiences": lambda folder: (
        Experiences,
        {"stream": streams.split(datasets.synthetic(classes=4), experiences=2), "batch_size": 16},
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_keeps_what_sources_promise(name: str, files: Path) -> None:
    kind, arguments = SOURCES[name](files)
    found = check_source(kind, **arguments)
    assert found["counts"] == found["seeks"] == "passed"


def test_a_parquet_file_keeps_what_sources_promise(files: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.csv.read_csv(str(files / "t.csv")), files / "t.parquet")
    assert check_source(Parquet, path=str(files / "t.parquet"), batch_size=7)["seeks"] == "passed"


def test_a_detector_keeps_what_boundaries_promise() -> None:
    assert "failed" not in check_boundary(OnDrift).values()


def test_rivers_progressive_validation_takes_our_classifier() -> None:
    pytest.importorskip("river", reason="river is not installed (the extra `stream` brings it)")
    from river import evaluate, metrics
    from river.datasets import synth

    from holdfast import ContinualClassifier

    data = synth.SEA(seed=1).take(400)
    model = ContinualClassifier(method="er", hidden=(16,), epochs=1, optimizer={"name": "SGD", "lr": 0.05})
    score = evaluate.progressive_val_score(data, model.as_river(), metrics.Accuracy())
    assert score.get() > 0.6
    assert len(model.continual_.learner.memory) == 200
