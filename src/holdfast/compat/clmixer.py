"""CLMixer's JSON files: recognised, changed by their own keys, and translated to jobs of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.compat.clmixer_plugins import read_plugins
from holdfast.compat.clmixer_values import DATA, METHOD, SECTIONS, Translation
from holdfast.config.check import validated
from holdfast.config.read import check_plain
from holdfast.config.words import shown
from holdfast.core.errors import ConfigError

OWN = ("optimisation", "data", "plugins", "human_knowledge")
"""Sections that only CLMixer's files have."""

DINO = {
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
}
WEIGHTS = {"resnet18": "resnet18-f37072fd.pth", **{name: f"{name}_pretrain.pth" for name in DINO}}
"""The file of weights that torch's hub keeps of each network that CLMixer takes from it."""

REDUCED: dict[str, dict[str, Any]] = {
    "mlp_lora": {"name": "low_rank_mlp", "rank": 1},
    "mlp_subspace": {"name": "subspace_mlp", "dimension": 80},
    "mlp_subspace_lora": {"name": "subspace_mlp", "dimension": 20, "rank_one": True},
}
"""Perceptrons that learn few values, with the sizes that are fixed in CLMixer's code."""

LAYERS = {"mlp": "plain", "mlp_lora": "low_rank", "mlp_subspace": "subspace", "mlp_subspace_lora": "subspace_rank_one"}
MODELS = ("resnet18", "mlp", "identity", *list(DINO)[:3], *REDUCED)
BACKBONES = ("resnet18", *DINO)
SCENARIOS = ("cil", "indus", "indus_cil")
IMAGE, SHORTER = 224, 256
"""Side of the square that CLMixer crops images to, and what it resizes their shorter side to before."""

PATIENCE, MIN_DELTA = 500, 0.01
"""Of CLMixer's early stopping, which watches the loss on the test data of all experiences so far."""


ARENAS = tuple(("data", key) for key in ("batch_size", "num_workers", "pin_memory", "validation_percentage", "root"))
"""Keys of `data` that Continual Learning Arena has and CLMixer does not."""


def owns(path: Sequence[str]) -> bool:
    """Whether a change of this path is one of a CLMixer file, and not of a job of ours."""
    if path[0] == "model":
        return len(path) == 2 and path[1] in SECTIONS["model"]
    if tuple(path) in ARENAS:
        return False
    return path[0] in OWN


def recognised(content: Mapping[str, Any]) -> bool:
    """Whether a file is one of CLMixer's: it has a key that only CLMixer has."""
    model = content.get("model")
    return any(key in content for key in OWN) or (isinstance(model, Mapping) and "model_type" in model)


def convert(content: Mapping[str, Any], source: str = "") -> tuple[dict[str, Any], list[str]]:
    """A job of ours that does what a CLMixer file means, and what is done differently, in sentences.

    Every section may be left out; what it would say is then the default job's.

    Args:
        content: of the file.
        source: its name, for error messages.

    Raises:
        ConfigError: for a key, name or value that CLMixer does not have, or that has no equivalent here.
    """
    made = translated(content, source)
    return made.job, made.notes or ["translated from CLMixer, nothing is done differently."]


def translated(content: Mapping[str, Any], source: str = "") -> Translation:
    """A CLMixer file as a job of ours, with where each value is kept; see `convert`."""
    made = Translation(source)
    for problem in check_plain(dict(content)):
        raise ConfigError(f"{source}: {problem}" if source else problem)
    made.block("", {key: value for key, value in content.items() if key != "$schema"}, SECTIONS)
    for section, keys in SECTIONS.items():
        if content.get(section) is not None and keys:
            made.block(section, content[section], keys)
        elif section in content and content[section] is None:
            made.tell(section, "is null; the default job's.", METHOD)
    sections = {section: content.get(section) for section in SECTIONS}
    for section in ("optimisation", "model", "data", "plugins"):
        if section not in content:
            made.tell(section, "is left out; the default job's.")
    if sections["seed"] is not None:
        made.put("seed", made.whole("seed", sections["seed"], 0), "seed")
    elif "seed" not in content:
        made.tell("seed", "is missing; 0, where CLMixer draws one.")
    _optimisation(sections["optimisation"], made)
    _data(sections["data"], made)
    _model(sections["model"], sections["data"] or {}, made)
    if sections["plugins"] is not None:
        read_plugins(sections["plugins"], made)
    _together(made)
    if "human_knowledge" in content:
        made.tell("human_knowledge", "is left out; CLMixer writes it into every file and never reads it.")
    _check(made)
    return made


def _together(made: Translation) -> None:
    """What depends on several sections."""
    operations = made.job.get("method", {}).get("operations", [])
    align = any(one["name"] == "weight_align" and one.get("at") != "outputs" for one in operations)
    if align and made.job.get("model", {}).get("head") == "plain_cosine":
        made.job["model"]["head"] = "fixed"
        made.tell("model", "has a linear head in the place of the cosine classifier, for weight alignment.", METHOD)
    copies = next((one for one in operations if one["name"] == "duplicate_backbone"), None)
    if copies is not None and "stream" in made.job:
        copies["copies"] = made.job["stream"]["experiences"]


def _check(made: Translation) -> None:
    """Refuse, in the file's own words, what the job's own check refuses of what the file says."""
    try:
        validated(made.job, made.source)
    except ConfigError as error:
        lines = str(error).splitlines()
        if any(ours in line for ours in made.kept for line in lines) or "method" in str(error):
            raise made.in_its_words(error) from None


def _optimisation(section: Mapping[str, Any] | None, made: Translation) -> None:
    if section is None:
        return
    path = "optimisation"
    optimizer = section.get("optimizer")
    if optimizer is None:
        made.tell(f"{path}.optimizer", "is missing; Adam without weight decay.", METHOD)
        optimizer = {}
    optimizer = made.block(f"{path}.optimizer", optimizer, ("type", "weight_decay"))
    kinds = {"adam": "Adam", "sgd": "SGD"}
    for key, usual in (("type", "adam"), ("weight_decay", "0")):
        if key not in optimizer and section.get("optimizer") is not None:
            made.tell(f"{path}.optimizer.{key}", f"is missing; {usual}.", METHOD)
    kind = made.choice(f"{path}.optimizer.type", optimizer.get("type", "adam"), list(kinds), "optimizer")
    made.put("optimizer.name", kinds[kind], f"{path}.optimizer.type")
    rate = section.get("lr", 0.001)
    if "lr" not in section:
        made.tell(f"{path}.lr", "is missing; 0.001, as in CLMixer's own examples.", METHOD)
    made.put("optimizer.lr", made.number(f"{path}.lr", rate), f"{path}.lr")
    decay = optimizer.get("weight_decay", 0.0)
    made.put("optimizer.weight_decay", made.number(f"{path}.optimizer.weight_decay", decay),
             f"{path}.optimizer.weight_decay")  # fmt: skip
    made.job["trainer"] = {"reset_optimizer": True, "drop_last": True}
    for key in ("epochs", "batch_size"):
        if key in section:
            made.put(f"trainer.{key}", made.whole(f"{path}.{key}", section[key]), f"{path}.{key}")
        else:
            made.tell(f"{path}.{key}", "is missing; the default job's.", METHOD)
    if made.job["trainer"].get("epochs", 0) > PATIENCE:
        made.job["trainer"] |= {"patience": PATIENCE, "monitor": "loss", "min_delta": MIN_DELTA, "monitor_on": "test"}
        made.tell(
            f"{path}.epochs",
            f"an experience ends after {PATIENCE} epochs without a loss that is {MIN_DELTA} better on the test data of "
            "all experiences so far, as in CLMixer, so that the result looks better than it is "
            "(trainer.patience=null trains on).",
            DATA,
        )
    made.tell(
        f"{path}.batch_size",
        "an experience with fewer samples than a batch is trained on as one batch; CLMixer leaves it out.",
    )
    if section.get("device") is not None:
        device = made.word(f"{path}.device", section["device"])
        cuda = re.fullmatch(r"cuda(:\d+)?", device) is not None
        made.put("device", "auto" if cuda else device, f"{path}.device")
        if cuda:
            made.tell(f"{path}.device", f"{device!r} became 'auto', so that the file runs without a GPU too.")
    elif "device" in section:
        made.tell(f"{path}.device", "is null; the CPU.")


def _data(section: Mapping[str, Any] | None, made: Translation) -> None:
    if section is None:
        return
    name = section.get("dataset_name")
    name = None if name is None else made.word("data.dataset_name", name)
    if name is not None:
        made.job["tags"] = [f"dataset:{name}"]
        made.kept["tags.0"] = "data.dataset_name"
    scenario = made.choice("data.scenario", section.get("scenario", "cil"), SCENARIOS, "scenario")
    if "scenario" not in section:
        made.tell("data.scenario", "is missing; cil.", DATA)
    made.put("stream.name", scenario, "data.scenario")
    made.put("stream.seed", None, "seed")  # it is the job's, which draws the scenario too
    seed = made.job.get("seed", 0)
    if name == "dummy":
        if section.get("data_path") is not None:
            path = made.word("data.data_path", section["data_path"])
            made.tell(
                "data.data_path",
                f"nothing is read or written at {path!r}: the five clusters of the dummy data are drawn here; CLMixer "
                "deletes that folder and writes them into it.",
            )
        made.put("stream.dataset", {"name": "spiral", "seed": seed}, "data.dataset_name")
    else:
        made.put("stream.dataset", _folder(section, seed, made), "data.data_path")
        made.kept["stream.dataset.name"] = "data.dataset_name"
    experiences = section.get("n_experiments", 5)
    if "n_experiments" not in section:
        made.tell("data.n_experiments", "is missing; 5.", DATA)
    made.put("stream.experiences", made.whole("data.n_experiments", experiences), "data.n_experiments")
    made.tell("data", "accuracy is recall, and of each experience by itself; CLMixer's 'accuracy' is precision.", DATA)


def _folder(section: Mapping[str, Any], seed: int, made: Translation) -> dict[str, Any]:
    """The data set of the images that a file names."""
    if section.get("data_path") is None:
        raise made.error(
            "data.data_path", 'is missing; it is the folder of the images. Write "data_path": "path/to/images".'
        )
    root = Path(made.word("data.data_path", section["data_path"]))
    try:
        listed = (root / "train.txt").is_file() and (root / "test.txt").is_file()
        inside = root / "data" if (root / "data").is_dir() and not listed else root
    except (OSError, ValueError) as error:  # a name that no file system takes
        reason = getattr(error, "strerror", None) or error
        raise made.error("data.data_path", f"got {shown(str(root))}, which is no path here: {reason}.") from None
    folder: dict[str, Any] = {"name": "image_folder", "path": str(inside), "size": IMAGE, "shorter_side": SHORTER}
    folder |= {"filter": "bicubic", "normalise": "imagenet", "split_seed": seed}
    return folder


def _model(section: Mapping[str, Any] | None, data: Mapping[str, Any], made: Translation) -> None:
    backbone = data.get("backbone")
    frozen = None if backbone in (None, "None", "none", "") else backbone
    if frozen is not None:
        frozen = made.choice("data.backbone", frozen, BACKBONES, "backbone")
        if data.get("dataset_name") == "dummy":
            raise made.error("data.backbone", f'{frozen!r} takes images, and the dummy data are points. Write "None".')
    if data and "backbone" not in data:
        made.tell("data.backbone", "is missing; none.", METHOD)
    if section is None and frozen is None:
        return
    if section is None or "model_type" not in section:
        made.tell("model.model_type", "is missing; mlp.", METHOD)
    section = section or {}
    kind = made.choice("model.model_type", section.get("model_type", "mlp"), MODELS, "model")
    if section.get("lora") is not None and made.flag("model.lora", section["lora"]):
        made.tell(
            "model.lora", "a full cosine classifier; all classes of one of rank 1 lie on one line, two ways.", METHOD
        )
    narrow = kind in LAYERS
    size = _width(section, kind, made)
    middle = {"hidden": [size] if narrow else [], "activation": "leaky_relu_0.2", "batch_norm": True, "dropout": 0.1}
    if frozen is not None:
        if kind not in (*LAYERS, "identity"):
            raise made.error(
                "model.model_type", f"{kind!r} on the features of a frozen backbone makes no sense. Write mlp."
            )
        model = {"name": "frozen", **_network(frozen, "data.backbone", made), **middle}
        if kind in REDUCED:
            model["layer"] = LAYERS[kind]
        if frozen == "resnet18":
            made.tell("data.backbone", "is in eval mode; CLMixer leaves its batch norm in training mode.", DATA)
    elif narrow:
        model = {**REDUCED.get(kind, {"name": "mlp"}), **middle}
    elif kind == "identity":
        model = {"name": "linear"}
    else:
        model = {"name": "torchvision" if kind == "resnet18" else "timm", **_network(kind, "model.model_type", made)}
        model.pop("library")
    made.put("model", {**model, "head": "plain_cosine"}, "model")
    made.kept["model.name"] = "model.model_type"
    if narrow:
        made.kept["model.hidden"] = "model.hidden_size"
    if "architecture" in model:
        made.kept["model.architecture"] = "model.model_type" if frozen is None else "data.backbone"


def _width(section: Mapping[str, Any], kind: str, made: Translation) -> int:
    """The units of the hidden layer, for the networks that have one."""
    path, narrow = "model.hidden_size", kind in LAYERS
    if "hidden_size" not in section:
        if narrow:
            made.tell(path, "is missing; 20.", METHOD)
        return 20
    value = section["hidden_size"]
    none = value in (None, "None") and not narrow
    size = -1 if none else made.rounded(path, value, -1)
    if narrow and size < 1:
        raise made.error(path, f"got {size}, expected a number of 1 or more for {kind}.")
    if not narrow:
        made.tell(path, f"is left out: {kind} has the width of its own features, in CLMixer too.")
    return size


def _network(name: str, path: str, made: Translation) -> dict[str, Any]:
    """A network of torch's hub, with the file of its weights if it was downloaded on this machine."""
    library = "torchvision" if name == "resnet18" else "timm"
    home = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    file = home.expanduser() / "hub" / "checkpoints" / WEIGHTS[name]
    if not file.is_file():
        made.tell(
            path,
            f"nothing is downloaded, and the weights of {name} are not in torch's cache: give them with "
            f"model.weights=FILE, or write model.weights=random for random ones.",
            METHOD,
        )
    weights = str(file) if file.is_file() else WEIGHTS[name]
    return {"architecture": DINO.get(name, name), "library": library, "weights": weights}
