"""One run in processes that somebody else started, as `torchrun` and SLURM do."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from holdfast.config.build import resolve
from holdfast.config.compose import load
from holdfast.core.errors import ConfigError
from holdfast.runs.run import run
from holdfast.runs.sweep import sweep
from holdfast.training.precision import first, launched

JOB = ["experiment=digits", "method=er", "trainer.epochs=2", "references=[finetune]"]


def as_torchrun_does(words, machines):
    """The command in two processes, on one machine or on two; what each printed, and their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        node, local = (rank, 0) if machines == 2 else (0, rank)
        about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank}
        about |= {"NODE_RANK": node, "LOCAL_RANK": local, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{key: str(value) for key, value in about.items()}}
        command = [sys.executable, "-m", "holdfast", *words]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    printed = [process.communicate(timeout=240) for process in processes]
    return printed, [process.returncode for process in processes]


def weights(folder):
    return torch.load(folder / "checkpoints" / "model.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "change"), [(1, "trainer.devices=2"), (2, "trainer.num_nodes=2")])
def test_started_on_every_machine_one_run_is_made_with_the_weights_of_our_own_processes(tmp_path, machines, change):
    pytest.importorskip("lightning")
    words = ["run", *JOB, change, "--out", str(tmp_path / "theirs"), "--quiet"]
    printed, codes = as_torchrun_does(words, machines)
    assert codes == [0, 0], printed
    assert [out for out, _ in printed] == [f"{tmp_path / 'theirs'}\n", ""]
    own = run(resolve(load(None, [*JOB, "trainer.devices=2"])), tmp_path / "own", quiet=True)
    for part in ("", "references/finetune"):
        theirs, ours = weights(tmp_path / "theirs" / part), weights(own / part)
        assert all(torch.equal(theirs[name], value) for name, value in ours.items())
        assert json.loads((tmp_path / "theirs" / part / "run.json").read_text())["state"] == "finished"
    printed, codes = as_torchrun_does(["resume", str(tmp_path / "theirs"), "--quiet"], machines)
    assert codes == [0, 0], printed


@pytest.mark.slow
def test_where_the_first_process_fails_the_others_end_with_a_sentence(tmp_path):
    pytest.importorskip("lightning")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    words = ["run", *JOB, "trainer.devices=2", "--out", str(tmp_path / "there")]
    printed, codes = as_torchrun_does(words, 1)
    assert all(codes)
    assert "Choose another" in printed[0][1]
    assert "Traceback" not in printed[0][1] + printed[1][1]
    assert "the first process ended early" in printed[1][1]


def test_what_such_processes_cannot_share_is_refused_before_they_are_connected(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched()
    assert not first()
    job = ["experiment=digits", "trainer.devices=2"]
    with pytest.raises(ConfigError, match="independent trains a model for each experience"):
        run(resolve(load(None, [*job, "references=[independent]"])), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="-m starts processes of its own"):
        sweep(None, [*job, "seed=0,1"], out=tmp_path / "sweep")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"make 2 processes.*WORLD_SIZE=4"):
        run(resolve(load(None, job)), tmp_path / "run", quiet=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=1 of WORLD_SIZE=2"):
        run(resolve(load(None, ["experiment=digits", "trainer.num_nodes=2"])), tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())
