"""One source for several processes: each reads its share, all make as many steps, and nothing is seen twice or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.core.errors import ConfigError
from holdfast.core.ranks import barrier, distributed, joined, local_rank, mean_of, rank_count, rank_number, say
from holdfast.sources import InStep
from holdfast.sources.toys import Toy8

SOURCE = Path(holdfast.__file__).parents[1]


def test_alone_every_helper_does_as_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    with joined() as (number, count):
        assert (number, count, rank_number(), rank_count(), local_rank()) == (0, 1, 0, 1, 0)
        barrier()
        say("a", 1)
        net = nn.Linear(2, 2)
        assert distributed(net) is net
        assert mean_of(torch.tensor(2.5)) == 2.5
    assert capsys.readouterr().out == "a 1\n"
    assert not torch.distributed.is_initialized()


def test_alone_a_source_in_step_gives_its_rows_in_batches_of_the_size_that_was_asked_for() -> None:
    rows = [batch.inputs for batch in Toy8(npoints=64, steps=2, batch_size=24).batches()]
    source = InStep(Toy8(npoints=64, steps=2, batch_size=24), batch_size=10, split=True)
    found = [batch.inputs for batch in source.batches()]
    assert [len(one) for one in found] == [10] * 12 + [8]
    assert torch.equal(torch.cat(found), torch.cat(rows))
    with pytest.raises(ConfigError, match="at least 1"):
        InStep(source, 0)


WRITER = """
    import json, sys
    import numpy as np
    import openpmd_api as io

    parameters = {"OpenTimeoutSecs": "120", "RendezvousReaderCount": "2", "QueueLimit": "1", "QueueFullPolicy": "Block"}
    told = {"iteration_encoding": "variable_based", "adios2": {"engine": {"parameters": parameters}}}
    series = io.Series(sys.argv[1], io.Access.create_linear, json.dumps(told))
    for number, chunks in enumerate([(4, 3, 5), (6,), (2, 2, 2, 1), (7, 1)]):
        iteration, rows, start = series.snapshots()[number], sum(chunks), 0
        component = iteration.particles["e"]["momentum"]["x"]
        component.reset_dataset(io.Dataset(np.dtype("float32"), [rows]))
        for length in chunks:
            values = np.arange(start, start + length, dtype=np.float32) + 100 * number
            component.store_chunk(values, [start], [length])
            start += length
        iteration.close()
    series.close()
"""

READER = """
    import json, sys
    import torch
    from holdfast import Continual, methods, models
    from holdfast.core.ranks import distributed, joined, mean_of
    from holdfast.sources import InStep, OpenPMD

    torch.set_num_threads(1)
    with joined() as (rank, ranks):
        source = OpenPMD(
            sys.argv[1], ["particles/e/momentum/x"], standardise=False, timeout=120,
            rank=rank, ranks=ranks, distribution="chunks", batch_size=4,
        )
        model = distributed(models.autoencoder(input_shape=(1,), classes=1, hidden=[4], latent=1, seed=0))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loss_of = torch.nn.functional.mse_loss
        cl = Continual(model, methods.er(capacity=20, size=4), optimizer, criterion=loss_of, seed=0)
        rows, sizes, losses = [], [], []
        for batch in InStep(source, batch_size=4).batches():
            x = batch.inputs / 100
            loss = loss_of(model(x), x)
            optimizer.zero_grad()
            cl.backward(loss, x, inputs=x)
            optimizer.step()
            rows += batch.inputs.flatten().tolist()
            sizes.append(len(x))
            losses.append(mean_of(loss))
        weights = torch.cat([value.flatten() for value in model.state_dict().values()]).tolist()
        memory = (cl.learner.memory.all()["inputs"] * 100).round().flatten().tolist()
        found = {"rows": rows, "sizes": sizes, "losses": losses, "weights": weights, "memory": memory}
        open(f"{sys.argv[2]}/{rank}.json", "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_gloo_processes_see_every_chunk_of_an_sst_stream_exactly_once(tmp_path: Path) -> None:
    pytest.importorskip("openpmd_api", reason="openPMD-api is not installed (the extra `stream` brings it)")
    for name, text in (("writer", WRITER), ("reader", READER)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    series = str(tmp_path / "run.sst")
    writer = subprocess.Popen([sys.executable, str(tmp_path / "writer.py"), series], env=environment)
    try:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "reader.py")]
        done = subprocess.run(
            [sys.executable, *words, series, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert writer.wait(30) == 0
    finally:
        writer.kill()
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    written = [100.0 * number + row for number, rows in enumerate((12, 6, 7, 8)) for row in range(rows)]
    seen: list[Any] = one["rows"] + other["rows"]
    last = [row for row in one["rows"] if row in other["rows"]]
    assert len(last) == len(written) % 2  # a last row that two cannot share is given to both
    assert sorted(seen) == sorted(written + last)
    assert one["sizes"] == other["sizes"]
    assert one["losses"] == pytest.approx(other["losses"])  # averaged
    assert one["weights"] == pytest.approx(other["weights"])
    assert set(one["memory"]) <= set(one["rows"])  # each remembers what it saw itself
    assert set(one["memory"]) != set(other["memory"])
