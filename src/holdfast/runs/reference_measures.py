"""What references make measurable: forward transfer against independent models, and the forgetting ratio."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from holdfast.metrics.continual import forgetting_ratio, transfer_from_independent
from holdfast.metrics.files import replace_file
from holdfast.runs.report_data import load_references, load_runs

DESCRIPTIONS = {
    "forward_transfer_independent": "accuracy on each experience right after learning it, beyond that of a new model",
    "forgetting_ratio": "0 as good as joint training, -1 as good as no training",
}
"""Name of each measure, and what it says."""


def measure_against(folder: str | os.PathLike[str], write: bool = True) -> dict[str, float]:
    """What the references of a run make measurable, seed by seed.

    `forward_transfer_independent` needs `references/independent`, `forgetting_ratio` needs `joint` and `random`; both
    in the family of accuracies that counts for the paradigm.

    Args:
        folder: of a run, or of the runs of several seeds.
        write: also write them into `metrics.json` of each run, under `references`.

    Returns:
        The means over seeds; empty where the references are not there.
    """
    references = {
        name: {run.metrics.get("seed"): run for run in runs} for name, runs in load_references(folder).items()
    }
    values: dict[str, list[float]] = {}
    for run in load_runs(folder) if references else []:
        if not run.metrics.get("finished"):
            continue
        family = str(run.metrics.get("headline") or "") + "accuracy_matrix"
        seed = run.metrics.get("seed")
        known = {name: runs[seed].matrix(family) for name, runs in references.items() if seed in runs}
        found = against(run.matrix(family), known)
        path = Path(run.path) / "metrics.json"
        if write and found and path.is_file():
            content = {**json.loads(path.read_text()), "references": found}
            replace_file(path, json.dumps(content, indent=2) + "\n")
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def against(matrix: np.ndarray, references: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The measures that need references.

    Args:
        matrix: `[T, T]` accuracies of the run.
        references: the same of each reference, by name.

    Returns:
        Name -> value, for those whose references are there.
    """
    found = {}
    if "independent" in references:
        found["forward_transfer_independent"] = transfer_from_independent(matrix, np.diag(references["independent"]))
    if "joint" in references and "random" in references:
        joint, untrained = _last(references["joint"]), _last(references["random"])
        found["forgetting_ratio"] = forgetting_ratio(_last(matrix), joint, untrained)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _last(matrix: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(np.isfinite(matrix).any(axis=1))
    return np.asarray(matrix[rows[-1]]) if rows.size else np.full(len(matrix), np.nan)
