"""CLMixer's operations by name, and the operations of ours that do what each of them means to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.core.errors import ConfigError

Spec = dict[str, Any]


@dataclass(frozen=True)
class Plugin:
    """One plugin of a file: its name, its hyperparameters with CLMixer's defaults, and its path for messages."""

    name: str
    values: dict[str, Any]
    path: str


@dataclass(frozen=True)
class Known:
    """What Holdfast knows of an operation of CLMixer.

    Attributes:
        function: its place in CLMixer's taxonomy.
        defaults: its hyperparameters.
        made: from the hyperparameters to operations of ours.
        note: what is done differently.
        criterion: the loss that it stands for.
    """

    function: str
    defaults: dict[str, Any]
    made: Callable[[dict[str, Any]], list[Spec]]
    note: str = ""
    criterion: str = ""


INCORPORATION, RETENTION = "knowledge_incorporation", "knowledge_retention"
BIAS, REPRESENTATION = "bias_mitigation", "representation_learning"


def _memory(selection: str) -> Callable[[dict[str, Any]], list[Spec]]:
    def made(values: dict[str, Any]) -> list[Spec]:
        budget = int(values["cls_budget"])
        exemplars = {"name": "remember_exemplars", "per_class": budget, "selection": selection}
        return [exemplars, {"name": "merged_replay"}] if budget else []

    return made


def _distillation(values: dict[str, Any]) -> list[Spec]:
    return [{"name": "distillation", "temperature": float(values["temperature"]), "average": "experiences"}]


def _interfered(values: dict[str, Any]) -> list[Spec]:
    exemplars = {"name": "remember_exemplars", "per_class": int(values["cls_budget"]), "selection": "random"}
    return [exemplars, {"name": "interfered_replay"}]


def _finetune(values: dict[str, Any]) -> list[Spec]:
    one = {"name": "balanced_finetune", "epochs": int(values["finetune_epochs"])}
    one |= {"batch_size": int(values["finetune_bs"]), "lr": float(values["finetune_lr"])}
    return [{**one, "per_class": int(values["cls_budget"])}]


def _evidential(values: dict[str, Any]) -> list[Spec]:
    forms = {"mse": "mse", "bce": "digamma"}
    regressor = str(values.get("regressor", ""))
    if "regressor" in values and regressor not in forms:
        raise ConfigError(f"regressor: got {regressor!r}, and CLMixer has mse and bce. Write one of the two.")
    return [{"name": "evidential", "form": forms.get(regressor, "log"), "annealing": int(values["kl_annealing_step"])}]


def _learned(name: str) -> Callable[[dict[str, Any]], list[Spec]]:
    def made(values: dict[str, Any]) -> list[Spec]:
        points = {"points": int(values["n"])} if values["n"] else {}
        return [{"name": name, "dimensions": int(values["d"]), **points}]

    return made


def _one(name: str, **arguments: Any) -> Callable[[dict[str, Any]], list[Spec]]:
    return lambda values: [{"name": name, **arguments}]


KNOWN: dict[str, Known] = {
    "CrossEntropyOperation": Known(
        INCORPORATION,
        {},
        lambda values: [],
        "CLMixer applies the cross-entropy to a softmax, which is a second softmax; here it is applied to the outputs.",
        "cross_entropy",
    ),
    "MSEOperation": Known(INCORPORATION, {}, _one("one_hot_error")),
    "WeightedCrossEntropyOperation": Known(
        INCORPORATION,
        {},
        _one("weighted_cross_entropy", scheme="complement"),
        "CLMixer applies it to a softmax, and resets the network at the end if it can; neither is done here.",
    ),
    "CrossEntropyProjectionOperation": Known(
        INCORPORATION,
        {"n": 0, "d": 2, "epochs": 1},
        _learned("common_minimum"),
        "after each experience the weights move to the minimum of what was learned of all losses (CLMixer looks for a "
        "point in all subspaces at once, draws and shows plots); epochs does nothing.",
        "cross_entropy",
    ),
    "RandomMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _memory("random"),
        "exemplars are drawn without replacement (CLMixer draws some twice), and join the next experience's data.",
    ),
    "NCMMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _memory("herding"),
        "herding as in the iCaRL paper (CLMixer gives its exemplars wrong labels, and keeps one too few).",
    ),
    "KnowledgeDistillationOperation": Known(
        RETENTION,
        {"temperature": 2.0},
        _distillation,
        "over the old classes, with the factor T^2 that CLMixer leaves out; old and new weigh as c - 1 to 1 after c "
        "experiences.",
    ),
    "PodLossOperation": Known(
        RETENTION,
        {},
        _one("pooled_distillation"),
        "the pooled outputs distillation of the PODNet paper, over the layers that the model has.",
    ),
    "MIRMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _interfered,
        "replays the samples whose loss a virtual step raises most (CLMixer's replay loss stays 0).",
    ),
    "LossApproxOperation": Known(
        RETENTION,
        {"n": 10000, "d": 2, "epochs": 1},
        _learned("loss_surrogate"),
        "the old losses as learned along d directions, and a pull back to where they were learned (CLMixer lets the "
        "weights leave the d directions freely, and needs cuda:0); epochs does nothing.",
    ),
    "LossLandscapeOperation": Known(
        RETENTION,
        {"n": 10000, "d": 2, "epochs": 1},
        _learned("loss_surrogate"),
        "as LossApproxOperation, on all weights; CLMixer trains a classifier of d numbers instead of the model's. "
        "epochs does nothing.",
    ),
    "FinetuneOperation": Known(
        BIAS,
        {"finetune_epochs": 100, "finetune_bs": 32, "finetune_lr": 0.001, "cls_budget": 15},
        _finetune,
        "draws up to cls_budget of each class from the memory, which stays as it is (CLMixer overwrites it).",
    ),
    "WeightAlignOperation": Known(
        BIAS, {}, _one("weight_align"), "scales the new classes (CLMixer scales the old ones, or none)."
    ),
    "BICOperation": Known(
        BIAS,
        {"bic_epochs": 0, "bic_lr": 0.0, "bic_wd": 0.0, "bic_bs": 0, "bic_decay": 0.0},
        _one("bias_correction"),
        "corrects the new classes' outputs, fitted on held-out samples in closed form, so that the bic_ values do "
        "nothing (CLMixer shifts all classes alike, which changes no answer).",
    ),
    "DirichletUncertaintyLossOperation": Known(
        BIAS,
        {"kl_annealing_step": 150, "regressor": "mse"},
        _evidential,
        "with its annealing applied, counted in steps (CLMixer's stops with a TypeError).",
    ),
    "DirichletKLLossOperation": Known(
        BIAS,
        {"kl_annealing_step": 150},
        _evidential,
        "in one with the log form of the evidential loss; its evidence is never negative, its annealing applied.",
    ),
    "DuplicateNetworkBackboneOperation": Known(
        REPRESENTATION,
        {},
        _one("duplicate_backbone"),
        "the head reads the features of all copies (CLMixer's is never widened, and stops with an error of shapes).",
    ),
    "FreezeNetworkBackboneOperation": Known(
        REPRESENTATION, {}, _one("freeze_backbone"), "frozen from the second experience on."
    ),
}
"""CLMixer's name -> what it stands for."""


def translate(plugins: Sequence[Plugin]) -> tuple[list[Spec], str, list[str]]:
    """Operations of ours for a list of plugins, the criterion that they name, and notes.

    Raises:
        ConfigError: for a hyperparameter without a meaning.
    """
    operations: list[Spec] = []
    criterion = ""
    notes = []
    for plugin in plugins:
        about = KNOWN[plugin.name]
        try:
            found = about.made(plugin.values)
        except ConfigError as error:
            raise ConfigError(f"{plugin.path}.hyperparameters.{error}") from None
        remembers = any(one["name"].startswith("remember") for one in operations)
        operations += [one for one in found if not (remembers and one["name"].startswith("remember"))]
        criterion = about.criterion or criterion
        if about.note:
            notes.append(f"{plugin.name}: {about.note}")
    names = [one["name"] for one in operations]
    if "balanced_finetune" in names and not any(name.startswith("remember") for name in names):
        budget = next(plugin.values["cls_budget"] for plugin in plugins if plugin.name == "FinetuneOperation")
        operations.insert(0, {"name": "remember_exemplars", "per_class": int(budget), "selection": "random"})
    return operations, criterion, notes
