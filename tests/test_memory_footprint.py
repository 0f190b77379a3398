"""What training takes of the machine's memory: the data once, and a small constant."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
]

SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    from holdfast import Trainer, Stream, Experience
    from holdfast.methods import er
    from holdfast.models import linear
    from holdfast.streams.data import LoaderData, TensorData
    from holdfast.streams.dataset import Prepare

    def megabytes(key):
        return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024

    kind = sys.argv[1]
    if kind == "tensors":
        rows = 350_000
        inputs = torch.zeros(rows, 3, 32, 32, dtype=torch.uint8)
        inputs.random_(0, 256)  # touches every page
        targets = torch.arange(rows) % 10
        data = TensorData(inputs, targets)
    else:
        rows = 60_000

        class Endless(torch.utils.data.Dataset):
            targets = torch.arange(rows) % 10
            def __len__(self):
                return rows
            def __getitem__(self, index):  # as if read from a disk that holds more than memory
                return torch.full((3, 64, 64), index % 256, dtype=torch.uint8), int(self.targets[index])

        data = LoaderData(Endless())
    whole = torch.arange(rows)
    halves = [data.subset(whole[: rows // 2]), data.subset(whole[rows // 2 :])]
    every = tuple(range(10))
    experiences = [Experience(i, half, half.subset(torch.arange(1000)), classes=every) for i, half in enumerate(halves)]
    shape = (3, 32, 32) if kind == "tensors" else (3, 64, 64)
    stream = Stream(experiences, shape, 10, prepare=Prepare())
    model = linear(input_shape=shape, classes=10, seed=0)
    few = Experience(0, halves[0].subset(torch.arange(512)), classes=every)
    trainer = Trainer(er(capacity=200, size=64), batch_size=256, evaluate="none")
    trainer.fit(model, Stream([few], shape, 10, prepare=Prepare()))
    before = megabytes("VmRSS")
    Trainer(er(capacity=200, size=64), optimizer={"name": "SGD", "lr": 0.01}, batch_size=256).fit(model, stream)
    print(before, megabytes("VmHWM") - before)
"""


def grown(kind: str) -> tuple[float, float]:
    # glibc seldom gives aligned blocks of some KB out again, and may hold all that were freed: let each have own pages.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "8192"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), kind],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    before, more = map(float, done.stdout.split())
    return before, more


def test_a_gigabyte_of_images_trains_in_a_gigabyte_and_a_small_constant():
    before, more = grown("tensors")
    assert before > 1000
    assert more < 200


def test_what_does_not_fit_trains_through_the_loader_in_a_small_constant():
    _, more = grown("loader")  # 60,000 images of 12 KB: 737 MB, were they held
    assert more < 200
