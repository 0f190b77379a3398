"""Changes that stand for several values."""

import pytest

from holdfast.config.compose import compose
from holdfast.config.search import expand
from holdfast.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1,2,3", ["1", "2", "3"]),
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("method=choice(er,ewc)", ["er", "ewc"]),
        ("model.hidden=[5],[6,7]", ["[5]", "[6,7]"]),
        ("optimizer.lr=0.1", ["0.1"]),
        ("tags=[a,b]", ["[a,b]"]),
    ],
)
def test_a_change_stands_for_its_values(text, values):
    key = text.split("=")[0]
    assert expand([text]) == [[f"{key}={value}"] for value in values]


def test_every_combination_comes_once_and_the_last_varies_fastest():
    found = expand(["method=er,ewc", "trainer.epochs=1", "seed=0,1"])
    assert found == [
        [f"method={method}", "trainer.epochs=1", f"seed={seed}"] for method in ("er", "ewc") for seed in (0, 1)
    ]


def test_glob_takes_every_choice_of_a_group():
    found = [texts[0] for texts in expand(["experiment=glob(synapse*)"])]
    assert found == ["experiment=synapse_cifar10", "experiment=synapse_cifar100", "experiment=synapse_mnist"]
    assert len(expand(["debug=glob(*,exclude=[f*])"])) == 4


def test_a_glob_that_fits_nothing_is_refused():
    with pytest.raises(ConfigError, match="nothing in the group"):
        expand(["experiment=glob(zzz*)"])


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match="cannot read"):
        expand(["seed=range(1"])


@pytest.mark.parametrize("change", ["sweep.trials=3", "hydra.sweeper.n_trials=3"])
def test_the_number_of_trials_can_be_typed(change):
    search = compose(None, ["hparams_search=learning_rate", change]).search
    assert (search.trials, search.method) == (3, "random")
    assert search.params == compose(None, ["hparams_search=learning_rate"]).search.params
    with pytest.raises(ConfigError, match=r"sweep\.params: is missing"):
        compose(None, [change])
