"""Training while the data wander: what is left of the first steps after the last one, with and without replay.

python examples/toy8_training.py
"""

import torch
from torch.nn import functional as F

from holdfast import StreamTrainer, methods, models
from holdfast.boundaries import OnDrift
from holdfast.sources import HoldOut, Toy8

STEPS, DT = 10, 0.3


def train(method):
    """One pass over ten times of a stream; returns the trainer and the steps at which a drift was found."""
    source = HoldOut(Toy8(npoints=1024, steps=STEPS, dt=DT, batch_size=64, seed=0), share=0.05)
    found = []
    trainer = StreamTrainer(
        models.mlp(input_shape=(2,), classes=8, hidden=[64, 64], seed=0),
        method,
        optimizer={"name": "Adam", "lr": 2e-3},
        boundary=OnDrift("mmd", on="inputs", parameters={"permutations": 199, "level": 0.005}),
        record=lambda event: found.append(event["samples"]) if event["event"] == "boundary" else None,
    )
    trainer.train(source)
    return trainer, found


def losses(trainer):
    """Loss on what the stream was at each time, `[STEPS]`."""
    toy = Toy8(npoints=2048, seed=0)
    return [float(F.cross_entropy(trainer.predict(toy.x + step * DT), toy.y)) for step in range(STEPS)]


torch.set_num_threads(1)
for name, method in (("without replay", methods.finetune()), ("with replay", methods.er(capacity=500, size=64))):
    trainer, found = train(method)
    row = losses(trainer)
    print(f"{name:15s} predicted {trainer.accuracy:.1%}, first step {row[0]:.2f}, last step {row[-1]:.2f}")
    print(f"{'':15s} loss by time: {' '.join(f'{one:.2f}' for one in row)}; drift found {len(found)} times")
