"""Files that name keys to vary: grids, drawn settings, Hydra's spelling, and what is refused."""

import math

import pytest

from holdfast.config.compose import compose
from holdfast.config.search import Search, made, split_off
from holdfast.core.errors import ConfigError
from holdfast.runs.sweep import planned


def test_a_grid_is_every_combination_with_the_seeds_of_each_together():
    search = Search({"optimizer.lr": "choice(0.1,0.2)", "model.hidden": "choice([8],[16])"}, seeds=2)
    found = search.settings()
    assert len(found) == 8
    assert found[:3] == [
        ["optimizer.lr=0.1", "model.hidden=[8]", "seed=0"],
        ["optimizer.lr=0.1", "model.hidden=[8]", "seed=1"],
        ["optimizer.lr=0.1", "model.hidden=[16]", "seed=0"],
    ]


def test_what_is_typed_is_no_axis():
    search = Search({"optimizer.lr": "choice(0.1,0.2)", "trainer.epochs": "1,2"}, seeds=3)
    assert search.settings(["optimizer.lr", "seed"]) == [["trainer.epochs=1"], ["trainer.epochs=2"]]


def test_drawn_settings_are_different_and_the_same_for_the_same_seed():
    search = Search({"optimizer.lr": "interval(0.1,0.9)", "trainer.batch_size": "8,32"}, "random", trials=6, seed=4)
    one, other = search.settings(), search.settings()
    assert one == other
    assert len({tuple(texts[:2]) for texts in one}) == 6
    assert one != Search(search.params, "random", trials=6, seed=5).settings()
    for lr, size, seed in one:
        assert 0.1 <= float(lr.split("=")[1]) <= 0.9
        assert size in ("trainer.batch_size=8", "trainer.batch_size=32")
        assert seed == "seed=0"


def test_no_more_settings_are_drawn_than_there_are():
    assert len(Search({"trainer.batch_size": "8,32"}, "random", trials=9).settings()) == 2


def test_an_interval_with_a_logarithm_is_drawn_evenly_in_it():
    search = Search({"optimizer.lr": "tag(log, interval(0.0001, 1.0))"}, "random", trials=400)
    values = [float(texts[0].split("=")[1]) for texts in search.settings()]
    assert sum(value < 0.01 for value in values) / 400 == pytest.approx(0.5, abs=0.1)
    assert all(math.log(0.0001) <= math.log(value) + 1e-6 <= 1e-5 for value in values)


def test_whole_bounds_give_whole_numbers():
    values = Search({"trainer.epochs": "int(interval(1,5))"}, "random", trials=5).settings()
    assert {texts[0] for texts in values} <= {f"trainer.epochs={n}" for n in range(1, 6)}


def test_hydras_spelling_is_read():
    content = {
        "hydra": {
            "mode": "MULTIRUN",
            "sweeper": {
                "n_trials": 7,
                "direction": "maximize",
                "sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 3},
                "params": {"optimizer.lr": "interval(0.1,0.5)"},
            },
        },
        "optimized_metric": "test/acc/ave",
        "seed": 1,
    }
    rest, said = split_off(content, "a.yaml")
    assert rest == {"seed": 1}
    search = made(said)
    assert (search.method, search.trials, search.seed, search.metric) == ("random", 7, 3, "average_accuracy")
    basic = made(split_off({"hydra": {"sweeper": {"params": {"optimizer.lr": "0.1,0.2"}}}}, "a.yaml")[1])
    assert (basic.method, len(basic.settings())) == ("grid", 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"sweep": {"param": {}}}, "did you mean 'params'"),
        ({"sweep": {"params": {}}}, "sweep.params: is missing"),
        ({"sweep": {"params": {"seed": [1]}, "method": "tpe"}}, "Choose grid or random"),
        ({"sweep": {"params": {"seed": [1]}, "trials": 0}}, "sweep.trials"),
        ({"sweep": {"params": {"seed": [1]}, "metric": "average_acuracy"}}, "did you mean 'average_accuracy'"),
        ({"sweep": ["optimizer.lr"]}, "expected a mapping"),
        ({"hydra": {"sweeper": {"params": {}, "direction": "minimize"}}}, "follows from the metric"),
        ({"hydra": {"swepper": {}}}, "did you mean 'sweeper'"),
    ],
)
def test_a_mistake_is_refused(content, says):
    with pytest.raises(ConfigError, match=says):
        made(split_off(content, "a.yaml")[1])


@pytest.mark.parametrize(
    ("params", "method", "says"),
    [
        ({"optimizer.lr": "interval(0.1,1)"}, "grid", "has no grid"),
        ({"optimizer.lr": "interval(0.1"}, "random", "cannot read"),
        ({"optimizer.lr": "tag(log, interval(0, 1))"}, "random", "no logarithm"),
    ],
)
def test_axes_that_cannot_be_drawn_are_refused(params, method, says):
    with pytest.raises(ConfigError, match=says):
        Search(params, method).settings()


def files(folder, **content):
    for name, text in content.items():
        group, _, stem = name.partition("__")
        (folder / group).mkdir(exist_ok=True)
        (folder / group / f"{stem}.yaml").write_text(text)


def test_an_experiment_and_a_search_file_together_make_the_jobs(tmp_path):
    files(
        tmp_path,
        experiment__mine="stream: {validation: 0.2}\nmethod: er\nsweep: {params: {trainer.epochs: [1, 2]}}\n",
        hparams_search__lr="sweep: {params: {optimizer.lr: [0.1, 0.2]}, seeds: 2}\n",
    )
    found = planned(None, ["experiment=mine", "hparams_search=lr", "method=er,finetune"], [tmp_path])
    assert len(found) == 2 * 2 * 2 * 2
    assert {config["method"]["name"] for _, config in found} == {"er", "finetune"}
    assert {(config["trainer"]["epochs"], config["optimizer"]["lr"], config["seed"]) for _, config in found} == {
        (epochs, lr, seed) for epochs in (1, 2) for lr in (0.1, 0.2) for seed in (0, 1)
    }
    assert all(config["trainer"]["evaluate"] == "both" for _, config in found)


def test_a_key_typed_is_not_searched(tmp_path):
    files(tmp_path, hparams_search__lr="sweep: {params: {optimizer.lr: [0.1, 0.2]}}\nstream: {validation: 0.2}\n")
    [(_, config)] = planned(None, ["hparams_search=lr", "optimizer.lr=0.3"], [tmp_path])
    assert config["optimizer"]["lr"] == 0.3


def test_without_validation_data_nothing_can_be_chosen(tmp_path):
    files(tmp_path, hparams_search__lr="sweep: {params: {optimizer.lr: [0.1, 0.2]}}\n")
    with pytest.raises(ConfigError, match=r"stream\.validation=0\.1"):
        planned(None, ["hparams_search=lr"], [tmp_path])


def test_the_search_of_the_package_is_right():
    assert len(planned(None, ["experiment=digits", "hparams_search=learning_rate"])) == 20


def test_a_job_without_axes_has_no_search():
    assert compose(None, ["experiment=digits"]).search is None
