"""Continual Learning Arena's keys, on the command line and in files: each means something here, or says what does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.compat.arena_keys import ALGORITHMS, enforced
from holdfast.compat.dialects import DIALECTS
from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError


def job(*changes: str, path: Path | None = None) -> dict[str, Any]:
    return resolve(compose(path, ["references=[]", *changes], dialects=DIALECTS).config)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("data.batch_size=64", "trainer.batch_size", 64),
        ("data.validation_percentage=0.2", "stream.validation", 0.2),
        ("test=false", "trainer.evaluate", "none"),
        ("test=true", "trainer.evaluate", "test"),
        ("train=true", "seed", 0),
        ("ckpt_path=null", "seed", 0),
        ("logger=csv", "loggers", []),
        ("logger=[csv,tensorboard]", "loggers", [{"name": "tensorboard"}]),
        ("callbacks=default", "trainer.patience", None),
        ("train_tasks=3", "trainer.limit_experiences", 3),
        ("train_tasks=[1,2]", "trainer.limit_experiences", 2),
        ("eval_after_tasks=[1,3]", "trainer.evaluate", "test"),
        ("global_seed=7", "seed", 7),
        ("expr_name=first", "experiment_name", "first"),
        ("cl_paradigm=TIL", "stream.paradigm", "task"),
        ("cl_algorithm=DERpp", "method.name", "der_plus_plus"),
        ("pipeline=CL_MAIN_EXPR", "seed", 0),
        ("extras.enforce_tags=true", "tags", []),
    ],
)
def test_a_key_of_arenas_means_something_here(change: str, path: str, value: Any) -> None:
    found: Any = job(change)
    for part in path.split("."):
        found = found[part]
    if path == "loggers" and found:
        found = [{"name": one["name"]} for one in found]
    assert found == value


def test_patience_of_a_callback_is_the_trainers() -> None:
    found = job("callbacks.early_stopping.patience=4", "stream.validation=0.1")
    assert found["trainer"]["patience"] == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train=false", "holdfast eval RUN"),
        ("ckpt_path=logs/a.ckpt", "holdfast resume logs/a.ckpt"),
        ("logger=aim", 'logger: got "aim"'),
        ("callbacks=swa", "trainer.patience=5"),
        ("callbacks.model_checkpoint.save_top_k=2", "every run does it"),
        ("train_tasks=[2,5]", "train_tasks: got [2, 5]"),
        ("eval_after_tasks=0", "eval_after_tasks: got 0"),
        ("cl_paradigm=XIL", "expected TIL, CIL or DIL"),
        ("cl_algorithm=DERppp", "did you mean 'DERpp'?"),
        ("pipeline=CL_FULL_EXPR", "--references joint,independent,random"),
        ("cl_algorithm=er", "method=NAME"),
        ("pipeline=CUL_MAIN_EXPR", "unlearning is not built"),
        ("pipeline=CL_MAIN_EXP", "did you mean 'CL_MAIN_EXPR'?"),
        ("unlearning_requests={2:[1]}", "unlearning is not built"),
        ("trainer.tpu_cores=8", "TPUs are not supported"),
        ("data.num_workers=4", "stream.dataset.workers=4"),
        ("cl_dataset=permuted_mnist", "stream=permuted_mnist"),
        ("trainer.val_check_interval=0.5", "once an epoch"),
    ],
)
def test_a_key_that_means_nothing_here_says_what_does(change: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        job(change)


@pytest.mark.parametrize("name", ALGORITHMS.values())
def test_every_algorithm_of_arenas_is_a_method_here(name: str) -> None:
    assert name in kinds.names("methods")


def test_a_file_with_arenas_keys_is_a_job(tmp_path: Path) -> None:
    file = tmp_path / "index.yaml"
    file.write_text(
        "pipeline: CL_MAIN_EXPR\nexpr_name: mine\nglobal_seed: 4\ntrain_tasks: 2\ntest: false\n"
        "callbacks: {early_stopping: {patience: 3}}\ntrainer: {max_epochs: 2}\nstream: {name: split, validation: 0.1}\n"
    )
    found = job(path=file)
    assert (found["experiment_name"], found["seed"]) == ("mine", 4)
    trainer = found["trainer"]
    assert [trainer[key] for key in ("limit_experiences", "evaluate", "patience", "epochs")] == [2, "none", 3, 2]


def test_a_multirun_that_must_have_tags_is_refused_without() -> None:
    assert enforced(["seed=0,1"]) == ["seed=0,1"]
    assert enforced(["seed=0,1", "extras.enforce_tags=true", "tags=[a]"]) == ["seed=0,1", "tags=[a]"]
    assert enforced(["tags=[]", "extras.enforce_tags=false"]) == ["tags=[]"]
    for changes in (["extras.enforce_tags=true"], ["extras.enforce_tags=true", "tags=[]"], ["tags=[]"], ["+tags=null"]):
        with pytest.raises(ConfigError, match="needs tags"):
            enforced(["seed=0,1", *changes])
