"""Classifier and regressor behind scikit-learn's and river's interfaces, with every method."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from holdfast import ContinualClassifier, ContinualRegressor, Method, methods
from holdfast.core.errors import ConfigError, DataError, UsageError
from holdfast.models import GrowingHead
from holdfast.operations import JoinedReplay, Remember


def blobs(labels: list[Any], rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.integers(0, len(labels), rows)
    values = np.array([hash(str(label)) % 7 for label in labels])
    return rng.normal(values[place][:, None] * np.array([[1.0, -1.0, 0.5]]), 0.2), np.array(labels)[place]


def test_the_classifier_learns_new_classes_call_by_call_and_keeps_the_old_ones() -> None:
    rng = np.random.default_rng(0)
    centres = {"ant": (0, 0), "bee": (4, 0), "cat": (0, 4), "dog": (4, 4)}

    def sample(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        y = rng.choice(names, 120)
        return np.array([centres[name] for name in y]) + rng.normal(0, 0.4, (120, 2)), y

    model = ContinualClassifier(hidden=(32,), epochs=40, random_state=1)
    for names in (["dog", "ant"], ["cat", "bee"]):
        assert model.partial_fit(*sample(names)) is model
    assert model.classes_.tolist() == ["ant", "bee", "cat", "dog"]
    x, y = sample(list(centres))
    assert model.score(x, y) > 0.95
    probabilities = model.predict_proba(x)
    assert probabilities.shape == (120, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    forgetful = ContinualClassifier(method=methods.finetune(), hidden=(32,), epochs=40, random_state=1)
    for names in (["dog", "ant"], ["cat", "bee"]):
        forgetful.partial_fit(*sample(names))
    assert forgetful.score(x, y) < 0.7


def test_river_style_code_can_use_the_classifier() -> None:
    model = ContinualClassifier(hidden=(8,), epochs=3, optimizer={"name": "Adam", "lr": 0.02})
    assert model.predict_one({"a": 1.0, "b": 2.0}) is None
    rng, right = np.random.default_rng(0), 0
    for step in range(80):
        x = {"b": rng.normal(), "a": rng.normal()}
        right += step >= 40 and model.predict_one(x) == (x["a"] > 0)
        model.learn_one(x, x["a"] > 0)
    assert right > 30


def test_parameters_are_those_of_the_constructor_and_clone() -> None:
    from sklearn.base import clone

    method = methods.er(capacity=50)
    model = ContinualClassifier(method=method, epochs=3)
    assert model.get_params()["epochs"] == 3
    assert clone(model).get_params()["method"].name == "er"
    assert model.set_params(batch_size=7).batch_size == 7
    x, y = blobs(["p", "q"])
    twins = [clone(model).fit(x, y) for _ in range(2)]
    assert np.array_equal(twins[0].predict_proba(x), twins[1].predict_proba(x))


# Every method ----------------------------------------------------------------------------------------------


def arriving(model: Any, calls: tuple[list[Any], ...] = (["p", "q"], ["r", "s"], ["t"]), rows: int = 24) -> Any:
    for number, labels in enumerate(calls):
        model.partial_fit(*blobs(labels, rows, seed=number))
    return model


FEW = ("agem", "bic", "er", "ewc", "finetune", "icarl", "lwf", "slda")
"""Methods of each kind that are tried here in the fast tests; and those that are refused, which takes no time."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in FEW or {"task", "stream"} & set(getattr(methods, name)().needs) else pytest.mark.slow,
        )
        for name in methods.__all__
    ],
)
def test_every_method_learns_new_classes_and_its_copies_go_on_or_is_refused_at_construction(name: str) -> None:
    method = getattr(methods, name)()
    if {"task", "stream"} & set(method.needs):
        for given in (method, name):
            with pytest.raises(ConfigError, match="needs"):
                ContinualClassifier(method=given)
        return
    model = arriving(ContinualClassifier(method=name, hidden=(6,), epochs=2, batch_size=8), (["p", "q"], ["r", "s"]))
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    x, y = blobs(["t", "p"], 24, seed=9)
    before = [each.predict_proba(x) for each in (model, *copies)]
    after = [each.partial_fit(x, y).predict_proba(x) for each in (model, *copies)]
    assert np.isfinite(after[0]).all()
    assert after[0].shape == (24, 5)
    for number in (1, 2):
        np.testing.assert_array_equal(before[number], before[0])
        np.testing.assert_array_equal(after[number], after[0])


@pytest.mark.parametrize("optimizer", ["Adam", {"name": "SGD", "lr": 0.05, "momentum": 0.9}])
def test_a_copy_leaves_the_original_alone_and_keeps_the_optimizers_moments(optimizer: Any) -> None:
    model = arriving(ContinualClassifier(method="der_plus_plus", hidden=(6,), epochs=3, optimizer=optimizer))
    x, y = blobs(["p", "u"], 24, seed=5)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    kept = model.predict_proba(x)
    other.partial_fit(x, y)
    np.testing.assert_array_equal(model.predict_proba(x), kept)
    np.testing.assert_array_equal(model.partial_fit(x, y).predict_proba(x), other.predict_proba(x))


# Labels, weights, parameters --------------------------------------------------------------------------------


def test_announced_classes_have_no_probability_until_they_are_seen() -> None:
    model = ContinualClassifier(hidden=(6,), epochs=2, method="der_plus_plus")
    x, y = blobs([3, 1])
    assert model.partial_fit(x, y, classes=[0, 1, 2, 3]).predict_proba(x)[:, [0, 2]].max() == 0
    assert model.partial_fit(*blobs([2, 0])).predict_proba(x).min() > 0
    assert model.classes_.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("first", "second"), [([0, 1], ["c", "d"]), (["c", "d"], [0, 1]), ([True, False], ["yes"])])
def test_numbers_and_words_as_labels_are_refused_before_anything_is_learnt(first: Any, second: Any) -> None:
    model = ContinualClassifier(hidden=(4,), epochs=1).partial_fit(*blobs(first))
    x = blobs(first)[0]
    before = model.predict_proba(x)
    with pytest.raises(DataError, match="Give all of them as one kind"):
        model.partial_fit(*blobs(second))
    np.testing.assert_array_equal(model.predict_proba(x), before)
    assert set(model.predict(x)) <= set(first)


def test_samples_without_weight_teach_nothing_and_heavy_ones_teach_more() -> None:
    x, y = blobs(["p", "q"], 40)
    rng = np.random.default_rng(0)
    wrong = rng.permutation(y)
    weight = np.concatenate([np.full(40, 2.0), np.zeros(40)])
    model, both = (ContinualClassifier(hidden=(6,), epochs=5) for _ in range(2))
    model.fit(x, y)
    both.fit(np.concatenate([x, x]), np.concatenate([y, wrong]), sample_weight=weight)
    np.testing.assert_array_equal(model.predict_proba(x), both.predict_proba(x))
    same, labels = np.zeros((40, 2)), np.array(["p", "q"] * 20)
    for heavy in ("p", "q"):
        found = ContinualClassifier(hidden=(6,), epochs=20).partial_fit(
            same, labels, sample_weight=np.where(labels == heavy, 5.0, 1.0)
        )
        assert found.predict(same[:1])[0] == heavy
    with pytest.raises(ConfigError, match="takes no sample_weight"):
        ContinualClassifier(method="er_ace").fit(x, y, sample_weight=np.arange(40))
    for bad in (np.full(40, -1.0), np.ones(3), np.full(40, np.nan), np.zeros(40)):
        with pytest.raises(ValueError, match="sample_weight"):
            ContinualClassifier().fit(x, y, sample_weight=bad)


def test_a_search_reaches_the_arguments_of_method_model_and_optimizer() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    x, y = blobs(["p", "q"])
    model = ContinualClassifier(method="er", model="mlp", optimizer="SGD", epochs=1)
    grid = {"method__capacity": [5, 9], "optimizer__lr": [0.1], "model__hidden": [[4]]}
    best = GridSearchCV(model, grid, cv=2).fit(x, y).best_estimator_
    assert best.method["capacity"] in (5, 9)
    assert best.continual_.model.backbone[0].out_features == 4
    assert best.continual_.optimizer.param_groups[0]["lr"] == 0.1
    assert clone(best).get_params()["method__capacity"] == best.method["capacity"]
    assert model.method == "er"  # the search changed its own copies
    published = ContinualClassifier(method=methods.ewc(strength=3.0)).set_params(method__strength=7.0)
    assert published.method.config()["strength"] == 7.0
    written = ContinualClassifier(method=Method(JoinedReplay(size=4), Remember(capacity=9)))
    assert written.get_params()["method__remember__capacity"] == 9
    written.set_params(method__remember__capacity=2, epochs=1).fit(x, y)
    assert len(written.continual_.learner.memory) == 2


def test_unknown_names_are_refused_with_the_nearest_right_one() -> None:
    x, y = blobs(["p", "q"])
    with pytest.raises(ValueError, match="did you mean 'capacity'"):
        ContinualClassifier(method="er").set_params(method__capacitty=5)
    with pytest.raises(ValueError, match="cannot be set"):
        ContinualClassifier(model=lambda features, seed: nn.Linear(features, 2)).set_params(model__hidden=[4])
    for wrong in ({"method": "err"}, {"optimizer": "Adan"}, {"model": "mpl"}):
        with pytest.raises(ConfigError, match="did you mean"):
            ContinualClassifier(**wrong).fit(x, y)
    for wrong in ({"method": 3}, {"optimizer": 3}, {"model": 3}, {"epochs": 0}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            ContinualClassifier(**wrong).fit(x, y)


def test_random_state_is_a_seed_a_generator_or_none() -> None:
    x, y = blobs(["p", "q"])

    def fitted(state: Any) -> np.ndarray:
        return ContinualClassifier(hidden=(5,), epochs=1, random_state=state).fit(x, y).predict_proba(x)

    assert np.array_equal(fitted(3), fitted(3))
    assert not np.array_equal(fitted(3), fitted(4))
    assert not np.array_equal(fitted(None), fitted(None))
    shared = np.random.RandomState(0)
    first, second = fitted(shared), fitted(shared)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, fitted(np.random.RandomState(0)))


# Models and data -------------------------------------------------------------------------------------------


def normed(features: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.body = nn.Sequential(nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU())
        net.head = GrowingHead(8)
    return net


@pytest.mark.parametrize("rows", [1, 2, 9, 17])
@pytest.mark.parametrize("name", ["si", "finetune", "ewc", "lwf"])
def test_a_last_batch_of_one_sample_joins_the_one_before_under_batch_norm(name: str, rows: int) -> None:
    model = ContinualClassifier(method=name, model=normed, epochs=2, batch_size=8)
    model.partial_fit(*blobs(["p", "q"], 16)).partial_fit(*blobs(["p", "r"], rows))
    assert np.isfinite(model.predict_proba(blobs(["p"])[0])).all()
    assert np.isfinite(copy.deepcopy(model).predict_proba(blobs(["p"])[0])).all()


def test_a_module_is_copied_and_one_without_outputs_for_a_new_class_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = ContinualClassifier(model=module, epochs=2).partial_fit(*blobs(["p", "q"])).partial_fit(*blobs(["r"]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(ConfigError, match="3 outputs"):
        model.partial_fit(*blobs(["s"]))
    assert len(pickle.loads(pickle.dumps(model)).partial_fit(*blobs(["p"])).classes_) == 3


@pytest.mark.parametrize("layout", ["grey", "first", "last"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_images_are_learnt_from_in_any_layout(layout: str, kind: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 40)
    images = (y[:, None, None] * 200 + rng.integers(0, 40, (40, 10, 9))).astype(kind)
    images = images / 255 if kind is np.float64 else images
    x = {"grey": images, "first": images[:, None].repeat(3, 1), "last": images[..., None].repeat(3, 3)}[layout]
    model = ContinualClassifier(hidden=(8,), epochs=10).partial_fit(x, y)
    assert model.score(x, y) == 1
    assert model.shape_in_ == (1 if layout == "grey" else 3, 10, 9)
    with pytest.raises(ValueError, match="samples of shape"):
        model.predict(x[:, :, :5] if layout == "last" else x[..., :5])


def test_training_that_diverged_is_said_and_not_predicted_from() -> None:
    x, y = blobs(["p", "q"])
    with pytest.raises((ConfigError, UsageError), match=r"diverged|finite"):
        ContinualClassifier(epochs=30, optimizer={"name": "SGD", "lr": 1e30}).fit(x * 1e6, y)


# River -----------------------------------------------------------------------------------------------------


def test_features_are_matched_by_name_and_others_are_refused() -> None:
    model = ContinualClassifier(hidden=(8,), epochs=3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a = rng.normal()
        model.learn_one({"b": rng.normal(), "a": a}, int(a > 0))
    assert model.predict_one({"a": 1.0, "b": 0.0}) == model.predict_one({"b": 0.0, "a": 1.0})
    probabilities = model.predict_proba_one({"a": 1.0, "b": 0.0})
    assert sum(probabilities.values()) == pytest.approx(1)
    for wrong in ({"a": 1.0, "0z": 0.0}, {"a": 1.0}, {"a": 1.0, "b": 0.0, "c": 1.0}):
        for call in (model.predict_one, lambda x: model.learn_one(x, 1)):
            with pytest.raises(DataError, match="was not trained on"):
                call(wrong)
    for wrong, said in (({"a": "red", "b": 1.0}, "'a' is 'red'"), ({"a": float("nan"), "b": 1.0}, "missing")):
        with pytest.raises(DataError, match=said):
            model.predict_one(wrong)
    assert copy.deepcopy(model).predict_one({"b": 0.0, "a": 1.0}) == model.predict_one({"a": 1.0, "b": 0.0})


def test_a_model_of_a_table_takes_single_samples_by_the_tables_names() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = blobs(["p", "q"])
    table = pandas.DataFrame(x, columns=["z", "a", "m"])
    model = ContinualClassifier(hidden=(8,), epochs=5).partial_fit(table, y)
    row = table.iloc[0].to_dict()
    assert model.predict_one(dict(sorted(row.items()))) == model.predict(table.iloc[:1])[0]
    with pytest.raises(DataError, match="by its name"):
        ContinualClassifier(epochs=1).partial_fit(x, y).predict_one(row)


# Numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.__all__)
def test_every_method_learns_numbers_or_is_refused_at_construction(name: str) -> None:
    method = getattr(methods, name)()
    if {"task", "stream", "classes"} & set(method.needs):
        with pytest.raises(ConfigError, match=r"needs|works with"):
            ContinualRegressor(method=name)
        return
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    model = ContinualRegressor(method=name, hidden=(6,), epochs=2, batch_size=16)
    model.partial_fit(x, x[:, 0]).partial_fit(x + 1, x[:, 0])
    other = copy.deepcopy(model)
    np.testing.assert_array_equal(model.partial_fit(x, x[:, 1]).predict(x), other.partial_fit(x, x[:, 1]).predict(x))
    assert np.isfinite(model.predict(x)).all()


def test_numbers_far_from_zero_are_learnt_and_several_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = np.stack([1e5 + 300 * x[:, 0], -0.01 * x[:, 1]], 1)
    model = ContinualRegressor(epochs=40, hidden=(32,)).partial_fit(x, y)
    assert model.score(x, y) > 0.95
    assert model.predict(x).shape == (400, 2)
    with pytest.raises(ValueError, match="1 numbers per sample"):
        model.partial_fit(x, y[:, 0])
    single = ContinualRegressor(epochs=2).fit(x, y[:, 0])
    assert single.predict(x).shape == (400,)
    assert ContinualRegressor().predict_one({"a": 1.0}) == 0.0
    assert single.set_params(optimizer__lr=0.01).optimizer == {"name": "Adam", "lr": 0.01}


# scikit-learn's checks -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: ContinualClassifier, lambda: ContinualRegressor])
def test_scikit_learns_own_checks_pass(make: Any) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    documented = {"check_sample_weight_equivalence_on_dense_data": "a weight of two is not a sample seen twice"}
    found = check_estimator(
        make()(hidden=(20,), epochs=15), on_skip=None, on_fail=None, expected_failed_checks=documented
    )
    failed = {entry["check_name"]: str(entry["exception"])[:200] for entry in found if entry["status"] == "failed"}
    assert not failed
    assert sum(entry["status"] == "passed" for entry in found) > 50
