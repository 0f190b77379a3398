"""Lightning's names for the flags of a trainer."""

import pytest
import torch

from holdfast.compat.dialects import DIALECTS
from holdfast.config.build import resolve, trainer_arguments
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError


def job(*changes):
    return resolve(compose(None, ["experiment=digits", *changes], dialects=DIALECTS).config)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("trainer.max_epochs=7", "trainer.epochs", 7),
        ("trainer.max_steps=7", "trainer.iterations", 7),
        ("trainer.gradient_clip_val=0.5", "trainer.clip_norm", 0.5),
        ("trainer.gradient_clip_algorithm=value", "trainer.clip_by", "value"),
        ("trainer.accumulate_grad_batches=4", "trainer.accumulate", 4),
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches", 0.5),
        ("trainer.limit_test_batches=3", "trainer.limit_test_batches", 3),
        ("trainer.max_time='00:00:10:00'", "trainer.max_seconds", 600.0),
        ("trainer.max_time=90", "trainer.max_seconds", 90.0),
        ("trainer.deterministic=true", "trainer.deterministic", True),
        ("trainer.detect_anomaly=true", "trainer.detect_anomaly", True),
        ("trainer.precision=bf16", "trainer.precision", "bf16-mixed"),
        ("trainer.precision=32", "trainer.precision", "32-true"),
        ("+trainer.precision=64", "trainer.precision", "64-true"),
        ("trainer.devices=4", "trainer.devices", 4),
        ("trainer.devices='4'", "trainer.devices", 4),
        ("trainer.devices=auto", "trainer.devices", 1),
        ("trainer.strategy=ddp", "trainer.strategy", "ddp"),
        ("trainer.strategy=ddp_notebook", "trainer.strategy", "ddp_fork"),
        ("trainer.accelerator=gpu", "device", "cuda"),
        ("trainer.accelerator=auto", "device", "auto"),
        ("trainer.profiler=simple", "profiler", "simple"),
        ("trainer.compile=true", "trainer.capture", "compile"),
        ("trainer.log_every_n_steps=5", "trainer.log_every", 5),
        ("trainer.fast_dev_run=true", "trainer.limit_test_batches", 1),
    ],
)
def test_a_flag_of_lightning_means_one_of_ours(change, path, value):
    found = job(change)
    for part in path.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize("change", ["trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto"])
def test_one_process_is_what_a_run_is_unless_it_says_otherwise(change):
    assert job(change) == job()


def test_half_precision_is_what_sixteen_means_on_a_gpu():
    assert job("trainer.precision=16", "device=cuda")["trainer"]["precision"] == "16-mixed"
    with pytest.raises(ConfigError, match=r"trainer.precision: 16-mixed is for GPUs.*bf16-mixed"):
        job("trainer.precision=16", "device=cpu")


@pytest.mark.parametrize(("preset", "device", "devices"), [("ddp", "cuda", 4), ("ddp_sim", "cpu", 4)])
def test_the_presets_of_several_processes_are_those_of_arena(preset, device, devices):
    found = job(f"trainer={preset}", "trainer.devices=4")
    assert (found["device"], found["trainer"]["devices"], found["trainer"]["strategy"]) == (device, devices, "ddp")
    assert job(f"trainer={preset}")["trainer"]["devices"] == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("trainer.devices=-1", "Write trainer.devices=2"),
        ("trainer.devices=[0,1]", "CUDA_VISIBLE_DEVICES"),
        ("trainer.devices=0", "trainer.devices"),
        ("trainer.num_nodes=2", "processes of one machine"),
        ("trainer.devices=40", "batch_size=32 leaves some of 40 processes"),
        ("trainer.strategy=fsdp", "holds the whole model"),
        ("trainer.accelerator=tpu", "expected one of cpu, gpu"),
        ("trainer.precision=8", "expected 32, bf16, 16 or 64"),
        ("trainer.val_check_interval=0.25", "Leave it out"),
        ("trainer.max_time=soon", "DD:HH:MM:SS"),
        ("trainer.enable_progress_bar=false", "--quiet"),
        ("trainer.limit_train_batches=1.5", "fraction up to 1.0"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches"),
        ("trainer.accumulate=0", "trainer.accumulate"),
        ("trainer.patience=2", "holds no validation data"),
        ("trainer.max_epoch=3", "did you mean"),
    ],
)
def test_a_flag_without_a_meaning_is_refused_with_what_to_write(change, says):
    with pytest.raises(ConfigError, match=says):
        job(change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("trainer.per_experience.5.epochs=2", "no experience 5. The stream has 5"),
        ("trainer.per_experience.first.epochs=2", "names no experiences"),
        ("trainer.per_experience.0.epoch=2", "trainer.per_experience.0.epoch: .*did you mean 'epochs'"),
        ("trainer.per_experience.0.epochs=0", "trainer.per_experience.0.epochs"),
        ("trainer.per_experience.0.optimizer=SDG", "trainer.per_experience.0.optimizer.*did you mean 'SGD'"),
        ("trainer.per_experience.0={optimizer: {name: SGD, lr: -1.0}}", "trainer.per_experience.0.optimizer"),
        ("trainer.per_experience.0={epochs: 2, iterations: 3}", "both epochs and iterations"),
        ("trainer.per_experience.0.patience=2", "holds no validation data"),
        ("trainer.per_experience.0.augment={flap: true}", "flap"),
        ("trainer.per_experience=[{epochs: 2}]", "lists 1 experiences, and the stream has 5"),
    ],
)
def test_changes_of_an_experience_that_cannot_be_are_refused_with_their_path(change, says):
    with pytest.raises(ConfigError, match=says):
        job(change)


def test_changes_of_an_experience_reach_the_trainer_and_are_written_down_as_given():
    ranged = "{optimizer: Adam, scheduler: {name: StepLR, step_size: 1, every: step}}"
    found = job(f"trainer.per_experience={{1-: {ranged}}}", "trainer.per_experience.0.epochs=3")
    assert found == resolve(found)
    assert found["trainer"]["per_experience"]["0"] == {"epochs": 3}
    built = trainer_arguments(found["trainer"])["per_experience"]
    assert type(built["1-"]["optimizer"]([torch.nn.Parameter(torch.zeros(1))])) is torch.optim.Adam
    assert built["1-"]["scheduler_every"] == "step"
    listed = job("trainer.per_experience=[null, {epochs: 2}, null, {scheduler: null}, null]")
    assert trainer_arguments(listed["trainer"])["per_experience"][3] == {"scheduler": None, "scheduler_every": "epoch"}


def test_a_file_may_use_the_names_of_lightning(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("trainer: {max_epochs: 3, accelerator: gpu, gradient_clip_val: 1.0}\n")
    found = resolve(compose(file, ["trainer.epochs=5"], dialects=DIALECTS).config)
    assert (found["trainer"]["epochs"], found["device"], found["trainer"]["clip_norm"]) == (5, "cuda", 1.0)
