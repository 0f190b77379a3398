"""CLMixer's JSON files, as they stand on its page."""

import json
import re

import pytest

from holdfast.compat import clmixer
from holdfast.compat.clmixer_operations import KNOWN
from holdfast.compat.dialects import DIALECTS
from holdfast.config import kinds
from holdfast.config.build import build_method, build_model, build_stream, resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Stream
from holdfast.training import Trainer

OPTIMISATION = {
    "optimisation": {
        "lr": 0.001,
        "epochs": 1000,
        "optimizer": {"type": "adam", "weight_decay": 0.0005},
        "batch_size": 32,
        "device": "cuda",
    }
}
MODEL_AND_DATA = {
    "model": {"model_type": "dinov2_vits14", "hidden_size": 20},
    "data": {
        "dataset_name": "kth",
        "data_path": "path/to/kth",
        "n_experiments": 5,
        "backbone": "None",
        "scenario": "indus_cil",
    },
}
PLUGINS = {
    "plugins": [
        {
            "name": "RandomMemoryUpdaterOperation",
            "hyperparameters": {"cls_budget": 10},
            "function": "knowledge_retention",
        },
        {"name": "CrossEntropyOperation", "hyperparameters": {}, "function": "knowledge_incorporation"},
        {
            "name": "KnowledgeDistillationOperation",
            "hyperparameters": {"temperature": 2.0},
            "function": "knowledge_retention",
        },
        {
            "name": "FinetuneOperation",
            "hyperparameters": {
                "finetune_epochs": 100,
                "finetune_bs": 32,
                "finetune_lr": 0.001,
                "cls_budget": 15,
            },
            "function": "bias_mitigation",
        },
    ]
}


@pytest.fixture
def job(tmp_path):
    """A function from a file's content and changes to the job of ours and the notes."""

    def make(content, *changes):
        file = tmp_path / "clmixer.json"
        file.write_text(json.dumps(content))
        composition = compose(file, list(changes), dialects=DIALECTS)
        return resolve(composition.config), composition.notes

    return make


def test_the_optimisation_block_of_the_page(job):
    found, notes = job(OPTIMISATION)
    assert found["optimizer"]["name"] == "Adam"
    assert (found["optimizer"]["lr"], found["optimizer"]["weight_decay"]) == (0.001, 0.0005)
    assert (found["trainer"]["epochs"], found["trainer"]["batch_size"]) == (1000, 32)
    assert found["trainer"]["reset_optimizer"]
    assert found["device"] == "auto"
    assert any("'cuda' became 'auto'" in note for note in notes)


def test_the_model_and_data_block_of_the_page(job):
    found, _ = job(MODEL_AND_DATA, "data.data_path=images")
    assert found["model"]["architecture"] == "vit_small_patch14_dinov2"
    assert found["stream"]["name"] == "indus_cil"
    assert found["stream"]["experiences"] == 5
    assert found["stream"]["dataset"]["path"] == "images"


def test_the_plugins_block_of_the_page(job):
    found, notes = job(PLUGINS)
    operations = {one["name"]: one for one in found["method"]["operations"]}
    assert list(operations) == ["remember_exemplars", "merged_replay", "distillation", "balanced_finetune"]
    assert operations["remember_exemplars"]["per_class"] == 10
    assert operations["remember_exemplars"]["selection"] == "random"
    assert operations["distillation"]["temperature"] == 2.0
    finetune = operations["balanced_finetune"]
    assert [finetune[key] for key in ("epochs", "batch_size", "lr", "per_class")] == [100, 32, 0.001, 15]
    assert found["criterion"] == "cross_entropy"
    assert any("second softmax" in note for note in notes)


def test_a_whole_file_is_its_blocks_together(job):
    extra = {"seed": 31101994, "human_knowledge": {"nbrs_known_classes": 2, "classes_simmilary": []}}
    whole = {**OPTIMISATION, **MODEL_AND_DATA, **PLUGINS, **extra}
    found, notes = job(whole)
    assert found["seed"] == 31101994
    assert len(found["method"]["operations"]) == 4
    assert any("never reads it" in note for note in notes)


def test_images_lie_in_the_folder_data_unless_lists_say_where(job, tmp_path):
    (tmp_path / "kth" / "data").mkdir(parents=True)
    change = f"data.data_path={tmp_path / 'kth'}"
    assert job(MODEL_AND_DATA, change)[0]["stream"]["dataset"]["path"] == str(tmp_path / "kth" / "data")
    for name in ("train.txt", "test.txt"):
        (tmp_path / "kth" / name).write_text("data/a/1.png\n")
    assert job(MODEL_AND_DATA, change)[0]["stream"]["dataset"]["path"] == str(tmp_path / "kth")


def test_a_plugins_own_keys_can_be_changed_and_so_can_ours(job):
    found, _ = job(PLUGINS, "plugins.FinetuneOperation.finetune_epochs=3", "plugins.0.cls_budget=4", "trainer.epochs=2")
    operations = {one["name"]: one for one in found["method"]["operations"]}
    assert operations["balanced_finetune"]["epochs"] == 3
    assert operations["remember_exemplars"]["per_class"] == 4
    assert found["trainer"]["epochs"] == 2


@pytest.mark.parametrize("scenario", ["cil", "indus", "indus_cil"])
def test_every_scenario_is_a_stream(job, scenario):
    assert job(MODEL_AND_DATA, f"data.scenario={scenario}")[0]["stream"]["name"] == scenario


@pytest.mark.parametrize("backbone", ["resnet18", "dinov2_vits14", "dinov2_vitb14"])
def test_a_backbone_is_frozen_under_an_mlp(job, backbone):
    found, _ = job(MODEL_AND_DATA, f"data.backbone={backbone}", "model.model_type=mlp", "model.hidden_size=30")
    assert found["model"]["name"] == "frozen"
    assert found["model"]["hidden"] == [30]
    assert found["model"]["head"] == "plain_cosine"
    assert (found["model"]["activation"], found["model"]["dropout"]) == ("leaky_relu_0.2", 0.1)
    assert found["model"]["batch_norm"]


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        ("mlp_lora", "low_rank_mlp", {"rank": 1}),
        ("mlp_subspace", "subspace_mlp", {"dimension": 80, "rank_one": False}),
        ("mlp_subspace_lora", "subspace_mlp", {"dimension": 20, "rank_one": True}),
    ],
)
def test_the_research_models_are_perceptrons_that_learn_few_values(job, kind, name, arguments):
    found, notes = job({"model": {"model_type": kind, "hidden_size": 30, "lora": True}})
    assert {"name": name, "hidden": [30], **arguments}.items() <= found["model"].items()
    assert any("one of rank 1" in note for note in notes)
    framed, _ = job({"model": {"model_type": kind}, "data": {"data_path": "x", "backbone": "resnet18"}})
    assert (framed["model"]["name"], framed["model"]["hidden"]) == ("frozen", [20])
    layer = build_model({**framed["model"], "weights": "random"}, Stream([], (3, 32, 32), 4), 0).backbone[1]
    plain = build_model({**found["model"], "hidden": [20]}, Stream([], (512,), 4), 0).backbone[0]
    assert type(layer) is type(plain)
    assert {name: p.shape for name, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


def test_the_research_operations_keep_their_numbers(job):
    names = ("CrossEntropyProjectionOperation", "LossApproxOperation", "LossLandscapeOperation")
    for name, ours in zip(names, ("common_minimum", "loss_surrogate", "loss_surrogate")):
        found, notes = job({"plugins": [{"name": name, "hyperparameters": {"n": 70, "d": 3, "epochs": 5}}]})
        [operation] = found["method"]["operations"]
        assert (operation["name"], operation["points"], operation["dimensions"]) == (ours, 70, 3)
        assert any("epochs does nothing" in note for note in notes)


def test_a_duplicated_backbone_has_room_for_every_experience(job):
    content = {"plugins": [{"name": "DuplicateNetworkBackboneOperation"}]}
    assert job(content)[0]["method"]["operations"] == [{"name": "duplicate_backbone", "copies": 10}]
    found, _ = job({**content, "data": {"data_path": "x", "n_experiments": 23}})
    assert found["method"]["operations"] == [{"name": "duplicate_backbone", "copies": 23}]


def test_weight_alignment_comes_with_a_head_that_has_lengths(job):
    align = {"plugins": [{"name": "WeightAlignOperation", "hyperparameters": {}, "function": "bias_mitigation"}]}
    found, notes = job({**align, "model": {"model_type": "mlp", "hidden_size": 20}})
    assert found["model"]["head"] == "fixed"
    assert any("scales the new classes" in note for note in notes)


@pytest.mark.parametrize("name", KNOWN)
def test_every_operation_of_clmixer_is_translated(job, name):
    plugin = {
        "plugins": [{"name": name, "hyperparameters": dict(KNOWN[name].defaults), "function": KNOWN[name].function}]
    }
    found, notes = job(plugin)
    named = [one["name"] for one in found["method"].get("operations", [])]
    assert set(named) <= set(kinds.names("operations"))
    assert notes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**PLUGINS, "optimization": {}}, "did you mean 'optimisation'?"),
        ({"optimisation": {"learning_rate": 1}}, "unknown key 'learning_rate'"),
        ({"optimisation": {"optimizer": {"type": "adamm"}}}, "did you mean 'adam'?"),
        ({"optimisation": {"optimizer": {"type": "sgd", "momentum": 0.9}}}, "unknown key 'momentum'"),
        ({"data": {"scenario": "cil"}}, "data.data_path: is missing"),
        ({"data": {"data_path": "x", "scenario": "indus_cill"}}, "did you mean 'indus_cil'?"),
        ({"data": {"data_path": "x", "backbone": "dinov2_vits"}}, "unknown backbone"),
        ({"model": {"model_type": "mlpp"}}, "did you mean 'mlp'?"),
        ({"plugins": [{"name": "FinetuneOperatio"}]}, "did you mean 'FinetuneOperation'?"),
        (
            {"plugins": [{"name": "FinetuneOperation", "hyperparameters": {"epochs": 3}}]},
            "unknown hyperparameter 'epochs'",
        ),
        (
            {"plugins": [{"name": "FinetuneOperation", "hyperparameters": {"finetune_epochs": "3"}}]},
            "expected a number",
        ),
        ({"plugins": [{"name": "MSEOperation", "function": "bias"}]}, "unknown function"),
        ({"plugins": [{"name": "MSEOperation", "hyperparams": {}}]}, "unknown key 'hyperparams'"),
        ({"plugins": {"name": "MSEOperation"}}, "expected a list"),
        (
            {"plugins": [{"name": "DirichletUncertaintyLossOperation", "hyperparameters": {"regressor": "mae"}}]},
            "CLMixer has mse and bce",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_path_and_never_skipped(job, content, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        job(content)


def test_our_own_files_are_not_taken_for_clmixers():
    assert not clmixer.recognised({"model": {"name": "mlp"}, "method": "er"})
    assert clmixer.recognised({"model": {"model_type": "mlp"}})
    assert clmixer.recognised(PLUGINS)


@pytest.mark.parametrize("name", KNOWN)
def test_every_operation_of_clmixer_trains_without_task_labels(job, name):
    values = {**KNOWN[name].defaults, **({"n": 12} if "n" in KNOWN[name].defaults else {})}
    values |= {"finetune_epochs": 1} if "finetune_epochs" in values else {}
    plugins = [
        {"name": "RandomMemoryUpdaterOperation", "hyperparameters": {"cls_budget": 3}},
        {"name": name, "hyperparameters": values, "function": KNOWN[name].function},
    ]
    found, _ = job({"plugins": plugins, "model": {"model_type": "mlp", "hidden_size": 8}})
    stream = build_stream({**found["stream"], "experiences": 2}, 0)
    trainer = Trainer(build_method(found["method"]), batch_size=16, limit_train_batches=3, limit_test_batches=1)
    events = trainer.fit(build_model(found["model"], stream, 0), stream)
    assert [event["experience"] for event in events if event["event"] == "experience"] == [0, 1]
    assert all(event["loss"] is not None for event in events if event["event"] == "train")
