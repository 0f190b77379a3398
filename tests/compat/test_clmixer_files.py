"""CLMixer's files: templates are accepted with every key, and no mutation of a file is a traceback or goes unsaid."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.compat.clmixer import translated
from holdfast.compat.clmixer_operations import KNOWN, OLD_NAMES, WITHOUT_EFFECT
from holdfast.compat.clmixer_values import Translation
from holdfast.compat.dialects import DIALECTS
from holdfast.config.build import build_dataset, build_stream, resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError

TEMPLATES: dict[str, dict[str, Any]] = {
    **{name: {} for name in KNOWN},
    "RandomMemoryUpdaterOperation": {"cls_budget": 10},
    "NCMMemoryUpdaterOperation": {"cls_budget": 10},
    "KnowledgeDistillationOperation": {"temperature": 2.0},
    "FinetuneOperation": {"finetune_epochs": 100, "finetune_bs": 32, "finetune_lr": 0.001, "cls_budget": 15},
    "BICOperation": {"bic_epochs": 2, "bic_lr": 0.1, "bic_wd": 0.0, "bic_bs": 32, "bic_decay": 0.1},
    "DirichletUncertaintyLossOperation": {"kl_annealing_step": 150, "regressor": "mse"},
    "DirichletKLLossOperation": {"kl_annealing_step": 150},
    "CrossEntropyProjectionOperation": {"n": 1000, "d": 2, "sampling_epochs": 10},
    "LossApproxOperation": {
        "approximators": [],
        "current_task_loss_dataset": {"weights": [], "losses": []},
        "n": 10000,
    },
    "LossLandscapeOperation": {
        "approximators": [],
        "current_task_loss_dataset": [],
        "n": 10000,
        "d": 2,
        "epochs": 100,
        "bs": 32,
        "lr": 0.001,
    },
}
"""Hyperparameters as CLMixer's own templates have them, or its code reads them."""


def template(name: str, hyperparameters: dict[str, Any] | None = None) -> dict[str, Any]:
    given = TEMPLATES[name] if hyperparameters is None else hyperparameters
    return {"name": name, "hyperparameters": copy.deepcopy(given), "function": KNOWN[name].function}


def whole(*names: str, **data: Any) -> dict[str, Any]:
    """A file as CLMixer's generator writes them."""
    return {
        "optimisation": {
            "lr": 0.001,
            "epochs": 100,
            "optimizer": {"type": "adam", "weight_decay": 0.0005},
            "batch_size": 32,
            "device": "cuda",
        },
        "model": {"model_type": "mlp", "hidden_size": 20, "lora": False},
        "data": {
            "dataset_name": "kth",
            "data_path": "path/to/kth",
            "n_experiments": 5,
            "backbone": "dinov2_vits14",
            "scenario": "indus_cil",
            **data,
        },
        "plugins": [template(name) for name in names],
        "human_knowledge": {"nbrs_known_classes": 0, "classes_simmilary": []},
        "seed": 31101994,
    }


BASES = (
    whole("RandomMemoryUpdaterOperation", "CrossEntropyOperation", "KnowledgeDistillationOperation"),
    whole("CrossEntropyOperation", "FinetuneOperation", "DirichletUncertaintyLossOperation", backbone="None"),
    whole("MSEOperation", "NCMMemoryUpdaterOperation", "PodLossOperation", "BICOperation", scenario="cil"),
    whole("WeightedCrossEntropyOperation", "LossLandscapeOperation", "FreezeNetworkBackboneOperation"),
    whole("CrossEntropyProjectionOperation", "DirichletKLLossOperation", dataset_name="dummy", backbone="None"),
    whole("CrossEntropyOperation", "MIRMemoryUpdaterOperation", "WeightAlignOperation", backbone="resnet18"),
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inside = [leaf for key, part in items for leaf in leaves(part, (*path, str(key)))]
    yield from inside or [(path, value)]


def at(job: dict[str, Any], path: str) -> Any:
    here: Any = job
    for part in path.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return here


def unsaid(content: dict[str, Any], made: Translation) -> list[str]:
    """Values of a file that are neither kept, the same, where `kept` says, nor named in a note."""
    told = {one.path.split(" ")[0] for one in made.told}
    found = []
    for path, value in leaves(content):
        where = ".".join(path)
        if any(where == one or (where.startswith(f"{one}.") and "plugins" not in one) for one in told):
            continue
        if value == {} and any(one.startswith(f"{where}.") for one in told):
            continue
        ours = [key for key, theirs in made.kept.items() if theirs == where]
        if path[0] == "plugins":
            known = ("name", "function") if len(path) > 2 else ()
            about = f"plugins.{path[1]}" if len(path) > 1 else ""
            if about and path[-1] in known and (ours or about in made.kept.values()):
                continue
            if path[-1] == "name" and any(one.startswith(f"{about}.") for one in told):  # keeps nothing, as is said
                continue
            if about and f"{about}.hyperparameters.cls_budget" in told:  # of 0: the operation does nothing, as is said
                continue
            if value in ({}, None) and where.endswith("hyperparameters"):
                continue
            if where in ("plugins",) and value == []:
                continue
            if any(where.startswith(one) for one in told if one.startswith("plugins") and "hyperparameters." in one):
                continue
        kept = [at(made.job, key) for key in ours]
        if isinstance(value, bool) or not isinstance(value, int | float):
            if kept or (value in (None, "None", False) and path[0] in ("data", "model")):
                continue
        elif any(one == value or one == [value] for one in kept):
            continue
        found.append(f"{where}={value!r} (kept as {dict(zip(ours, kept, strict=True))})")
    for key in NEEDED:
        section, *inner = key.split(".")
        here: Any = content.get(section)
        missing = section not in content
        for part in inner:
            if missing or not isinstance(here, dict):
                break
            missing, here = part not in here, here.get(part)
        if missing and not any(key == one or key.startswith(f"{one}.") for one in told):
            found.append(f"{key} is missing")
    return found


NEEDED = (
    *("optimisation.lr", "optimisation.epochs", "optimisation.batch_size", "optimisation.optimizer.type"),
    *("optimisation.optimizer.weight_decay", "data.n_experiments", "data.scenario", "data.backbone"),
    *("model.model_type", "plugins", "seed"),
)
"""Keys of CLMixer's files that have a meaning of ours where they are missing."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_made_by_an_operations_own_template_is_accepted_and_keeps_every_key(name: str) -> None:
    content = whole(name) if KNOWN[name].loss else whole("CrossEntropyOperation", name)
    made = translated(content)
    assert unsaid(content, made) == []
    resolve(made.job)
    without = copy.deepcopy(content)
    del without["plugins"][-1]["hyperparameters"]
    made = translated(without)
    missing = [key for key in KNOWN[name].defaults if key not in KNOWN[name].idle]
    said = [one.text for one in made.told if one.path == f"plugins.{len(content['plugins']) - 1}.hyperparameters"]
    assert all(any(key in text for text in said) for key in missing)


# Mutations -------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, -1, 0, 1, 2.5, 3.0, 1e300, -0.001, 10**30, True, False, "", "3", "abc", "None", "kth\n"),
    *([], [1], {}, {"a": 1}, [[]], {"type": "sgd"}, "adam", "cil", "indus", "resnet18", "mlp", "identity", "cpu"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in items for place in places(part, (*path, key)))]


def mutated(number: int) -> dict[str, Any]:
    """A file with one to three changes; the same for the same number."""
    draw = random.Random(number)
    content = copy.deepcopy(draw.choice(BASES))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice([place for place in places(content) if place])
        here: Any = content
        for part in path[:-1]:
            here = here[part]
        kind = draw.choice(("value", "value", "value", "drop", "key", "twice", "more", "operation"))
        if kind == "drop":
            del here[path[-1]]
        elif kind == "key" and isinstance(here, dict):
            here[str(path[-1]) + draw.choice(("s", "_", "x"))] = here.pop(path[-1])
        elif kind == "twice" and isinstance(here, list):
            here.append(copy.deepcopy(here[path[-1]]))
        elif kind == "more" and isinstance(here, dict):
            here[draw.choice(("lr", "epochs", "loss_coeff", "as_clmixer", "note", "seed"))] = draw.choice(VALUES)
        elif kind == "operation" and isinstance(content.get("plugins"), list):
            content["plugins"].append(template(draw.choice(list(KNOWN))))
        else:
            here[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    return content


def assembled(number: int) -> dict[str, Any]:
    """A whole file with one to four operations, and every other value drawn from what files have, or could have."""
    draw = random.Random(number)
    names = draw.sample(list(KNOWN), draw.choice((1, 2, 2, 3, 3, 4)))
    data = {
        "dataset_name": draw.choice(("kth", "magnetic", "mvtec", "dagm", "easy", "nouvel_op", "nouvelop", "dummy")),
        "data_path": draw.choice(("path/to/kth", "/data/with a space", ".", "../x")),
        "n_experiments": draw.choice((1, 2, 3, 5, 10, 5.0)),
        "backbone": draw.choice(("None", None, "resnet18", "dinov2_vits14", "dinov2_vitg14")),
        "scenario": draw.choice(("cil", "indus", "indus_cil")),
    }
    content = whole(*names, **data)
    kind = draw.choice(("mlp", "mlp", "mlp_lora", "mlp_subspace", "mlp_subspace_lora", "identity", "resnet18"))
    sizes = (20, 5, 256, 16.0) if "mlp" in kind else (-1, 20, None, "None")
    content["model"] = {"model_type": kind, "hidden_size": draw.choice(sizes), "lora": draw.choice((True, False, None))}
    optimisation = content["optimisation"]
    optimisation |= {"lr": draw.choice((0.001, 1e-4, 0.1, 1)), "epochs": draw.choice((1, 25, 500, 1000, 10000, 2.0))}
    optimisation |= {"batch_size": draw.choice((2, 16, 512)), "device": draw.choice(("cuda", "cuda:0", "cpu", None))}
    optimisation["optimizer"] = {"type": draw.choice(("adam", "sgd")), "weight_decay": draw.choice((0, 0.0, 0.0005))}
    content["seed"] = draw.choice((31101994, 0, None))
    old = {theirs: name for name, theirs in OLD_NAMES.items()}
    for one in content["plugins"]:
        hyper = one["hyperparameters"]
        if draw.random() < 0.2 and one["name"] in old:
            one["name"] = old[one["name"]]
        if "temperature" in hyper:
            hyper["temperature"] = draw.choice((2, 0.5, 2.0))
        if "n" in hyper:
            values = {"bs": (32, 128), "lr": (0.001, 1e-4), "sampling_epochs": (20, 100.0), "epochs": (20, 1000)}
            hyper |= {key: draw.choice(of) for key, of in values.items() if draw.random() < 0.5}
            hyper["n"] = draw.choice((10, 100.0, 1e6))
        for key in list(hyper):
            if draw.random() < 0.1:
                hyper.update({key: None}) if draw.random() < 0.3 else hyper.pop(key)
        if draw.random() < 0.1:
            one["hyperparameters"] = draw.choice((None, {}))
        if draw.random() < 0.1:
            one["function"] = draw.choice(("knowledge_retention", "bias_mitigation", "uncertainty_reduction"))
    if draw.random() < 0.1:
        content["plugins"].insert(0, {"name": draw.choice(list(WITHOUT_EFFECT)), "hyperparameters": {}})
    if draw.random() < 0.15:
        del content[draw.choice(("seed", "model", "human_knowledge", "optimisation"))]
    return content


WORDS = re.compile(r"\b(optimisation|model|data|plugins|human_knowledge|seed)\b|unknown key|the key '")


def judged(content: dict[str, Any]) -> str:
    """What is wrong with how a file was taken; empty where it was refused in its words, or all is said."""
    try:
        made = translated(content, "file.json")
    except ConfigError as error:
        text = str(error)
        if not text.startswith("file.json: ") or not WORDS.search(text):
            return f"names no key of the file: {text}"
        return f"names our path: {text}" if re.search(r"method\.operations|trainer\.|stream\.", text) else ""
    try:
        resolve(made.job)
    except ConfigError as error:
        return f"the job is refused, the file was not: {error}"
    return "; ".join(unsaid(content, made))


@pytest.mark.parametrize("numbers", [range(30), range(30, 60)])
def test_some_mutated_files_are_refused_by_their_own_keys_or_change_nothing_unsaid(numbers: range) -> None:
    assert {number: fault for number in numbers if (fault := judged(mutated(number)))} == {}
    assert {number: fault for number in numbers if (fault := judged(assembled(number)))} == {}


@pytest.mark.slow
def test_no_mutated_file_is_a_traceback_or_changed_without_a_note() -> None:
    files = [make(number) for make in (mutated, assembled) for number in range(600)]
    faults = {json.dumps(content): fault for content in files if (fault := judged(content))}
    assert faults == {}, "\n".join(f"{fault}\n   {content}" for content, fault in faults.items())


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_operations_old_name_means_what_it_is_called_today(old: str) -> None:
    today = OLD_NAMES[old]
    content = whole(today) if KNOWN[today].loss else whole("CrossEntropyOperation", today)
    renamed = copy.deepcopy(content)
    renamed["plugins"][-1]["name"] = old
    assert translated(renamed).job == translated(content).job
    assert any(f"{old} is what CLMixer calls {today} today" in note for note in translated(renamed).notes)


def test_changes_of_plugins_that_are_not_there_are_refused_in_the_files_words(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(BASES[0]))
    for change in ("plugins.9.cls_budget=3", "plugins.0.name.x=3", "data.scenario.x=2", "plugins.0.cls_budget=-4"):
        with pytest.raises(ConfigError, match=re.escape(change.split("=")[0].split(".cls")[0].split(".x")[0])):
            compose(file, [change], dialects=DIALECTS)


@pytest.mark.parametrize(
    ("section", "key", "advice"),
    [
        ("data", "batch_size", "it belongs in optimisation."),
        ("model", "weight_decay", "it belongs in optimisation.optimizer."),
        ("optimisation", "seed", "it belongs in the outermost object."),
        ("model", "model", "did you mean 'model_type'?"),
        ("", "data.scenario", "write 'scenario' inside an object 'data'."),
        ("", "trainer", "it is a key of Holdfast's own files: write trainer=... or trainer.KEY=..."),
        ("plugins", "cls_budget", 'write it inside "hyperparameters": {"cls_budget": ...}.'),
    ],
)
def test_a_key_in_another_place_is_refused_with_where_it_belongs(section: str, key: str, advice: str) -> None:
    content = copy.deepcopy(BASES[0])
    here = content[section] if section else content
    (here[0] if isinstance(here, list) else here)[key] = 3
    with pytest.raises(ConfigError) as caught:
        translated(content, "file.json")
    assert advice in str(caught.value)


# What single keys mean -------------------------------------------------------------------------------------


def test_notes_are_sorted_by_how_much_they_matter_and_equal_ones_stand_once() -> None:
    names = ("CrossEntropyOperation", "CrossEntropyOperation", "RandomMemoryUpdaterOperation")
    notes = translated(whole(*names, backbone="None")).notes
    second = [note for note in notes if "second softmax" in note]
    assert len(second) == 1
    assert second[0].startswith("plugins.0 (CrossEntropyOperation), plugins.1 (CrossEntropyOperation): ")
    assert notes.index(second[0]) < next(i for i, note in enumerate(notes) if note.startswith("human_knowledge"))


@pytest.mark.parametrize(("size", "units"), [("50", 50), (16.7, 16), (" 8 ", 8), (20, 20), (20.0, 20)])
def test_the_hidden_size_is_made_a_whole_number_as_in_clmixer(size: Any, units: int) -> None:
    content = whole("CrossEntropyOperation")
    content["model"]["hidden_size"] = size
    made = translated(content)
    assert made.job["model"]["hidden"] == [units]
    noted = [note for note in made.notes if note.startswith("model.hidden_size: ")]
    assert noted == (
        [] if size == units else [f"model.hidden_size: {json.dumps(size)} is taken as {units}, as CLMixer does."]
    )


def test_a_path_that_no_file_system_takes_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^file\.json: data\.data_path: got .*, which is no path here: "):
        translated(whole("CrossEntropyOperation", data_path="x" * 5000), "file.json")


def test_the_seed_draws_the_scenario_too(tmp_path: Path) -> None:
    file = tmp_path / "dummy.json"
    file.write_text(json.dumps(whole("CrossEntropyOperation", dataset_name="dummy", backbone="None")))

    def tables(*changes: str) -> list[list[int]]:
        job = resolve(compose(file, list(changes), dialects=DIALECTS).config)
        return [e.train.targets.tolist() for e in build_stream(job["stream"], job["seed"])]

    assert tables() == tables()
    assert tables() != tables("seed=5")


def test_the_dummy_data_are_five_clusters_on_half_a_turn_of_a_spiral() -> None:
    content = whole("CrossEntropyOperation", dataset_name="dummy", backbone="None", data_path=None)
    data = build_dataset(translated(content).job["stream"]["dataset"])
    points = torch.cat([data.train.gather(torch.arange(400)).inputs, data.test.gather(torch.arange(100)).inputs])
    labels = torch.cat([data.train.targets, data.test.targets])
    means = torch.stack([points[labels == label].mean(0) for label in range(5)])
    assert torch.allclose(means.norm(dim=1), torch.tensor([1.0, 0.7525, 0.505, 0.2575, 0.01]), atol=0.01)
    assert torch.allclose(means[0], torch.tensor([-1.0, 0.0]), atol=0.01)


def test_early_stopping_comes_with_more_epochs_than_its_patience() -> None:
    content = whole("CrossEntropyOperation")
    assert "patience" not in translated(content).job["trainer"]
    content["optimisation"]["epochs"] = 1000
    made = translated(content)
    trainer = resolve(made.job)["trainer"]
    assert [trainer[key] for key in ("patience", "monitor", "min_delta", "monitor_on")] == [500, "loss", 0.01, "test"]
    assert any(note.startswith("optimisation.epochs: an experience ends after 500") for note in made.notes)


def test_weights_are_asked_for_by_name_and_found_where_torch_keeps_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = whole("CrossEntropyOperation", backbone="resnet18")
    made = translated(content)
    assert made.job["model"]["weights"] == "resnet18-f37072fd.pth"
    assert any(note.startswith("data.backbone: nothing is downloaded") for note in made.notes)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.write_bytes(b"")
    assert translated(content).job["model"]["weights"] == str(file)


def test_the_two_memories_of_a_file_keep_their_budgets_and_selections() -> None:
    content = whole("RandomMemoryUpdaterOperation", "NCMMemoryUpdaterOperation", "CrossEntropyOperation")
    content["plugins"][1]["hyperparameters"]["cls_budget"] = 3
    operations = resolve(translated(content).job)["method"]["operations"]
    kept = [(one["per_class"], one["selection"], one["by"]) for one in operations if "selection" in one]
    assert kept == [(10, "random", "class"), (3, "herding", "class")]


def test_the_command_data_tells_the_classes_of_experiences_and_clmixers_meta_features(tmp_path: Path) -> None:
    file = tmp_path / "dummy.json"
    content = whole("CrossEntropyOperation", dataset_name="dummy", backbone="None", scenario="indus", data_path=None)
    file.write_text(json.dumps(content))
    said = CliRunner().invoke(app, ["data", str(file)]).stdout
    assert re.search(r"measured on the inputs of .*\nsamples +400 .*\nfeatures +2 .*\nch +\d", said)
    told = json.loads(CliRunner().invoke(app, ["data", str(file), "--json"]).stdout)
    assert set(told["measures"]) >= {"ch", "c2", "linear_discr", "naive_bayes"}
    counts = [one["train"] for one in told["experiences"]]
    assert [sum(one.get(str(label), 0) for one in counts) for label in range(5)] == [80] * 5
