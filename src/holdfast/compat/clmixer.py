"""CLMixer's JSON files: recognised, changed by their own keys, and translated to jobs of ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.compat.clmixer_operations import KNOWN, Plugin, translate
from holdfast.config.words import dotted, nearest, shown
from holdfast.core.errors import ConfigError

SECTIONS = {
    "optimisation": ("lr", "epochs", "optimizer", "batch_size", "device"),
    "model": ("model_type", "hidden_size", "lora"),
    "data": ("dataset_name", "data_path", "n_experiments", "backbone", "scenario"),
    "plugins": (),
    "human_knowledge": ("nbrs_known_classes", "classes_simmilary"),
    "seed": (),
}
"""Every key of CLMixer's files; `human_knowledge` is in all of them and read by none of its code."""

OURS = {"optimisation": "optimizer", "data": "stream", "plugins": "method"}
DINO = {
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
}
REDUCED: dict[str, dict[str, Any]] = {
    "mlp_lora": {"name": "low_rank_mlp", "rank": 1},
    "mlp_subspace": {"name": "subspace_mlp", "dimension": 80},
    "mlp_subspace_lora": {"name": "subspace_mlp", "dimension": 20, "rank_one": True},
}
"""Perceptrons that learn few values, with the sizes that are fixed in CLMixer's code."""

MODELS = ("resnet18", "mlp", "identity", *list(DINO)[:3], *REDUCED)
BACKBONES = ("resnet18", *DINO)
SCENARIOS = ("cil", "indus", "indus_cil")
IMAGE = 224
"""Height and width that CLMixer crops images to."""


def owns(path: Sequence[str]) -> bool:
    """Whether a change of this path is one of a CLMixer file, and not of a job of ours."""
    if path[0] == "model":
        return len(path) == 2 and path[1] in SECTIONS["model"]
    return path[0] in ("optimisation", "data", "plugins", "human_knowledge")


def recognised(content: Mapping[str, Any]) -> bool:
    """Whether a file is one of CLMixer's: it has a key that only CLMixer has."""
    model = content.get("model")
    return any(key in content for key in ("optimisation", "data", "plugins", "human_knowledge")) or (
        isinstance(model, Mapping) and "model_type" in model
    )


def changed(content: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of a CLMixer file with single values changed; a plugin is found by its number or its name."""
    result = copy.deepcopy(dict(content))
    for path, value in changes.items():
        here: Any = result
        for depth, part in enumerate(path[:-1]):
            if isinstance(here, list):
                names = [str(one.get("name")) for one in here if isinstance(one, Mapping)]
                near = nearest(part, names)
                if not part.isdigit() and part not in names:
                    raise ConfigError(f"{dotted(path)}: there is no plugin {part!r}; did you mean {near!r}?")
                here = here[int(part)] if part.isdigit() else here[names.index(part)]
                if path[depth + 1] not in ("name", "hyperparameters", "function"):
                    here = here.setdefault("hyperparameters", {})
            else:
                here = here.setdefault(part, {})
        here[path[-1]] = value
    return result


def convert(content: Mapping[str, Any], source: str = "") -> tuple[dict[str, Any], list[str]]:
    """A job of ours that does what a CLMixer file means, and what is done differently, in sentences.

    Every section may be left out; what it would say is then the default job's.

    Args:
        content: of the file.
        source: its name, for error messages.

    Raises:
        ConfigError: for a key, name or value that CLMixer does not have, or that has no equivalent here.
    """
    where = f"{source}: " if source else ""
    for key in content:
        if key not in (*SECTIONS, "$schema"):
            near = nearest(key, SECTIONS)
            advice = f"did you mean {near!r}?" if near else f"its keys are {', '.join(SECTIONS)}."
            raise ConfigError(f"{where}{key}: unknown key {key!r} of a CLMixer file; {advice}")
    for section, keys in SECTIONS.items():
        _check_section(content, section, keys, where)
    job: dict[str, Any] = {}
    notes: list[str] = []
    _optimisation(content.get("optimisation"), job, notes)
    _data(content.get("data"), job, notes)
    _model(content.get("model"), content.get("data") or {}, job, notes)
    if "plugins" in content:
        job |= _plugins(content["plugins"], notes, where)
    operations = job.get("method", {}).get("operations", [])
    if any(one["name"] == "weight_align" for one in operations) and job.get("model", {}).get("head") == "cosine":
        job["model"]["head"] = "fixed"
        notes.append("model: a linear head instead of the cosine classifier, since weight alignment scales lengths.")
    copies = next((one for one in operations if one["name"] == "duplicate_backbone"), None)
    if copies is not None and "stream" in job:
        copies["copies"] = job["stream"]["experiences"]
    if "human_knowledge" in content:
        notes.append("human_knowledge: left out; CLMixer writes it into every file and never reads it.")
    if "seed" in content:
        job["seed"] = content["seed"]
    return job, notes or ["translated from CLMixer, nothing is done differently."]


def _check_section(content: Mapping[str, Any], section: str, keys: Sequence[str], where: str) -> None:
    value = content.get(section)
    if value is None or not keys:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}{section}: got {shown(value)}, expected an object with {', '.join(keys)}.")
    for key in value:
        if key not in keys:
            near = nearest(key, keys)
            advice = f"did you mean {near!r}?" if near else f"its keys are {', '.join(keys)}."
            raise ConfigError(f"{where}{section}.{key}: unknown key {key!r} of CLMixer's {section}; {advice}")


def _optimisation(given: Mapping[str, Any] | None, job: dict[str, Any], notes: list[str]) -> None:
    if given is None:
        return
    optimizer = given.get("optimizer") or {}
    kinds = {"adam": "Adam", "sgd": "SGD"}
    kind = str(optimizer.get("type", "adam"))
    if kind not in kinds:
        near = nearest(kind, kinds)
        raise ConfigError(
            f"optimisation.optimizer.type: got {shown(kind)}, and CLMixer has adam and sgd; did you mean"
            f" {near or 'adam'!r}?"
        )
    for key in optimizer:
        if key not in ("type", "weight_decay"):
            raise ConfigError(
                f"optimisation.optimizer.{key}: unknown key {key!r} of CLMixer's optimizer; its keys are type,"
                " weight_decay."
            )
    job["optimizer"] = {
        "name": kinds[kind],
        "lr": given.get("lr", 0.001),
        "weight_decay": optimizer.get("weight_decay", 0.0),
    }
    job["trainer"] = {"reset_optimizer": True}
    for key in ("epochs", "batch_size"):
        if key in given:
            job["trainer"][key] = given[key]
    notes.append("optimisation: a new optimizer starts with every experience, as in CLMixer.")
    if "device" in given:
        device = str(given["device"])
        job["device"] = "auto" if device.startswith("cuda") else device
        if job["device"] == "auto":
            notes.append(f"optimisation.device: {device!r} became 'auto', so that the file runs without a GPU too.")


def _data(given: Mapping[str, Any] | None, job: dict[str, Any], notes: list[str]) -> None:
    if given is None:
        return
    if "data_path" not in given:
        raise ConfigError(
            'data.data_path: is missing; it is the folder of the images. Write "data_path": "path/to/images".'
        )
    scenario = given.get("scenario", "cil")
    if scenario not in SCENARIOS:
        near = nearest(scenario, SCENARIOS)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(SCENARIOS)}."
        raise ConfigError(f"data.scenario: unknown scenario {shown(scenario)}; {advice}")
    root = Path(str(given["data_path"]))
    listed = (root / "train.txt").is_file() and (root / "test.txt").is_file()
    inside = root / "data" if (root / "data").is_dir() and not listed else root
    dataset = {"name": "image_folder", "path": str(inside), "size": IMAGE, "normalise": True}
    if given.get("dataset_name"):
        notes.append(f"data.dataset_name: {given['dataset_name']!r} is a name only; the folder says what the data are.")
    job["stream"] = {"name": scenario, "dataset": dataset, "experiences": given.get("n_experiments", 5)}
    notes.append(f"data: images are resized to {IMAGE} pixels (CLMixer resizes to 256 and crops the middle).")
    notes.append("data: evaluation is per experience, and accuracy is recall; CLMixer's 'accuracy' is precision.")


def _model(given: Mapping[str, Any] | None, data: Mapping[str, Any], job: dict[str, Any], notes: list[str]) -> None:
    backbone = data.get("backbone")
    frozen = None if backbone in (None, "None", "none", "") else str(backbone)
    if frozen is not None and frozen not in BACKBONES:
        near = nearest(frozen, BACKBONES)
        raise ConfigError(
            f"data.backbone: unknown backbone {frozen!r}; did you mean {near!r}? CLMixer has {', '.join(BACKBONES)}."
        )
    if given is None and frozen is None:
        return
    given = given or {"model_type": "mlp"}
    kind = str(given.get("model_type", "mlp"))
    if kind not in MODELS:
        near = nearest(kind, MODELS)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(MODELS)}."
        raise ConfigError(f"model.model_type: unknown model {kind!r}; {advice}")
    if given.get("lora"):
        notes.append("model.lora: a full cosine classifier; all classes of one of rank 1 lie on one line, two ways.")
    size = int(given.get("hidden_size", 20))
    hidden = [size] if kind in ("mlp", *REDUCED) and size > 0 else []
    head = "cosine"
    if frozen is not None:
        if kind in REDUCED:
            notes.append(f"model.model_type: a plain layer of {size} on the frozen features instead of {kind}.")
        elif kind not in ("mlp", "identity"):
            raise ConfigError(
                f"model.model_type: {kind!r} on the features of a frozen backbone makes no sense. Write mlp."
            )
        architecture = DINO.get(frozen, frozen)
        job["model"] = {"name": "frozen", "architecture": architecture, "hidden": hidden, "head": head}
        notes.append(
            f"data.backbone: {frozen} is frozen, in eval mode; CLMixer leaves its batch norm in training mode. Nothing"
            " is downloaded: give the weights with model.weights=FILE, else they are random."
        )
    elif kind == "mlp" or kind in REDUCED:
        job["model"] = {**REDUCED.get(kind, {"name": "mlp"}), "hidden": hidden, "head": head, "batch_norm": True}
        job["model"] |= {"activation": "leaky_relu", "dropout": 0.1}
        notes.append("model: the leaky ReLU has torch's slope of 0.01, CLMixer's has 0.2.")
    elif kind == "identity":
        job["model"] = {"name": "linear", "head": head}
    else:
        architecture = DINO.get(kind, kind)
        job["model"] = {"name": "timm", "architecture": architecture, "head": head}
        notes.append(
            f"model: {kind} starts from random weights, since nothing is downloaded; give a file with"
            " model.weights=FILE. hidden_size is left out: the width of its features is its own."
        )
    notes.append("model: the cosine classifier has a scale of 16; CLMixer's has none, and so nearly no gradient.")


def _plugins(given: Any, notes: list[str], where: str) -> dict[str, Any]:
    """The method (and criterion) that a list of plugins stands for."""
    if not isinstance(given, list):
        raise ConfigError(
            f'{where}plugins: got {shown(given)}, expected a list of {{"name": ..., "hyperparameters": ...}}.'
        )
    plugins = [_plugin(one, index, where) for index, one in enumerate(given)]
    operations, criterion, told = translate(plugins)
    notes += told
    method: Any = {"operations": operations} if operations else {"name": "finetune"}
    return {"method": method, **({"criterion": criterion} if criterion else {})}


def _plugin(given: Any, index: int, where: str) -> Plugin:
    path = f"{where}plugins.{index}"
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ConfigError(f'{path}: got {shown(given)}, expected {{"name": ..., "hyperparameters": ...}}.')
    for key in given:
        if key not in ("name", "hyperparameters", "function"):
            near = nearest(key, ("name", "hyperparameters", "function"))
            raise ConfigError(
                f"{path}.{key}: unknown key {key!r} of a plugin; did you mean {near or 'hyperparameters'!r}?"
            )
    name = given["name"]
    if name not in KNOWN:
        near = nearest(name, KNOWN)
        advice = f"did you mean {near!r}?" if near else f"CLMixer has {', '.join(KNOWN)}."
        raise ConfigError(f"{path}.name: unknown operation {name!r}; {advice}")
    about = KNOWN[name]
    function = given.get("function", about.function)
    functions = sorted({one.function for one in KNOWN.values()})
    if function not in functions:
        near = nearest(function, functions)
        raise ConfigError(
            f"{path}.function: unknown function {shown(function)}; did you mean {near or functions[0]!r}?"
        )
    values = given.get("hyperparameters") or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}.hyperparameters: got {shown(values)}, expected an object.")
    for key, value in values.items():
        if key not in about.defaults:
            near = nearest(key, about.defaults)
            known = ", ".join(about.defaults) or "none"
            advice = f"did you mean {near!r}?" if near else f"it has {known}."
            raise ConfigError(f"{path}.hyperparameters.{key}: unknown hyperparameter {key!r} of {name}; {advice}")
        usual = about.defaults[key]
        if isinstance(usual, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(f"{path}.hyperparameters.{key}: got {shown(value)}, expected a number.")
    return Plugin(name, {**about.defaults, **values}, path)
