"""The entry for Hydra's own launchers: its `-m` makes the jobs, and ours says what each is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parents[1]
SMALL = ["trainer.epochs=1", "trainer.limit_train_batches=2", "model.hidden=[8]", "references=[]"]


def launched(tmp_path, *words):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "holdfast.compat.hydra_main", *words]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_hydras_basic_launcher_makes_a_run_of_each_job(tmp_path):
    done = launched(tmp_path, "-m", "hydra/launcher=basic", "seed=1,2", *SMALL)
    assert done.returncode == 0, done.stderr
    seeds = [json.loads(path.read_text())["seed"] for path in sorted(tmp_path.glob("multirun/*/*/*/run/config.json"))]
    assert seeds == [1, 2]


@pytest.mark.slow
def test_a_search_file_is_left_to_our_own_command(tmp_path):
    done = launched(tmp_path, "hparams_search=learning_rate", *SMALL)
    assert done.returncode != 0
    assert "holdfast run -m" in done.stderr
    assert not list(tmp_path.glob("outputs/*/*/run"))
