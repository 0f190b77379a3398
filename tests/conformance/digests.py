"""Digests of the weights and logged numbers of every method and operation in every way to train, and their record.

python tests/conformance/digests.py --check             hold everything against digests.json; exit with 1 if it differs
python tests/conformance/digests.py --check --fast      the same without the ways that are marked slow
python tests/conformance/digests.py --write --only er   record the numbers of one subject again (or of several)

In an environment that is in the record (torch, processor, the bits of a few computations) numbers must be equal to the
last bit. In any other, sums over weights and predictions are compared within `TOLERANCES`: no method
is left out, since all stay within them on kernels for other instructions (AVX2 and none, against AVX-512).
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests are no package
from ways_to_train import (
    FAST,
    LIGHTNING,
    ROOT,
    SUBJECTS,
    WAYS,
    Outcome,
    bytes_of,
    quiet_thread,
    takes_capacity,
    trained,
)

say = functools.partial(print, flush=True)
RECORD = Path(__file__).resolve().parent / "digests.json"
ROWS = ("split_mnist_online/er/200", "split_mnist_three/slda/class", "split_mnist_hsu/si/task")
ROW = "row of benchmarks/accuracy.py, seed 0"
"""Subjects of another kind: one quick row each of three tables."""

HEAVY = ("trainer, growing head, momentum, resumed", "loop with begin and end, growing head, momentum")
"""The fast ways of those that go over the data many times at each boundary: all of them would take many seconds."""

AT_LENGTH = ("CommonMinimum", "LossSurrogate", "dgr", "hal", "gdumb", "generative_classifier", "ranpac")
"""Those."""

LATER = ("trainer, growing head, momentum", "trainer, growing head, Adam", "loop with OnNewClass, fixed head, Adam")
"""Fast ways that are left to the slow tests: resumed, the first ends with the same weights, which a test holds."""

FEWER = (
    "trainer, growing head, momentum, resumed",
    "trainer, head per task, momentum",
    "trainer, fixed head, momentum, small memory",
    "loop with Every, fixed head, momentum",
    "endless stream, momentum",
)
"""The fast ways of all but one method of each kind: each kind of head and of loop, resumed, and a full memory."""

KINDS = ("er", "der_plus_plus", "ewc_online", "si", "lwf", "agem", "gem", "hat", "icarl", "slda", "latent_replay")
"""A method of each kind, which is checked in every fast way."""

TOLERANCES = {"weights": 2e-3, "signed": 2e-3, "outputs": 1e-2, "loss": 1e-2, "right": 0.05}
"""What may differ where the kernels differ: relative to the size, for `right` in shares of the test samples."""

WIDER = {"split_mnist_hsu/si/task": {"weights": 2e-2, "signed": 2e-2}}
"""Subjects in which thousands of steps amplify rounding: weights differed by 0.3 % without vector instructions."""


def ways(subject: str) -> list[str]:
    """The ways in which a subject is recorded."""
    if subject in ROWS:
        return [ROW]
    return [way for way in WAYS if takes_capacity(subject) or "small memory" not in way]


def fast(subject: str) -> list[str]:
    """The ways that are checked by every run of the tests."""
    every = [way for way in FAST if way not in LATER]
    chosen = HEAVY if subject in AT_LENGTH else every if subject in KINDS else FEWER
    return [way for way in ways(subject) if way in chosen]


def row(name: str) -> Outcome:
    """One row of published results, run by the command that anybody would type."""
    path = ROOT / "benchmarks" / "configs" / f"{name}.json"
    changes = ["seed=0", "threads=1"]
    if json.loads(path.read_text())["stream"].get("class_order") == "random":
        changes.append("stream.seed=0")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "holdfast", "run", str(path), *changes, "--quiet", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        weights = torch.load(out / "checkpoints" / "model.pt", weights_only=True)
        matrix = (out / "accuracy_matrix.csv").read_text()
        metrics = json.loads((out / "metrics.json").read_text())
    return Outcome(weights, list(csv.reader(matrix.splitlines())), [], None, metrics["average_accuracy"])


def data_for_rows() -> bool:
    """Whether the data that the rows are measured on is there."""
    return (Path(os.environ.get("HOLDFAST_DATA", "")) / "mnist" / "train-images-idx3-ubyte.gz").is_file()


def result(subject: str, way: str) -> Outcome | str:
    """What training `subject` in `way` leaves, or which error refused it."""
    return row(subject) if subject in ROWS else trained(subject, way)


# The record ----------------------------------------------------------------------------------------------


@functools.cache
def environment() -> str:
    """What the bits of a result depend on: torch, the processor, and how this process rounds a few computations."""
    with quiet_thread():
        a, b, images = torch.randn(37, 53), torch.randn(53, 29), torch.randn(4, 3, 9, 9)
        square = a[:, :37] @ a[:, :37].T + 37 * torch.eye(37)
        values = [a @ b, a[:4] @ b, a.double() @ b.double(), a.exp(), a.tanh(), a.log_softmax(1), a.sum(), a.norm()]
        values += [torch.conv2d(images, torch.randn(5, 3, 3, 3)), torch.linalg.eigvalsh(square), square.inverse()]
        bits = hashlib.sha256(b"".join(bytes_of(value) for value in values)).hexdigest()[:8]
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__}, {processor}, 1 thread, rounding {bits}"


def read() -> dict[str, Any]:
    """The committed record: `environments` with digests, and `portable` numbers."""
    return json.loads(RECORD.read_text()) if RECORD.is_file() else {"environments": {}, "portable": {}}


def fault(subject: str, way: str, now: Outcome | str, record: dict[str, Any], where: str) -> str:
    """What differs from the record, as a sentence; empty if nothing does.

    Args:
        subject: a method, an operation or a row.
        way: how it was trained.
        now: what came of it.
        record: as `read` returns it.
        where: the environment that `now` comes from.
    """
    kept = record["portable"].get(subject, {}).get(way)
    if kept is None:
        return f"{subject}, {way}: not in the record."
    if isinstance(now, str) or isinstance(kept, str):
        before = kept if isinstance(kept, str) else "trained"
        after = now if isinstance(now, str) else "trained"
        return "" if before == after else f"{subject}, {way}: was {before}, is now {after}."
    far = _far(kept, now.portable(), {**TOLERANCES, **WIDER.get(subject, {})})
    if kept["count"] != now.portable()["count"]:
        far = f"{kept['count']} numbers in parameters and buffers became {now.portable()['count']}"
    digest = record["environments"].get(where, {}).get(subject, {}).get(way)
    if digest is None:
        return f"{subject}, {way}: more than rounding: {far}." if far else ""
    if digest == now.digest():
        return ""
    pairs = zip(("weights", "logged numbers"), digest.split(), now.digest().split())
    what = " and ".join(name for name, old, new in pairs if old != new)
    return f"{subject}, {way}: other {what}, {f'by more than rounding: {far}' if far else 'by rounding'}."


def _far(kept: dict[str, Any], now: dict[str, Any], tolerances: dict[str, float]) -> str:
    """Which portable number is further away than rounding brings it."""
    for name, tolerance in tolerances.items():
        old, new = kept[name], now[name]
        if (old is None) != (new is None):
            return f"{name} {old} became {new}"
        size = 1.0 if name == "right" else max(1.0, abs(kept["weights"] if name == "signed" else old or 0.0))
        if old is not None and abs(old - new) > tolerance * size:
            return f"{name} {old} became {new}"
    return ""


def note(subject: str, way: str, now: Outcome | str, record: dict[str, Any], where: str) -> None:
    """Put a result into the record; where it is another than before, what other environments had is void."""
    if fault(subject, way, now, record, where):
        for digests in record["environments"].values():
            digests.get(subject, {}).pop(way, None)
        record["portable"].setdefault(subject, {})[way] = now if isinstance(now, str) else now.portable()
    if isinstance(now, Outcome):
        record["environments"].setdefault(where, {}).setdefault(subject, {})[way] = now.digest()


def written(record: dict[str, Any]) -> str:
    """The record as text, one line for each way, so that a change shows as such."""
    order = {subject: dict.fromkeys(ways(subject)) for subject in (*SUBJECTS, *ROWS)}

    def lines(table: dict[str, Any], margin: str) -> str:
        blocks = []
        for subject, of in order.items():
            kept = [
                f"{margin}  {json.dumps(w)}: {json.dumps(table[subject][w])}" for w in of if w in table.get(subject, {})
            ]
            if kept:
                blocks.append(f"{margin}{json.dumps(subject)}: {{\n" + ",\n".join(kept) + f"\n{margin}}}")
        return "{\n" + ",\n".join(blocks) + f"\n{margin[:-1]}}}"

    places = [f"  {json.dumps(key)}: {lines(value, '   ')}" for key, value in sorted(record["environments"].items())]
    environments = "{\n" + ",\n".join(places) + "\n }"
    return f'{{\n "environments": {environments},\n "portable": {lines(record["portable"], "  ")}\n}}\n'


def main() -> int:
    """Write or check the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--check", action="store_true")
    group.add_argument("--write", action="store_true")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a method, an operation or a row")
    parser.add_argument("--fast", action="store_true", help="leave out the ways that are marked slow")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in SUBJECTS and name not in ROWS]
    if unknown:
        parser.error(f"unknown {unknown[0]!r}; there are: {', '.join((*SUBJECTS, *ROWS))}")
    record, where, wrong, count = read(), environment(), [], 0
    say(f"{where}: {'in the record' if where in record['environments'] else 'not in the record, so within tolerances'}")
    left_out = [] if find_spec("lightning") else list(LIGHTNING)
    if left_out:
        say(f"lightning is not installed; left out for every subject: {'; '.join(left_out)}")
    for subject in arguments.only or [*SUBJECTS, *ROWS]:
        if subject in ROWS and (arguments.fast or not data_for_rows()):
            say(f"{subject}: left out" + ("" if arguments.fast else ": HOLDFAST_DATA names no folder with mnist"))
            continue
        for way in ways(subject):
            if way in left_out or (arguments.fast and way not in fast(subject)):
                continue
            now = result(subject, way)
            different = fault(subject, way, now, record, where)
            count += 1
            if different:
                say(different)
                wrong.append(subject)
            if arguments.write:
                note(subject, way, now, record, where)
    if arguments.write:
        RECORD.write_text(written(record))
    elif wrong:
        again = " ".join(f"--only {name}" for name in dict.fromkeys(wrong))
        say(f"Where numbers change on purpose: python tests/conformance/digests.py --write {again}")
    say(f"{count} results, {len(wrong)} " + ("recorded anew" if arguments.write else "differ"))
    return int(bool(wrong) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
