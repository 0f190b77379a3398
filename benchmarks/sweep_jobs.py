"""What a second worker process saves: eight seeds of one job with `--jobs 2` and with `--jobs 1`, as a ratio.

    python benchmarks/sweep_jobs.py [--epochs 10 400] [--rounds 2] [--json FILE]

Wall time of the whole command, from its start to its report, in turn within each round. A worker takes some three
seconds to import all it needs, and the command itself two, so short jobs gain less than long ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(epochs: int, jobs: int, out: Path) -> float:
    """Wall time of eight seeds of experience replay on digits."""
    words = ["run", "-m", "experiment=digits", "seed=range(0,8)", f"trainer.epochs={epochs}"]
    command = [sys.executable, "-m", "holdfast", *words, "--jobs", str(jobs), "--out", str(out), "--quiet"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def main() -> None:
    """Measure each length of job, and print one line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 400], help="of each job's five experiences")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    rows = []
    for epochs in arguments.epochs:
        found: dict[int, list[float]] = {1: [], 2: []}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(arguments.rounds):
                for jobs in (2, 1):
                    found[jobs].append(seconds(epochs, jobs, Path(folder) / f"{number}-{jobs}"))
        ratio = statistics.median(two / one for two, one in zip(found[2], found[1]))
        one, two = (statistics.median(found[jobs]) for jobs in (1, 2))
        rows.append({"epochs": epochs, "one": round(one, 2), "two": round(two, 2), "ratio": round(ratio, 3)})
        print(f"8 seeds, {epochs} epochs each: one worker {one:.1f} s, two {two:.1f} s ({ratio:.3f})", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
