"""A small run folder made by hand, without training anything: for the tests of metrics and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MATRIX = [[0.9, 0.0, 0.0], [0.6, 0.8, 0.0], [0.7, 0.5, 1.0]]


def evaluation(after: int, experience: int, correct: int | None, samples: int = 10, **more: Any) -> dict[str, Any]:
    return {
        "event": "evaluate", "after": after, "experience": experience, "split": "test", "samples": samples,
        "loss": 0.5, "correct": correct, "correct_task": correct, **more,
    }  # fmt: skip


def events(
    matrix: list[list[float]] = MATRIX, samples: int = 10, names: list[str] | None = None, seed: int = 0,
    method: str = "er", classes: bool = True, finished: bool = True, before: list[float] | None = None,
    terms: tuple[str, ...] = ("loss", "replay"), paradigm: str = "class",
) -> list[dict[str, Any]]:  # fmt: skip
    """The log of a run with two classes per experience whose accuracies are `matrix`."""
    count = len(matrix[0])
    found: list[dict[str, Any]] = [
        {
            "event": "start", "time": 0, "seed": seed, "method": method, "parameters": 1000,
            "stream": {
                "name": "toy", "experiences": count, "classes": 2 * count, "paradigm": paradigm,
                "experience_classes": [[2 * index, 2 * index + 1] for index in range(count)],
                "experience_names": names or [f"{2 * index}-{2 * index + 1}" for index in range(count)],
                "train_samples": [100] * count, "test_samples": [samples] * count,
                "class_names": [f"class {index}" for index in range(2 * count)],
            },
        }
    ]  # fmt: skip
    for index, value in enumerate(before or []):
        found.append(evaluation(-1, index, round(value * samples), samples))
    step = 0
    for after, row in enumerate(matrix):
        for part in range(4):
            step += 50
            values = {name: 1.0 / (1 + part) + 0.1 * place for place, name in enumerate(terms)}
            found.append(
                {"event": "train", "experience": after, "epoch": 0, "step": step, "samples": 10 * step, "loss": 1.0,
                 "accuracy": 0.5, "terms": values, "lr": 0.1}
            )  # fmt: skip
        for experience, value in enumerate(row):
            correct = round(value * samples)
            first, second = samples // 2, samples - samples // 2
            right = min(first, correct)
            one, other = str(2 * experience), str(2 * experience + 1)
            found.append(
                evaluation(
                    after, experience, correct, samples,
                    correct_task=min(samples, correct + 1),
                    class_samples={one: first, other: second} if classes else {},
                    class_correct={one: right, other: correct - right} if classes else {},
                )
            )  # fmt: skip
        found.append(
            {"event": "experience", "experience": after, "steps": 200, "seconds": 2.0, "evaluation_seconds": 0.5,
             "parameters": 1000 + after, "memory_items": 10, "memory_bytes": 640 - after}
        )  # fmt: skip
    if finished:
        found.append({"event": "end", "seconds": 9.0})
    return found


def write_log(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def write_run(folder: Path, tail: str = "", config: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A run folder with config.json, run.json and log.jsonl."""
    seed = settings.get("seed", 0)
    write_log(folder / "log.jsonl", events(**settings), tail)
    kept = {"method": {"name": settings.get("method", "er"), "lr": 0.1}} if config is None else config
    (folder / "config.json").write_text(json.dumps(kept | {"seed": seed}))
    info = {
        "command": ["holdfast", "run", "er.json"],
        "seed": seed,
        "state": "finished",
        "versions": {"torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    return folder
