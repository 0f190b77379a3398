"""Every command in `docs/commands.md`, run: shortened to seconds."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import holdfast
from holdfast import cli
from holdfast.runs import run as single
from holdfast.runs.pool import Pool, RayPool
from holdfast.runs.worker import work

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
SOURCE = Path(holdfast.__file__).parents[1]
SHORT = ["trainer.epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1", "model.hidden=[8]"]
NOT_HERE = ("trainer=gpu", "trainer=mps", "trainer=ddp ", "synapse_cifar", "stinyimagenet")
"""What needs a device or a download: checked, not run."""

SMALL_IMAGES = ("scifar100", "noisy_cifar")
"""Experiments whose images are made up here."""

DOTS = {"name": "image_folder", "path": "dots/data", "size": 32, "crop": 4, "flip": True}


def commands():
    """The right column of every table: the command, and whether it is marked as slow."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = re.match(r"`(.+)`( ⏱)?$", cells[-1]) if len(cells) == 2 else None
        if line.startswith("|") and found:
            yield pytest.param(found[1], marks=[pytest.mark.slow] if found[2] else [], id=found[1])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a CLMixer file, images and a finished run called RUN; sweeps run in-process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_KNOWLEDGE", str(tmp_path / "searches.jsonl"))
    memory = {"name": "RandomMemoryUpdaterOperation", "hyperparameters": {"cls_budget": 3}}
    teacher = {"name": "KnowledgeDistillationOperation", "hyperparameters": {"temperature": 2.0}}
    content = {"plugins": [memory, teacher], "model": {"model_type": "mlp", "hidden_size": 20}}
    Path("clmixer.json").write_text(json.dumps(content))

    def run(self):
        for job in self.waiting:
            work(job.config, job.folder)
            job.state = "finished"

    monkeypatch.setattr(Pool, "run", run)
    monkeypatch.setattr(RayPool, "__init__", lambda self, jobs, *rest: setattr(self, "waiting", jobs))
    monkeypatch.setattr(RayPool, "run", run)
    return tmp_path


def images(folder, classes=5, each=10):
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in (f"class{number:02}" for number in range(classes)):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 255, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / "data" / name / f"{number}.png")


def shortened(words):
    """The command with what makes it a matter of seconds; it still says everything that the page says."""
    more = [change for change in SHORT if not any(word.split("=")[0] == change.split("=")[0] for word in words)]
    text = " ".join(words)
    if any(f"experiment={name}" in words for name in SMALL_IMAGES):
        more = [change for change in more if not change.startswith("model.hidden")]
        more += [f"stream.dataset={json.dumps(DOTS)}", "model.backbone={name:resnet18,width:2}"]
        more = [change for change in more if "model=resnet18_tasks" not in words or "backbone" not in change]
        more += ["model.width=2"] if "model=resnet18_tasks" in words else []
        words = [word for word in words if not word.startswith("trainer.limit_experiences")]
        more += ["trainer.limit_experiences=2", "trainer.batch_size=8", "references=[]"]
    if "synapse" in text or "arena_hat" in text or ("clmixer" in text and "-m" not in words):
        more = [change for change in more if not change.startswith("model.hidden")]
    if any(word.startswith("trainer.epochs=") and word not in SHORT for word in words):
        words = [word for word in words if not word.startswith("trainer.epochs=")]
    if "max_epochs" in text or "debug=" in text:
        more = [change for change in more if "epochs" not in change or "debug=" in text]
    if "synapse_mnist" in text:
        more += ["trainer.eval_batch_size=16", "trainer.limit_val_batches=1"]
    return [*words, *more, "-q"]


def call(words):
    result = CliRunner().invoke(cli.app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", list(commands()))
def test_the_command_of_the_page_works(command, here, monkeypatch):
    program, *words = shlex.split(command)
    if "-m" in words or "show" in words:  # the report of each single run is the slowest part, and not what is tested
        monkeypatch.setattr(single, "write_report", lambda folder: folder)
    if program == "python":
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words, "trainer.epochs=1", "references=[]"], env=environment, check=False
        )
        assert done.returncode == 0
        assert len(list(here.glob("multirun/*/*/*/run/metrics.json"))) == 2
        return
    assert program == "holdfast"
    if any(f"experiment={name}" in words for name in SMALL_IMAGES):
        images(here / "dots", classes=40, each=4)
    if "start_from=RUN" in words:
        assert call([*shortened(["run", *words[1:2]]), "-o", "RUN"]).exit_code == 0
    elif any("RUN" in word for word in words) or "show" in words:
        many = ["-m", "tags=[batch_size_exp]", "seed=0,1"] if "show" in words else ["-o", "RUN"]
        assert call(["run", "experiment=digits", *SHORT, "-q", *many]).exit_code == 0
    if "data.data_path=images" in words:
        images(here / "images")
        content = json.loads(Path("clmixer.json").read_text())
        content["data"] = {"data_path": "nowhere", "scenario": "cil", "n_experiments": 2}
        Path("clmixer.json").write_text(json.dumps(content))
    if any(part in command for part in NOT_HERE):
        result = call(["validate", *words[1:]])
        assert result.exit_code == 0, result.output
        assert result.output.rstrip().endswith("valid")
        return
    result = call(shortened(words) if words[0] == "run" and "--help" not in words else words)
    assert result.exit_code == 0, result.output
    if words[0] == "run" and "--help" not in words:
        folder = Path(result.stdout.strip().splitlines()[-1])
        assert (folder / "report.html").is_file()
    if words[0] == "predict":
        assert Path("predictions/predictions.csv").is_file()


def test_the_page_has_a_command_for_each_of_the_three_tools():
    text = PAGE.read_text(encoding="utf-8")
    for tool in ("CLMixer", "Continual Learning Arena", "Synapse"):
        assert f"## {tool}" in text
    assert len(list(commands())) > 35
