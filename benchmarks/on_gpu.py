"""Every line that captured and stacked steps have to show on one GPU, in one call of under ten minutes.

    python benchmarks/on_gpu.py              on a GPU: CUDA graphs, all methods
    python benchmarks/on_gpu.py --quick      on any machine: few methods and steps, on a CPU the tape instead of graphs

Each line says what was measured, what was asked for, and whether it is so. What is not measured within `--minutes` is
listed as not measured. The lines: a captured step of every method beside experience replay written by hand, its
weights beside those as written, and whether the host waits for the device in it; a step of many runs at once, with
their feed, beside a captured step of one; a whole run of Split MNIST with five evaluations; and table A.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import captured  # noqa: E402
import leaderboard  # noqa: E402

from holdfast import methods  # noqa: E402

ASKED = {"er": 0.10, "mlp": 0.18, "resnet18": 0.30, 32: 1.5, 128: 2.5, "run": 1.0, "table": 120.0}
"""Ratios to the hand-written step, by method or network; to a single captured step, by runs at once; and seconds."""


class Lines:
    """Prints what was measured beside what was asked for.

    Args:
        minutes: after which nothing more is begun.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.perf_counter() + 60 * minutes
        self.missed = 0

    @property
    def late(self) -> bool:
        """Whether nothing more is to be begun."""
        return time.perf_counter() > self.end

    def line(self, what: str, value: float, most: float, unit: str = "", more: str = "") -> None:
        """One measured value that is to be at most another."""
        good = value <= most
        self.missed += not good
        print(
            f"{'ok    ' if good else 'MISSED'} {what:46s} {value:8.3f}{unit} of at most {most:g}{unit}  {more}",
            flush=True,
        )

    def none(self, what: str, why: str) -> None:
        """Something that was not measured."""
        self.missed += 1
        print(f"NONE   {what:46s} {why}", flush=True)


def steps(
    lines: Lines, network: str, names: list[str], how: str, device: str, rounds: int, count: int, optimizer: str = "SGD"
) -> None:
    """Captured steps of each method."""
    for name in names:
        what = f"{network}: {name}, {optimizer}, of the hand-written step"
        if lines.late:
            lines.none(what, "not measured: the time is over")
            continue
        try:
            row = captured.measure(name, network, how, device, rounds, count, optimizer, written=False)
        except Exception as error:  # one method must not cost the lines of the others
            lines.none(what, f"failed: {type(error).__name__}: {error}")
            continue
        if row["why_not"]:
            print(f"as written: {name}: {row['why_not']}", flush=True)
            continue
        if row["captured_ratio"] != row["captured_ratio"]:
            print(f"no steps: {name} makes none in the second experience", flush=True)
            continue
        most = ASKED["er"] if (name, network) == ("er", "mlp") else ASKED[network]
        told = f"{row['captured']:.0f} of {row['hand']:.0f} us{', THE HOST WAITS' if row['waits'] else ''}"
        lines.line(what, row["captured_ratio"], most, more=told)


def equal(lines: Lines, names: list[str], how: str, device: str) -> None:
    """Weights of captured steps beside those as written, over three experiences."""
    good, told = 0, []
    for name in names:
        if lines.late:
            lines.none(f"equal weights of {name}", "not measured: the time is over")
            continue
        try:
            row = captured.equal(name, how, device)
        except Exception as error:  # one method must not cost the lines of the others
            lines.none(f"equal weights of {name}", f"failed: {type(error).__name__}: {error}")
            continue
        good += not row["different"]
        if row["different"]:
            lines.none(f"equal weights of {name}", f"differ: {row['different']}")
        elif row["steps"] and not row["captured"]:
            told.append(f"{name} ({'; '.join(row['why_not'])})")
    print(f"{good} of {len(names)} methods end with equal weights, captured and as written; not captured: {told}")


def at_once(lines: Lines, how: str, device: str, counts: list[int], count: int) -> None:
    """Many runs at once, with their feed."""
    for runs in counts:
        what = f"mlp: er, {runs} runs at once, of a captured step"
        if lines.late:
            lines.none(what, "not measured: the time is over")
            continue
        row = captured.measure_many("er", "mlp", how, device, [runs], count)[0]
        told = f"{row['at_once']:.0f} of {row['single']:.0f} us"
        lines.line(what, row["at_once"] / row["single"], ASKED.get(runs, 2.5), more=told)


def whole_run(lines: Lines, row: str, device: str, changes: list[str]) -> None:
    """A whole run of Split MNIST, by the clock on the wall; the second of two, so that nothing is loaded in it."""
    from holdfast.config.compose import load
    from holdfast.runs.run import run

    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            config = load(HERE / "configs" / leaderboard.TABLE / f"{row}.json", [f"device={device}", *changes])
            run(config, Path(folder) / "run", quiet=True)
            log = (Path(folder) / "run" / "log.jsonl").read_text().splitlines()
        seconds.append(captured.json.loads(log[-1])["seconds"])
    lines.line(f"split MNIST, {row}, one run with its evaluations", seconds[-1], ASKED["run"], " s")


def table(lines: Lines, rows: list[str], seeds: int, changes: list[str]) -> None:
    """All rows of table A with their seeds at once."""
    start = time.perf_counter()
    for row in rows:
        if lines.late:
            lines.none("table A", f"not measured to its end: the time is over before {row}")
            return
        begun = time.perf_counter()
        leaderboard.train(row, seeds, changes)
        print(f"{row}: {time.perf_counter() - begun:.1f} s", flush=True)
    lines.line(f"table A, {len(rows)} rows x {seeds} seeds", time.perf_counter() - start, ASKED["table"], " s")


def main() -> int:
    """Print every line; returns how many were missed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few methods, steps and runs")
    parser.add_argument("--minutes", type=float, default=9.5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = "graph" if device == "cuda" else "tape"
    if device == "cpu" and not arguments.quick:
        parser.error(
            "there is no GPU on this machine. Write --quick to try the script with the tape in place of graphs."
        )
    torch.set_num_threads(1)
    lines, quick = Lines(arguments.minutes), arguments.quick
    changes = ["trainer.limit_train_batches=20", "trainer.limit_test_batches=1"] if quick else []
    changes += ["trainer.capture=tape"] if device == "cpu" else []
    print(f"{leaderboard.machine()}, {how}, torch {torch.__version__}")
    every = ["er", "hat"] if quick else list(methods.__all__)
    for row in ["er/500"] if quick else ["er/500", "finetune"]:
        whole_run(lines, row, device, changes)
    at_once(lines, how, device, [2] if quick else [32, 128], 4200)
    equal(lines, every, how, device)
    steps(lines, "mlp", every, how, device, 2 if quick else 3, 10 if quick else 30)
    steps(lines, "mlp", ["er"], how, device, 2 if quick else 3, 10 if quick else 30, "Adam")
    if not quick:
        steps(lines, "resnet18", ["er", "der_plus_plus", "ewc", "lwf"], how, device, 2, 10)
    table(lines, leaderboard.rows()[:1] if quick else leaderboard.rows(), 2 if quick else 10, changes)
    return min(1, lines.missed)


if __name__ == "__main__":
    sys.exit(main())
