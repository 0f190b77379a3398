"""CLMixer's operations by name, and the operations of ours that do what each of them means to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.config import namespaces
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
        ways: from the hyperparameters to operations of ours; the first that exists is taken, none at all is refused.
        note: what is done differently.
        criterion: the loss that it stands for.
    """

    function: str
    defaults: dict[str, Any]
    ways: Callable[[dict[str, Any]], list[list[Spec]]]
    note: str = ""
    criterion: str = ""


INCORPORATION, RETENTION = "knowledge_incorporation", "knowledge_retention"
BIAS, REPRESENTATION = "bias_mitigation", "representation_learning"

MERGED = (
    "CLMixer adds the memory to the next experience's data; here 32 of its samples are replayed beside every batch."
)


def _nothing(values: dict[str, Any]) -> list[list[Spec]]:
    return [[]]


def _never(values: dict[str, Any]) -> list[list[Spec]]:
    return []


def _memory(selection: str) -> Callable[[dict[str, Any]], list[list[Spec]]]:
    def ways(values: dict[str, Any]) -> list[list[Spec]]:
        budget = int(values["cls_budget"])
        if budget == 0:
            return [[]]
        exemplars = {"name": "remember_exemplars", "per_class": budget, "selection": selection}
        return [[exemplars, {"name": "replay", "size": 32}]]

    return ways


def _finetune(values: dict[str, Any]) -> list[list[Spec]]:
    return [
        [
            {
                "name": "balanced_finetuning",
                "epochs": int(values["finetune_epochs"]),
                "batch_size": int(values["finetune_bs"]),
                "lr": float(values["finetune_lr"]),
            }
        ]
    ]


KNOWN: dict[str, Known] = {
    "CrossEntropyOperation": Known(
        INCORPORATION, {}, _nothing,
        "CLMixer applies the cross-entropy to a softmax, which is a second softmax; here it is applied to the outputs.",
        "cross_entropy",
    ),
    "MSEOperation": Known(INCORPORATION, {}, lambda values: [[{"name": "squared_error"}]]),
    "WeightedCrossEntropyOperation": Known(
        INCORPORATION, {}, lambda values: [[{"name": "weighted_cross_entropy"}]],
        "CLMixer applies it to a softmax, and resets the network at the end if it can; neither is done here.",
    ),
    "CrossEntropyProjectionOperation": Known(INCORPORATION, {"n": 0, "d": 2, "epochs": 1}, _never),
    "RandomMemoryUpdaterOperation": Known(
        RETENTION, {"cls_budget": 10}, _memory("random"),
        "exemplars are drawn without replacement (CLMixer draws some twice). " + MERGED,
    ),
    "NCMMemoryUpdaterOperation": Known(
        RETENTION, {"cls_budget": 10}, _memory("herding"),
        "herding as in the iCaRL paper (CLMixer assigns wrong labels to its exemplars). " + MERGED,
    ),
    "KnowledgeDistillationOperation": Known(
        RETENTION, {"temperature": 2.0},
        lambda values: [[{"name": "distillation", "temperature": float(values["temperature"]), "average": "experiences"}],],
        "distils over the old classes only and weighs old and new by how much was learned; CLMixer has no factor T^2.",
    ),
    "PodLossOperation": Known(
        RETENTION, {}, lambda values: [[{"name": "pooled_distillation"}]],
        "the pooled outputs distillation of the PODNet paper, on the layers that the model has.",
    ),
    "MIRMemoryUpdaterOperation": Known(
        RETENTION, {"cls_budget": 10},
        lambda values: [[{"name": "remember", "capacity": 20 * int(values["cls_budget"])}, {"name": "interfered_replay"}]],
        "replays the samples whose loss a virtual step raises most (CLMixer's replay loss stays 0); "
        "its memory is a reservoir of 20 times cls_budget.",
    ),
    "LossApproxOperation": Known(RETENTION, {"n": 10000, "d": 2, "epochs": 1}, _never),
    "LossLandscapeOperation": Known(RETENTION, {"n": 10000, "d": 2, "epochs": 1}, _never),
    "FinetuneOperation": Known(
        BIAS, {"finetune_epochs": 100, "finetune_bs": 32, "finetune_lr": 0.001, "cls_budget": 15}, _finetune,
        "cls_budget is that of the memory (CLMixer overwrites the memory with the set of its own).",
    ),
    "WeightAlignOperation": Known(
        BIAS, {}, lambda values: [[{"name": "weight_align"}]],
        "scales the new classes (CLMixer scales the old ones, or none).",
    ),
    "BICOperation": Known(
        BIAS, {"bic_epochs": 0, "bic_lr": 0.0, "bic_wd": 0.0, "bic_bs": 0, "bic_decay": 0.0},
        lambda values: [[{"name": "bias_correction"}]],
        "corrects the new classes' outputs, fitted on held-out samples (CLMixer shifts all classes alike, which is none).",
    ),
    "DirichletUncertaintyLossOperation": Known(
        BIAS, {"kl_annealing_step": 150, "regressor": "mse"}, lambda values: [[{"name": "evidential_loss"}]],
        "with its annealing applied (CLMixer's stops with a TypeError).",
    ),
    "DirichletKLLossOperation": Known(
        BIAS, {"kl_annealing_step": 150}, lambda values: [[{"name": "evidential_penalty"}]],
        "with evidence that is never negative and the annealing applied.",
    ),
    "DuplicateNetworkBackboneOperation": Known(REPRESENTATION, {}, lambda values: [[{"name": "expand_backbone"}]]),
    "FreezeNetworkBackboneOperation": Known(
        REPRESENTATION, {}, lambda values: [[{"name": "freeze_backbone"}]], "frozen from the second experience on.",
    ),
}  # fmt: skip
"""CLMixer's name -> what it stands for."""


def translate(plugins: Sequence[Plugin]) -> tuple[list[Spec], str, list[str]]:
    """Operations of ours for a list of plugins, the criterion that they name, and notes.

    Raises:
        ConfigError: for a plugin that has no equivalent here.
    """
    existing = namespaces.names("operations")
    operations: list[Spec] = []
    criterion = ""
    notes = []
    for plugin in plugins:
        about = KNOWN[plugin.name]
        ways = about.ways(plugin.values)
        found = next((way for way in ways if all(one["name"] in existing for one in way)), None)
        if found is None:
            wanted = f" (it would be {ways[0][0]['name']})" if ways else ", research code that never worked for others"
            raise ConfigError(
                f"{plugin.path}.name: {plugin.name} has no equivalent in Holdfast{wanted}. Take the plugin out."
            )
        names = [one["name"] for one in operations]
        for one in found:
            if one["name"] in names and one["name"] in ("remember", "remember_exemplars", "replay"):
                continue
            operations.append(one)
        criterion = about.criterion or criterion
        if about.note:
            notes.append(f"{plugin.name}: {about.note}")
    if any(plugin.name == "FinetuneOperation" for plugin in plugins) and "remember_exemplars" in existing:
        if not any(one["name"].startswith("remember") for one in operations):
            budget = next(p.values["cls_budget"] for p in plugins if p.name == "FinetuneOperation")
            operations.insert(0, {"name": "remember_exemplars", "per_class": int(budget), "selection": "random"})
    return operations, criterion, notes
