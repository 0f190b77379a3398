"""What parsing and measuring a long log takes, in processor seconds: `python benchmarks/log.py [--events 50000]`.

Two logs of so many events: one of many experiences, so that nearly all events are evaluations, and one of many training
steps. Each is written to a file, parsed, and measured as for `metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from holdfast.metrics import compute, read_log


def evaluations(count: int) -> list[dict[str, Any]]:
    """Evaluations of every experience after each one, ten classes an experience, with their confusions."""
    generator = random.Random(0)
    size = math.isqrt(count)
    events: list[dict[str, Any]] = [
        {"event": "start", "seed": 0, "method": "er", "stream": {"name": "made up", "experiences": size}}
    ]
    for after in range(size):
        for experience in range(size):
            classes = [10 * experience + index for index in range(10)]
            right = {str(label): generator.randrange(10) for label in classes}
            event = {"event": "evaluate", "after": after, "experience": experience, "split": "test", "samples": 100}
            event |= {"loss": 1.0, "correct": sum(right.values()), "correct_task": sum(right.values())}
            event |= {"class_samples": dict.fromkeys(right, 10), "class_correct": right}
            event["confusion"] = {label: {label: hit, "0": 10 - hit} for label, hit in right.items()}
            events.append(event)
    return [*events, {"event": "end", "seconds": 1.0}]


def steps(count: int) -> list[dict[str, Any]]:
    """Windows of training steps of one pass."""
    return [
        {"event": "train", "experience": 0, "epoch": 0, "step": 50 * index, "samples": 500 * index, "lr": 0.1,
         "loss": 1.0, "accuracy": 0.5, "terms": {"loss": 1.0, "replay": 0.5}}
        for index in range(1, count + 1)
    ]  # fmt: skip


def main() -> None:
    """Print seconds of the processor for parsing and for measuring each log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000)
    count = parser.parse_args().events
    for name, events in (("evaluations", evaluations(count)), ("training steps", steps(count))):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log.jsonl"
            path.write_text("".join(json.dumps(event) + "\n" for event in events))
            start = time.process_time()
            log = read_log(path)
            parsed = time.process_time()
            compute(log)
            measured = time.process_time()
            size = path.stat().st_size / 2**20
        print(
            f"{len(events):,} {name} ({size:.0f} MiB): parsed in {parsed - start:.2f} s, "
            f"measured in {measured - parsed:.2f} s"
        )


if __name__ == "__main__":
    main()
