"""Lightning's names for the flags of a trainer."""

import pytest

from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError


def job(*changes):
    return resolve(compose(None, ["experiment=digits", *changes]).config)


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
        ("+trainer.precision=16", "trainer.precision", "bfloat16"),
        ("trainer.precision=32-true", "trainer.precision", "float32"),
        ("trainer.accelerator=gpu", "device", "cuda"),
        ("trainer.accelerator=auto", "device", "auto"),
        ("trainer.profiler=simple", "profiler", "simple"),
        ("trainer.compile=true", "compile", True),
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
def test_one_process_is_what_a_run_is(change):
    assert job(change) == job()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("trainer.devices=4", "one process on one device"),
        ("trainer.strategy=ddp", "one process on one device"),
        ("trainer.accelerator=tpu", "expected one of cpu, gpu"),
        ("trainer.precision=8", "expected 32, bf16"),
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


def test_a_file_may_use_the_names_of_lightning(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("trainer: {max_epochs: 3, accelerator: gpu, gradient_clip_val: 1.0}\n")
    found = resolve(compose(file, ["trainer.epochs=5"]).config)
    assert (found["trainer"]["epochs"], found["device"], found["trainer"]["clip_norm"]) == (5, "cuda", 1.0)
