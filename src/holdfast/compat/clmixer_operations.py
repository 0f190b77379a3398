"""CLMixer's operations by name, and the operations of ours that do what each of them means to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.compat.clmixer_values import DATA, METHOD

Spec = dict[str, Any]
Made = list[tuple[Spec, dict[str, str]]]
"""Operations of ours, each with the hyperparameter of CLMixer's that an argument is."""

AS_CLMIXER = "as_clmixer"
"""The hyperparameter that we add: true computes what CLMixer computes, also where that is a mistake of its code."""


@dataclass(frozen=True)
class Known:
    """What Holdfast knows of an operation of CLMixer.

    Attributes:
        function: its place in CLMixer's taxonomy.
        defaults: its hyperparameters: those of its own template, and those that its code reads besides.
        made: from the hyperparameters to operations of ours.
        note: what is done differently.
        weight: how much that matters.
        mistake: what CLMixer's code computes instead of what is meant, where `as_clmixer` does the same.
        idle: hyperparameter -> why it does nothing here.
        extra: hyperparameters that files have though no template does.
        loss: whether it is a loss of the current data, of which several add.
    """

    function: str
    defaults: dict[str, Any]
    made: Callable[[dict[str, Any]], Made]
    note: str = ""
    weight: int = METHOD
    mistake: str = ""
    idle: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    loss: bool = False


INCORPORATION, RETENTION = "knowledge_incorporation", "knowledge_retention"
BIAS, REPRESENTATION = "bias_mitigation", "representation_learning"
FUNCTIONS = (INCORPORATION, RETENTION, BIAS, REPRESENTATION, "uncertainty_reduction")
"""CLMixer's taxonomy, with the axis of its plans that no operation has as its tag."""

RULES: dict[str, tuple[Any, ...]] = {
    "cls_budget": ("whole", 0),
    "finetune_epochs": ("whole", 1),
    "finetune_bs": ("whole", 1),
    "finetune_lr": ("number", 0.0, True),
    "temperature": ("number", 0.0, True),
    "kl_annealing_step": ("whole", 1),
    "regressor": ("choice", ("mse", "bce"), "regressor"),
    "n": ("whole", 0),
    "d": ("whole", 1),
    "epochs": ("whole", 1),
    "sampling_epochs": ("whole", 1),
    "bs": ("whole", 1),
    "lr": ("number", 0.0, True),
    "loss_coeff": ("number", 0.0),
    **{f"bic_{name}": ("number", 0.0) for name in ("epochs", "lr", "wd", "bs", "decay")},
    AS_CLMIXER: ("flag",),
}
"""Hyperparameter -> the reader of its value in `Translation`, with its arguments; others are kept as they are."""

COEFFICIENT = {"loss_coeff": 1.0}


def _memory(selection: str) -> Callable[[dict[str, Any]], Made]:
    def made(values: dict[str, Any]) -> Made:
        spec = {"name": "remember_exemplars", "per_class": values["cls_budget"], "selection": selection}
        return [(spec, {"per_class": "cls_budget"}), ({"name": "merged_replay"}, {})] if values["cls_budget"] else []

    return made


def _distillation(values: dict[str, Any]) -> Made:
    spec = {"name": "distillation", "temperature": values["temperature"], "scaled": False, "adaptive": True}
    return [({**spec, "form": "divergence"}, {"temperature": "temperature"})]


def _pooled(values: dict[str, Any]) -> Made:
    return [({"name": "pooled_distillation", "adaptive": "classes", "layers": ["backbone", "head"]}, {})]


def _interfered(values: dict[str, Any]) -> Made:
    if not values["cls_budget"]:
        return []
    exemplars = {"name": "remember_exemplars", "per_class": values["cls_budget"], "selection": "random"}
    return [(exemplars, {"per_class": "cls_budget"}), ({"name": "interfered_replay"}, {})]


def _finetune(values: dict[str, Any]) -> Made:
    keys = {"epochs": "finetune_epochs", "batch_size": "finetune_bs", "lr": "finetune_lr"}
    if not values["cls_budget"]:
        return []
    spec: Spec = {"name": "balanced_finetune", **{ours: values[theirs] for ours, theirs in keys.items()}}
    spec |= {"per_class": values["cls_budget"], "over": "memory_and_data", "equal": "repeat", "plain": True}
    return [(spec, {**keys, "per_class": "cls_budget"})]


def _evidential(values: dict[str, Any]) -> Made:
    form = {"mse": "mse", "bce": "digamma"}[values["regressor"]] if "regressor" in values else "none"
    spec: Spec = {"name": "evidential", "form": form, "evidence": "identity", "counted": "epochs"}
    spec["annealing"] = 0 if values.get(AS_CLMIXER) else values["kl_annealing_step"]
    return [(spec, {"annealing": "kl_annealing_step", **({"form": "regressor"} if "regressor" in values else {})})]


def _learned(name: str) -> Callable[[dict[str, Any]], Made]:
    def made(values: dict[str, Any]) -> Made:
        spec, keys = {"name": name, "dimensions": values["d"]}, {"dimensions": "d"}
        if values["n"]:
            spec, keys = {**spec, "points": values["n"]}, {**keys, "points": "n"}
        if values.get("lr") is not None:
            spec, keys = {**spec, "rate": values["lr"]}, {**keys, "rate": "lr"}
        return [(spec, keys)]

    return made


def _loss(name: str, **arguments: Any) -> Callable[[dict[str, Any]], Made]:
    def made(values: dict[str, Any]) -> Made:
        return [({"name": name, **arguments, **({"double_softmax": True} if values.get(AS_CLMIXER) else {})}, {})]

    return made


def _projection(values: dict[str, Any]) -> Made:
    return [*_loss("cross_entropy")(values), *_learned("common_minimum")(values)]


def _align(values: dict[str, Any]) -> Made:
    wrong = {"at": "outputs", "classes": "old"} if values.get(AS_CLMIXER) else {}
    return [({"name": "weight_align", **wrong}, {})]


def _one(name: str, **arguments: Any) -> Callable[[dict[str, Any]], Made]:
    return lambda values: [({"name": name, **arguments}, {})]


SECOND = (
    "is the cross-entropy of the outputs; CLMixer puts them through a softmax before, so that there is a second softmax"
)
FILLED = "is left out; CLMixer writes into it while it trains"
FITTED = "epochs does nothing: the fit of what was measured takes 200 steps of Adam over all points at once"
BIC = "does nothing: the two numbers are fitted to their minimum, in closed form"
SURROGATE: dict[str, Any] = {"approximators": [], "current_task_loss_dataset": [], "n": 10000, "d": 2}
SURROGATE_IDLE = {
    "approximators": FILLED,
    "current_task_loss_dataset": FILLED,
    "epochs": FITTED,
    "bs": "does nothing: the fit takes all points at once",
    "sampling_epochs": FITTED,
}
SURROGATE_EXTRA: dict[str, Any] = {**COEFFICIENT, "epochs": 100, "bs": 32, "lr": None, "sampling_epochs": 100}

KNOWN: dict[str, Known] = {
    "CrossEntropyOperation": Known(
        INCORPORATION, {}, _loss("cross_entropy"), mistake=SECOND, extra=COEFFICIENT, loss=True
    ),
    "MSEOperation": Known(INCORPORATION, {}, _loss("one_hot_error"), extra=COEFFICIENT, loss=True),
    "WeightedCrossEntropyOperation": Known(
        INCORPORATION,
        {},
        _loss("weighted_cross_entropy", scheme="complement"),
        "the network goes on from one experience to the next; CLMixer resets its mixing coefficients, and stops with "
        "an error where it has none.",
        mistake=SECOND,
        extra=COEFFICIENT,
        loss=True,
    ),
    "CrossEntropyProjectionOperation": Known(
        INCORPORATION,
        {"n": 0, "d": 2, "epochs": 1},
        _projection,
        "after each experience the weights move to the minimum of what was learned of all losses (CLMixer looks for a "
        "point in all subspaces at once, draws and shows plots).",
        mistake=SECOND,
        idle=SURROGATE_IDLE,
        extra={"approximators": [], "current_task_loss_dataset": [], **SURROGATE_EXTRA},
        loss=True,
    ),
    "RandomMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _memory("random"),
        "exemplars are drawn without replacement; CLMixer draws some of them twice.",
        DATA,
    ),
    "NCMMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _memory("herding"),
        "herding as in the iCaRL paper; CLMixer gives its exemplars wrong labels, and keeps one too few.",
    ),
    "KnowledgeDistillationOperation": Known(RETENTION, {"temperature": 2.0}, _distillation, extra=COEFFICIENT),
    "PodLossOperation": Known(RETENTION, {}, _pooled, extra=COEFFICIENT),
    "MIRMemoryUpdaterOperation": Known(
        RETENTION,
        {"cls_budget": 10},
        _interfered,
        "replays 10 of 50 samples drawn whose loss a virtual step raises most; CLMixer's replay loss stays 0, and it "
        "counts the other losses twice.",
    ),
    "LossApproxOperation": Known(
        RETENTION,
        SURROGATE,
        _learned("loss_surrogate"),
        "the old losses as learned along d directions, and a pull back to where they were learned; CLMixer lets the "
        "weights leave the d directions freely, and needs cuda:0.",
        idle=SURROGATE_IDLE,
        extra=SURROGATE_EXTRA,
    ),
    "LossLandscapeOperation": Known(
        RETENTION,
        SURROGATE,
        _learned("loss_surrogate"),
        "the old losses as learned along d directions, of all weights, and a pull back to where they were learned; "
        "CLMixer trains a classifier of d numbers instead of the model's, and needs cuda:0.",
        idle=SURROGATE_IDLE,
        extra=SURROGATE_EXTRA,
    ),
    "FinetuneOperation": Known(
        BIAS,
        {"finetune_epochs": 100, "finetune_bs": 32, "finetune_lr": 0.001, "cls_budget": 15},
        _finetune,
        mistake="leaves the memory as it is; CLMixer puts what it draws, cls_budget of a class, in its place",
    ),
    "WeightAlignOperation": Known(
        BIAS,
        {},
        _align,
        mistake="scales the new classes of a linear head; CLMixer scales the outputs of the old classes, or none, by "
        "lengths that its cosine classifier ignores",
    ),
    "BICOperation": Known(
        BIAS,
        {},
        _one("bias_correction"),
        "corrects the new classes' outputs, fitted on 20 samples of a class that are not trained on; CLMixer's stops "
        "with an error, and shifts all classes alike, which changes no answer.",
        idle={f"bic_{name}": BIC for name in ("epochs", "lr", "wd", "bs", "decay")},
        extra={"bic_epochs": 0, "bic_lr": 0.0, "bic_wd": 0.0, "bic_bs": 0, "bic_decay": 0.0},
    ),
    "DirichletUncertaintyLossOperation": Known(
        BIAS,
        {"kl_annealing_step": 150, "regressor": "mse"},
        _evidential,
        "runs, and keeps every alpha at 0.001 or more; CLMixer's stops with a TypeError.",
        extra=COEFFICIENT,
        loss=True,
    ),
    "DirichletKLLossOperation": Known(
        BIAS,
        {"kl_annealing_step": 150},
        _evidential,
        mistake="grows to its whole weight over kl_annealing_step epochs, with every alpha at 0.001 or more; CLMixer "
        "computes that factor and never applies it",
        extra=COEFFICIENT,
        loss=True,
    ),
    "DuplicateNetworkBackboneOperation": Known(
        REPRESENTATION,
        {},
        _one("duplicate_backbone"),
        "the head reads the features of all copies; CLMixer's is never widened, and stops with an error of shapes.",
    ),
    "FreezeNetworkBackboneOperation": Known(
        REPRESENTATION,
        {},
        _one("freeze_backbone"),
        "statistics of normalisation are frozen too; CLMixer lets them go on.",
    ),
}
"""CLMixer's name -> what it stands for."""

OLD_NAMES = {
    "cross_entropy": "CrossEntropyOperation",
    "random_memory": "RandomMemoryUpdaterOperation",
    "ncm_memory": "NCMMemoryUpdaterOperation",
    "ncm_icarl": "NCMMemoryUpdaterOperation",
    "mir_memory": "MIRMemoryUpdaterOperation",
    "knowledge_distillation": "KnowledgeDistillationOperation",
    "pod_loss": "PodLossOperation",
    "finetune_network": "FinetuneOperation",
    "WA": "WeightAlignOperation",
    "BIC": "BICOperation",
    "dirichlet_uncertainty_loss": "DirichletUncertaintyLossOperation",
    "duplicate_network": "DuplicateNetworkBackboneOperation",
    "freeze_network": "FreezeNetworkBackboneOperation",
}
"""What CLMixer called an operation in its first files -> what it calls it since."""

WITHOUT_EFFECT = {
    "grow_network": "is left out: the head has an output for every class here, or grows by itself",
    "aligned_init": "is left out: CLMixer's operation of that name has no body, and does nothing",
    "lfw_init": "is left out: CLMixer's operation of that name has no body, and does nothing",
    "prune_network": "is left out: CLMixer's operation of that name has no body, and does nothing",
}
"""Operations of CLMixer's first files that need nothing here -> why."""
