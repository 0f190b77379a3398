"""Modules of the release before can be imported under their old names, with a sentence that says the new one."""

import importlib
import re
import subprocess
import sys

import pytest

from holdfast.compat.moved import MOVED

SAMPLES = [
    "config.cross:cross_checks",
    "config.describe:describe",
    "config.files:read",
    "config.layers:merged",
    "config.load:load",
    "config.make:make_method",
    "config.namespaces:find",
    "config.plain:as_plain",
    "config.sweeps:expand",
    "core.backward:backward",
    "core.digests:module_digest",
    "experiments.checkpoints:CheckpointFolder",
    "experiments.compare:summarise",
    "experiments.find:found_runs",
    "experiments.folder:new_folder",
    "experiments.folder:write_json",
    "experiments.keys:job_key",
    "experiments.journal:Journal",
    "experiments.report:write_report",
    "experiments.run:resume",
    "experiments.run:run",
    "experiments.sweep:sweep",
    "experiments.tensors:load_tensors",
    "memory.generators:on_cpu",
    "memory.reservoir:Reservoir",
    "memory.selection:select_herding",
    "models.heads.task:TaskHead",
    "models.resnet:resnet18",
    "operations.exemplar_memory:ExemplarMemory",
    "operations.fisher:fisher_diagonal",
    "operations.layers:Layer",
    "operations.per_sample:supported_layers",
    "operations.twin:Twin",
    "streams.prepare:Prepare",
    "streams.task_dict:TaskDict",
    "streams.union:UnionData",
    "training.agreement:union_over_ranks",
    "training.blocks:ContinualLearner",
    "training.capture:join_steps",
    "training.given:checked_data",
    "training.masked:masked_accuracy",
    "training.streaming:StreamTrainer",
    "training.window:Window",
]
"""Names of the release before, each by its module."""


def fresh(name):
    """The module of before, imported anew."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_of_before_is_there_and_says_its_new_name(old):
    with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is {MOVED[old][0]}")):
        module = fresh(old)
    assert importlib.util.find_spec(MOVED[old][0]) is not None
    assert dir(module)
    with pytest.raises(AttributeError, match="no 'nothing' any more"):
        module.nothing  # noqa: B018


def test_no_module_of_before_hides_one_of_today():
    for old, new in MOVED.items():
        assert old not in {one for names in MOVED.values() for one in names}
        for one in new:
            importlib.import_module(one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_name_of_before_is_what_it_is_today(sample):
    module, name = sample.split(":")
    old = fresh(f"holdfast.{module}")
    assert any(
        getattr(importlib.import_module(new), name, None) is getattr(old, name) for new in MOVED[f"holdfast.{module}"]
    )


@pytest.mark.slow
def test_hydras_entry_point_still_runs_under_its_former_name():
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "holdfast.experiments.hydra_main", "--cfg", "job"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "method" in done.stdout
    assert "holdfast.experiments.hydra_main is holdfast.compat.hydra_main now" in done.stderr
