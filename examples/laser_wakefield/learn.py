"""Learn where the electrons of a plasma are, and how fast, while a laser drives through it: with and without replay.

python learn.py                   starts simulate.py and learns from it over SST, while it runs
python learn.py recording.bp      learns from a recording, or from any series with the same records

Two invertible networks learn the density of (x, z, p_x, p_z) by its likelihood, each batch once: one by fine-tuning,
one with replay. In the beginning the plasma rests; then the laser blows electrons out of its way, and leaves a wake.
What was learned of the beginning is measured after the end.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from holdfast import StreamTrainer, methods, models
from holdfast.models.losses import flow
from holdfast.sources import OpenPMD

HERE = Path(__file__).resolve().parent
RECORDS = ["particles/e/position", "particles/e/momentum"]
FIRST = 3
"""Iterations that count as the beginning."""


def learners(seed):
    """A trainer of each method, with the same weights in the beginning."""
    made = {}
    for name, method in (("without replay", methods.finetune()), ("with replay", methods.er(capacity=2000, size=125))):
        model = models.invertible(input_shape=(4,), classes=4, blocks=6, hidden=64, seed=seed)
        optimizer = {"name": "Adam", "lr": 2e-3}
        made[name] = StreamTrainer(model, method, optimizer=optimizer, criterion=flow, clip_norm=5.0, seed=seed)
    return made


def likelihood_loss(trainer, rows):
    """Negative log-likelihood a number, of rows `[rows, 4]`."""
    with torch.no_grad():
        return float(flow(trainer.session.engine.learner.model(rows), rows))


def learn(path, timeout, seed=0):
    """One pass over a series; the loss on each iteration's data after the last one, by name of the learner."""
    source = OpenPMD(str(path), RECORDS, rows="particles", standardise=False, timeout=timeout, batch_size=125)
    trainers, seen = learners(seed), {}
    for batch in source.batches():
        for trainer in trainers.values():
            trainer.step(batch)
        seen.setdefault(source.position()["piece"]["iteration"], []).append(batch.inputs)
    return {name: [likelihood_loss(one, torch.cat(rows)) for rows in seen.values()] for name, one in trainers.items()}


def main():
    """Learn, and say what was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", help="of a series that exists, or is about to; default: simulate now")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for an iteration")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    if given.path is not None:
        losses = learn(given.path, given.timeout, given.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "electrons.sst"
            simulation = subprocess.Popen([sys.executable, str(HERE / "simulate.py"), str(path)])
            try:
                losses = learn(path, given.timeout, given.seed)
            finally:
                simulation.terminate()
                simulation.wait()
    print(f"{len(next(iter(losses.values())))} iterations in {time.perf_counter() - begun:.0f} s")
    for name, row in losses.items():
        first, last = sum(row[:FIRST]) / FIRST, row[-1]
        print(f"{name:14s} loss on the first {FIRST} iterations {first:.3f}, on the last {last:.3f}")
        print(f"{'':14s} by iteration: {' '.join(f'{one:.2f}' for one in row)}")


if __name__ == "__main__":
    main()
