"""CLMixer's JSON files, as they stand on its page."""

import json
import re

import pytest

from holdfast.config import clmixer, namespaces
from holdfast.config.build import resolve
from holdfast.config.clmixer_operations import KNOWN
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError

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
        composition = compose(file, list(changes))
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
    assert found["model"]["head"] == "cosine"


def test_weight_alignment_comes_with_a_head_that_has_lengths(job):
    align = {"plugins": [{"name": "WeightAlignOperation", "hyperparameters": {}, "function": "bias_mitigation"}]}
    found, notes = job({**align, "model": {"model_type": "mlp", "hidden_size": 20}})
    assert found["model"]["head"] == "fixed"
    assert any("scales the new classes" in note for note in notes)


@pytest.mark.parametrize("name", KNOWN)
def test_every_operation_of_clmixer_is_translated_or_refused_in_a_sentence(job, name):
    plugin = {
        "plugins": [{"name": name, "hyperparameters": dict(KNOWN[name].defaults), "function": KNOWN[name].function}]
    }
    if KNOWN[name].made is None:
        with pytest.raises(ConfigError, match=r"plugins\.0\.name: .* has no equivalent"):
            job(plugin)
        return
    found, notes = job(plugin)
    named = [one["name"] for one in found["method"].get("operations", [])]
    assert set(named) <= set(namespaces.names("operations"))
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
        ({"model": {"model_type": "mlp_lora"}}, "research code"),
        ({"model": {"model_type": "mlp", "lora": True}}, "model.lora"),
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
