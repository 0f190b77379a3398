"""What a search may try: axes from signatures, compositions from roles, methods as points, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from holdfast.compat.dialects import DIALECTS
from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.config.job import make_method
from holdfast.core.errors import ConfigError
from holdfast.core.method import conflicts
from holdfast.core.operation import ROLES
from holdfast.discovery.axes import Axis, written
from holdfast.discovery.command import planned
from holdfast.discovery.plan import Plan
from holdfast.discovery.proposals import FEW, Neighbour, Proposals
from holdfast.discovery.settings import made, parsed
from holdfast.discovery.space import SHORT, composed, only_fills, size_of
from holdfast.discovery.study import Book
from holdfast.discovery.trial import Entry

SMALL = ["trainer.epochs=1", "stream.experiences=3", "model.hidden=[8]", "warm_start=false"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.of(None, [*SMALL, "trials=4"])


class Draw:
    """A trial that takes what a generator says."""

    def __init__(self, seed: int) -> None:
        import random

        self.random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.random.choice(list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self.random.randint(low, high)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.random.uniform(low, high)


def test_every_range_of_an_operation_holds_its_default_and_only_what_its_signature_allows() -> None:
    base = validated({"references": []}).config
    sizes = Axis("memory.items", (20,))
    space = composed(base, roles={}, slots={}, sizes=sizes, parameters={}, experiences=2)
    for name, axes in space.operations.items():
        kind = kinds.find("operations", name)
        known = {parameter.name: parameter for parameter in kinds.configurable("operations", kind)}
        for axis in axes:
            parameter = known[axis.name.split(".", 1)[1]]
            if not parameter.required and parameter.default is not None:
                assert axis.holds(parameter.default), (axis.name, str(axis))
            for value in axis.choices or (axis.low, axis.high):
                size = size_of(kind, 20, 2) if kind.fills else {}
                kind(**size, **{parameter.name: int(value) if axis.whole else value})


def test_a_composition_has_at_most_the_operations_of_its_slots_and_a_memory_where_one_draws(plan: Plan) -> None:
    refused = 0
    for seed in range(20):
        try:
            params = plan.space.suggest(Draw(seed))
        except ConfigError:  # two operations that exclude each other
            refused += 1
            continue
        method = make_method(validated(plan.space.job(params)).block.method)
        assert not method.unfilled
        assert not conflicts(method)
        acting = [SHORT[one.role] for one in method if not only_fills(type(one))]
        assert acting.count("retention") <= 2
        assert all(acting.count(word) <= 1 for word in SHORT.values() if word != "retention")
    assert refused < 10


def test_the_slots_hold_every_operation_of_their_role_that_can_be_trained_here(plan: Plan) -> None:
    for role in ROLES:
        known = {name for name, kind in kinds.names("operations").items() if kind.role == role}
        held = {n for slot, names in plan.space.slots.items() if slot.split(".")[0] == SHORT[role] for n in names}
        assert known == held | (known & {*plan.space.left_out, *plan.space.fillers})
    assert "every" in plan.space.left_out["joint_data"] or "all experiences" in plan.space.left_out["joint_data"]
    assert "task labels" in plan.space.left_out["subnetworks"]


@pytest.mark.parametrize("name", ["er", "der_plus_plus", "icarl", "ewc", "finetune", "gem", "bic"])
def test_a_published_method_is_a_point_that_stands_for_its_own_operations(plan: Plan, name: str) -> None:
    params = plan.space.point(kinds.find("methods", name)())
    method = make_method(validated(plan.space.job(params)).block.method)
    wanted = {one.config()["name"]: one.config() for one in kinds.find("methods", name)()}
    found = {one.config()["name"]: one.config() for one in method}
    assert found.keys() == wanted.keys()
    for operation, arguments in wanted.items():
        differing = {key for key, value in arguments.items() if found[operation][key] != value}
        assert differing <= {"capacity", "per_class", "per_experience"}  # the memory is that of the search


def test_the_first_trials_are_the_literature_the_best_known_first(plan: Plan) -> None:
    names = [name for name, _ in plan.literature]
    assert names[:5] == ["nearest_class_mean", "slda", "fecam", "er", "der_plus_plus"]
    assert dict(plan.literature)["nearest_class_mean"]["nearest_class_mean.space"] == "inputs"
    assert "joint" not in names
    assert plan.space.chosen(dict(plan.literature)["fecam"]) == ["mahalanobis"]


def test_a_neighbour_is_one_step_away_and_can_be_made(plan: Plan) -> None:
    import random

    params = plan.space.point(kinds.find("methods", "er_ace")())
    changed = set()
    slots = list(plan.space.slots)
    for seed in range(40):
        draw = random.Random(seed)
        slot = draw.choice(slots) if seed % 2 else ""
        try:
            near = plan.space.suggest(Neighbour(params, slots, plan.space.defaults(), draw, slot))
        except ConfigError:  # the operation that it takes instead excludes another one
            continue
        axes = plan.space.axes()
        assert all(axes[name].holds(axes[name].value(value)) for name, value in near.items())
        filled = [name for name in slots if near.get(name) != params.get(name)]
        assert not filled or filled == [slot]
        changed |= {"slot"} if filled else {name for name, value in near.items() if value != params.get(name)}
    assert {"slot", "optimizer.lr", "replay.size"} <= changed


# What is proposed -----------------------------------------------------------------------------------------


def proposals(plan: Plan, tmp_path: Path) -> Proposals:
    return Proposals(Book(f"sqlite:///{tmp_path / 'study.db'}", plan.settings, plan.space))


def measured(number: int, params: dict[str, Any], value: float | None) -> Entry:
    """A composition that was tried, with its accuracy; None where it diverged."""
    state = "diverged" if value is None else "done"
    values = {} if value is None else {"average_accuracy": value}
    return Entry(number, state, f"key{number}", 2, params, "er", values)


def test_proposals_go_from_other_operations_to_better_numbers_of_the_leaders(plan: Plan, tmp_path: Path) -> None:
    asked = proposals(plan, tmp_path)
    points = dict(plan.literature)
    entries = [measured(0, points["er"], 0.5), measured(1, points["der_plus_plus"], 0.6)]
    leading = {asked.alike(points[name]) for name in ("er", "der_plus_plus", "finetune")}

    def share(progress: float) -> float:
        same = 0
        for _ in range(12):
            rate = {"optimizer.lr": 0.1 / (1 + len(entries))}
            entries.append(measured(len(entries), {**points["finetune"], **rate}, 0.1 + len(entries) / 1000))
            params, _, _ = asked.next(str, entries, progress) or ({}, "", {})
            same += asked.alike(params) in leading
        return same / 12

    assert share(0.0) < 0.5
    assert share(1.0) > 0.75


def test_the_numbers_of_a_composition_come_to_where_they_are_good(plan: Plan, tmp_path: Path) -> None:
    asked = proposals(plan, tmp_path)
    er = dict(plan.literature)["er"]

    def score(params: Mapping[str, Any]) -> float:  # best with a rate of 0.02; the default is 0.1
        return -abs(math.log10(params["optimizer.lr"] / 0.02)) if asked.alike(params) == asked.alike(er) else -9

    entries = [measured(0, er, score(er))]
    for number in range(1, 25):
        params, _, _ = asked.next(str, entries, 1.0) or ({}, "", {})
        entries.append(measured(number, params, score(params)))
    tried = [one for one in entries if asked.alike(one.params) == asked.alike(er)]
    assert len(tried) >= 2 * FEW
    assert max(score(one.params) for one in tried) > -0.1 > score(er)
    late = [score(one.params) for one in tried[-6:]]
    assert sorted(late)[3] > score(er)  # most of the last ones, which a model proposed


def test_what_changes_nothing_is_left_alone_and_what_does_is_tried(plan: Plan, tmp_path: Path) -> None:
    asked = proposals(plan, tmp_path)
    slda = dict(plan.literature)["slda"]
    slot = next(name for name in plan.space.slots if name.startswith("retention"))
    more = {**slda, f"{slot}.used": True, slot: "distillation", "optimizer.lr": 0.02}
    entries = [measured(0, slda, 0.9), measured(1, more, 0.9)]
    moved = set()
    for number in range(12):
        params, _, _ = asked.next(str, entries, 1.0) or ({}, "", {})
        assert params["optimizer.lr"] == slda["optimizer.lr"]
        assert not any(params[f"{name}.used"] for name in plan.space.slots if name.startswith("retention"))
        moved |= {name for name in slda if params.get(name) != slda[name]}
        entries.append(dataclasses.replace(entries[1], number=2 + number))
    assert {"streaming_lda.space", "streaming_lda.shrinkage"} & moved


def test_what_differs_in_nothing_that_matters_counts_once(plan: Plan, tmp_path: Path) -> None:
    book = proposals(plan, tmp_path).book
    slda, er = dict(plan.literature)["slda"], dict(plan.literature)["er"]
    entries = [measured(number, {**slda, "optimizer.lr": 0.1 / (1 + number)}, 0.9) for number in range(3)]
    entries.append(measured(3, er, 0.5))
    entries[2] = dataclasses.replace(entries[2], values={**entries[2].values, "worst_class": 0.3})
    assert book.repeated(entries) == {"key1"}
    assert book.best(entries, 9) == ["key0", "key2", "key3"]
    longer = [dataclasses.replace(one, number=9 + one.number, length=4) for one in entries[:2]]
    longer[1] = dataclasses.replace(longer[1], values={"average_accuracy": 0.95})  # what did nothing at first
    assert book.best([*entries, *longer], 9) == ["key1", "key0", "key2", "key3"]


def test_what_is_best_but_beyond_a_limit_is_tried_with_less(tmp_path: Path) -> None:
    plan = Plan.of(None, [*SMALL, "at_most.memory=100kB"])
    asked = proposals(plan, tmp_path)
    slda, er = dict(plan.literature)["slda"], dict(plan.literature)["er"]

    def tried(number: int, params: dict[str, Any], value: float, kept: float) -> Entry:
        one = measured(number, params, value)
        return dataclasses.replace(one, values={**one.values, "method_bytes_peak": kept})

    entries = [tried(0, er, 0.5, 1e4), tried(1, slda, 0.9, 1e6)]
    params, _, _ = asked.next(str, entries, 1.0) or ({}, "", {})
    assert params == {**slda, "streaming_lda.space": "features"}
    params, _, _ = asked.next(str, [*entries, tried(2, params, 0.6, 1e4)], 1.0) or ({}, "", {})
    assert params["streaming_lda.space"] == "features"  # that leads now


def test_what_diverged_is_tried_once_more_with_a_smaller_learning_rate(plan: Plan, tmp_path: Path) -> None:
    asked = proposals(plan, tmp_path)
    points = dict(plan.literature)
    entries = [measured(0, points["er"], 0.5), measured(1, points["der_plus_plus"], None)]
    params, key, _ = asked.next(str, entries, 0.9) or ({}, "", {})
    assert params == {**points["der_plus_plus"], "optimizer.lr": pytest.approx(0.02)}
    entries.append(dataclasses.replace(measured(2, params, None), key=key))
    assert all((asked.next(str, entries, 1.0) or ({}, "", {}))[0] != params for _ in range(3))


def test_published_methods_like_the_leader_come_first_when_their_turn_comes(plan: Plan, tmp_path: Path) -> None:
    asked = proposals(plan, tmp_path)
    points = dict(plan.literature)
    left = [points["lwf"], points["mas"], points["er_ace"]]
    assert asked.nearest(left, [measured(0, points["er"], 0.5), measured(1, points["finetune"], 0.2)]) == 2
    assert asked.nearest(left, []) == 0


def test_a_composition_is_swept_over_what_its_operations_declare() -> None:
    plan = Plan.of(
        None,
        [
            *SMALL,
            "method={operations: [{name: fisher_penalty, strength: 5}, {name: joined_replay},"
            " {name: remember, capacity: 50}]}",
        ],
        sweep=True,
    )
    axes = plan.space.axes()
    assert (axes["method.operations.0.strength"].low, axes["method.operations.0.strength"].high) == (0.05, 500)
    assert "method.operations.1.size" in axes
    assert not any(name.endswith("capacity") for name in axes)
    job = plan.space.job({**plan.space.usual(), "method.operations.0.strength": 7.0})
    assert job["method"]["operations"][0]["strength"] == 7.0


def test_a_plan_that_was_written_down_is_the_same_plan(plan: Plan) -> None:
    again = Plan.loaded(plan.plain())
    assert again.space == plan.space
    assert dataclasses.asdict(again.settings) == dataclasses.asdict(plan.settings)


def test_a_search_that_is_free_to_take_the_largest_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="free to take the largest memory"):
        made({"memory": [50, 200]})
    with pytest.raises(ConfigError, match="free to take the largest memory"):
        made({"parameters": {"method.capacity": {"low": 10, "high": 100}}})
    assert made({"memory": [50, 200], "objectives": "accuracy,memory"}).objectives[1] == "method_bytes_peak"
    assert made({"memory": [50, 200], "at_most": {"memory": "20kB"}}).at_most == {"method_bytes_peak": 20000.0}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"objectives": "acuracy"}, "did you mean 'accuracy'"),
        ({"protocol": "first"}, "protocol: unknown protocol 'first'; did you mean 'first-k'"),
        ({"at_most": {"memory": -3}}, "at_most.memory: got -3"),
        ({"protocol": "transfer"}, "Name it: transfer="),
        ({"protocol": "validation", "k": 3}, "k: is for protocol=first-k"),
        ({"trials": 0}, "trials: got 0"),
        ({"budget": "soon"}, 'budget: got "soon"'),
        ({"slots": {"memory": 1}}, "unknown role 'memory'"),
        ({"operations": {"bias": ["replay"]}}, "'replay' is for retention"),
        ({"operations": {"bias": ["weight_aling"]}}, "operations.bias: unknown operation 'weight_aling'; did you mean"),
        ({"parameters": {"replay.size": {"low": 4, "high": 1}}}, "Give the smaller number as low"),
        ({"trails": 3}, "did you mean 'trials'"),
        ({"seed": 1000}, "for final runs"),
        ({"warm_start": "maybe"}, 'warm_start: got "maybe", expected true or false'),
        ({"methods": 3}, "methods: got 3"),
        ({"protocol": "transfer", "transfer": "digit"}, "transfer: unknown dataset 'digit'; did you mean 'digits'"),
        ({"at_most": {"memory": "."}}, 'at_most.memory: got "."'),
    ],
)
def test_wrong_settings_are_refused_by_name(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        made(said)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("parameters.replay.size=[-1,2]", "parameters.replay.size: `replay` got size=-1"),
        ("parameters.replay.sizes=[1,2]", "parameters.replay.sizes: did you mean 'replay.size'"),
        ("parameters.optimizer.lr=[-1,2]", "SGD refuses lr=-1"),
        ("parameters.foo.bar=[1,2]", "unknown key 'foo'"),
        ("slots.uncertainty=9", "slots.uncertainty: got 9, and there"),
    ],
)
def test_values_that_nothing_can_have_are_refused_before_anything_is_trained(words: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Plan.of(None, [*SMALL, words])


def test_a_limit_on_time_is_shared_out_over_the_stream() -> None:
    settings = made({"at_most": {"time": "10s", "memory": "1kB"}})
    assert settings.over({"train_seconds": 4.0, "method_bytes_peak": 800.0}, 0.5)["train_seconds"] < 0
    assert settings.over({"train_seconds": 6.0, "method_bytes_peak": 800.0}, 0.5)["train_seconds"] > 0
    assert settings.over({"train_seconds": 6.0, "method_bytes_peak": 800.0}, 0.5)["method_bytes_peak"] < 0


def test_words_are_settings_of_the_search_or_changes_of_the_job() -> None:
    said, rest, _ = parsed(None, ["k=2", "at_most.memory=20kB", "stream.experiences=3", "slots.bias=0"])
    assert said == {"k": 2, "at_most": {"memory": "20kB"}, "slots": {"bias": 0}}
    assert rest == ["stream.experiences=3"]


def test_a_space_file_narrows_the_space_and_says_what_else_varies(tmp_path: Any) -> None:
    file = tmp_path / "space.json"
    file.write_text(
        '{"operations": {"retention": ["replay"]}, "slots": {"bias": 0, "incorporation": 0, "representation": 0, '
        '"uncertainty": 0, "retention": 1}, "parameters": {"replay.size": [8, 16], "trainer.batch_size": [16, 32]}, '
        '"methods": [], "job": {"trainer": {"epochs": 1}, "model": {"name": "mlp", "hidden": [8]}}}'
    )
    plan = Plan.of(str(file), ["trials=2", "warm_start=false"])
    assert plan.space.slots == {"retention": ("replay",)}
    assert plan.space.axes()["replay.size"].choices == (8, 16)
    assert [axis.name for axis in plan.space.common] == ["trainer.batch_size", "optimizer.lr"]
    assert (plan.base["model"]["hidden"], plan.base["trainer"]["epochs"]) == ([8], 1)


CLMIXER: dict[str, Any] = {
    "optimisation": {
        "lr": [0.001, 0.01],
        "epochs": [1, 600],
        "optimizer": {"type": ["adam", "sgd"], "weight_decay": 0.0005},
        "batch_size": 32,
    },
    "model": {"model_type": ["mlp", "identity"], "hidden_size": [20, 40]},
    "data": {"dataset_name": "dummy", "n_experiments": 4, "backbone": "None", "scenario": "cil"},
    "plugins": [
        [{"name": "CrossEntropyOperation"}, {"name": "MSEOperation"}],
        [{"name": "RandomMemoryUpdaterOperation", "hyperparameters": {"cls_budget": [0, 10, 20]}}, None],
        [{"name": "KnowledgeDistillationOperation", "hyperparameters": {"temperature": [2.0, 4.0]}}, None],
        [None, {"name": "WeightAlignOperation"}],
    ],
    "seed": 0,
}
"""A file of CLMixer's whose lists are what its grid would run through."""


def of_clmixer(tmp_path: Path, *words: str, **changes: Any) -> Plan:
    file = tmp_path / "clmixer.json"
    file.write_text(json.dumps({**CLMIXER, **changes}))
    return planned(str(file), [*words, "warm_start=false"], (), DIALECTS, trials=4)


def test_the_lists_of_a_clmixer_file_are_the_space_and_its_plain_values_stay(tmp_path: Path) -> None:
    plan = of_clmixer(tmp_path, "at_most.memory=20kB", "optimisation.batch_size=16,32")
    axes = {name: axis for name, axis in plan.space.axes().items() if not name.endswith(".used")}
    kinds_of_model = [(one["name"], one.get("hidden")) for one in axes.pop("model").choices]
    assert kinds_of_model == [("mlp", [20]), ("mlp", [40]), ("linear", None)]
    assert [one["name"] for one in axes.pop("optimizer").choices] == ["Adam", "SGD"]
    assert {name: axis.choices for name, axis in axes.items()} == {
        "optimizer.lr": (0.001, 0.01),
        "trainer.epochs": (1, 600),
        "trainer.batch_size": (16, 32),
        "incorporation": ("cross_entropy", "one_hot_error"),
        "retention.1": ("distillation", "merged_replay"),
        "retention.2": ("distillation", "merged_replay"),
        "memory": ("remember_exemplars",),
        "remember_exemplars.per_class": (10, 20),
        "distillation.temperature": (2.0, 4.0),
    }
    said = " ".join(plan.notes)
    assert "cls_budget of 0 is a composition without it" in said
    assert "WeightAlignOperation scales a linear head" in said
    assert "test data may end nothing in a search" in said  # CLMixer stops early by them
    assert (plan.base["trainer"]["monitor_on"], plan.base["stream"]["validation"]) == ("validation", 0.2)
    draws = [plan.space.suggest(Draw(seed)) for seed in range(30)]
    jobs = [plan.trial_job(params) for params in draws]
    assert {job["optimizer"]["name"] for job in jobs} == {"Adam", "SGD"}
    for job, params in zip(jobs, draws, strict=True):  # none has what another one put into a choice that they share
        assert job["optimizer"]["lr"] == params["optimizer.lr"]
        for block in job["method"]["operations"]:
            assert block["name"] != "distillation" or (block["adaptive"], block["form"]) == (True, "divergence")
            assert block["name"] != "remember_exemplars" or block["capacity"] is None


def test_a_clmixer_file_without_lists_is_the_first_point_among_clmixers_operations(tmp_path: Path) -> None:
    plain = [{"name": "MSEOperation"}, {"name": "NCMMemoryUpdaterOperation", "hyperparameters": {"cls_budget": 7}}]
    one = {"optimisation": {"lr": 0.01}, "model": {"model_type": "mlp", "hidden_size": 8}}
    plan = of_clmixer(tmp_path, **one, plugins=plain)
    [(origin, params)] = plan.literature
    method = plan.trial_job(params)["method"]["operations"]
    assert origin == "as configured"
    assert [block["name"] for block in method] == ["one_hot_error", "merged_replay", "remember_exemplars"]
    assert (method[2]["per_class"], method[2]["selection"]) == (7, "herding")
    assert {"distillation", "pooled_distillation", "freeze_backbone"} < set(plan.space.slots["retention.1"])
    assert "loss_surrogate" not in plan.space.operations
    assert "LossApproxOperation" in " ".join(plan.notes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {**CLMIXER["data"], "scenario": ["cil", "indus"]}}, "data.scenario: got a list of 2.*one stream"),
        ({"seed": [1, 2]}, "seed: got a list.*final_seeds"),
        ({"optimisation": {"lr": []}}, "optimisation.lr: got an empty list"),
        ({"optimisation": {"lr": [0.1, "fast"]}}, 'optimisation.lr: got "fast"'),
        ({"plugins": [[{"name": "MSEOperatoin"}]]}, "plugins.0.*did you mean 'MSEOperation'"),
        ({}, "remember_exemplars.per_class: this search is free to take the largest memory"),
    ],
)
def test_a_clmixer_file_that_a_search_cannot_take_is_refused_by_its_own_keys(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        of_clmixer(tmp_path, **changes)


def test_what_a_user_writes_for_an_axis_can_be_a_choice_a_range_or_hydras_grammar() -> None:
    assert written("a", "choice(1,2)").choices == (1, 2)
    assert written("a", "range(1,4)").choices == (1, 2, 3)
    assert written("a", "tag(log,interval(0.01,1))") == Axis("a", (), 0.01, 1, True, False)
    blocks = written("model", ["mlp", {"name": "mlp", "hidden": [4]}])
    assert blocks.value(blocks.labels[1]) == {"name": "mlp", "hidden": [4]}
    with pytest.raises(ConfigError, match=r"parameters\.a"):
        written("a", {"low": 1})
