"""What CLMixer's plugins compose to, and that a step's loss is the number that its formulas give, in NumPy."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.compat.clmixer import translated
from holdfast.compat.clmixer_operations import KNOWN
from holdfast.config.build import build_method, build_model
from holdfast.core.engine import Engine
from holdfast.core.experience import Batch, Experience, Stream
from holdfast.core.learner import Learner
from holdfast.core.needs import TRAINER
from holdfast.core.step import Now
from holdfast.streams.data import TensorData

CLASSES, FEATURES, HIDDEN = 6, 5, 7
LOSSES = [name for name, about in KNOWN.items() if about.loss]
COMPOSED = {
    "CrossEntropyOperation": ["cross_entropy"],
    "MSEOperation": ["one_hot_error"],
    "WeightedCrossEntropyOperation": ["weighted_cross_entropy"],
    "CrossEntropyProjectionOperation": ["cross_entropy", "common_minimum"],
    "RandomMemoryUpdaterOperation": ["remember_exemplars", "merged_replay"],
    "NCMMemoryUpdaterOperation": ["remember_exemplars", "merged_replay"],
    "KnowledgeDistillationOperation": ["distillation"],
    "PodLossOperation": ["pooled_distillation"],
    "MIRMemoryUpdaterOperation": ["remember_exemplars", "interfered_replay"],
    "LossApproxOperation": ["loss_surrogate"],
    "LossLandscapeOperation": ["loss_surrogate"],
    "FinetuneOperation": ["remember_exemplars", "balanced_finetune"],
    "WeightAlignOperation": ["weight_align"],
    "BICOperation": ["bias_correction"],
    "DirichletUncertaintyLossOperation": ["evidential"],
    "DirichletKLLossOperation": ["evidential"],
    "DuplicateNetworkBackboneOperation": ["duplicate_backbone"],
    "FreezeNetworkBackboneOperation": ["freeze_backbone"],
}
"""The table of the closing note: what each of CLMixer's 18 operations is composed to."""


# CLMixer's formulas ----------------------------------------------------------------------------------------


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def one_hot(targets: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[targets]


def digamma(values: np.ndarray) -> np.ndarray:
    """The derivative of log gamma, by its recurrence and its asymptotic series."""
    values, shift = np.array(values, dtype=float), np.zeros(np.shape(values))
    while (values < 6).any():
        low = values < 6
        shift = shift - np.where(low, 1 / values, 0)
        values = values + low
    inverse = 1 / values**2
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse / 240)))
    return shift + np.log(values) - 0.5 / values - series


lgamma = np.vectorize(math.lgamma)


def cross_entropy(at: Any, outputs: np.ndarray) -> float:
    chosen = softmax(outputs)[np.arange(len(at.targets)), at.targets]
    return float(-np.log(chosen).mean())


def squared(at: Any, outputs: np.ndarray) -> float:
    return float(((outputs - one_hot(at.targets)) ** 2).mean())


def weighted(at: Any, outputs: np.ndarray) -> float:
    weights = (2 - at.new / at.new.max())[at.targets]
    losses = -np.log(softmax(outputs)[np.arange(len(at.targets)), at.targets])
    return float((weights * losses).sum() / weights.sum())


def divergence(alpha: np.ndarray) -> np.ndarray:
    total = alpha.sum(1, keepdims=True)
    constant = lgamma(total[:, 0]) - lgamma(alpha).sum(1) - math.lgamma(alpha.shape[1])
    return constant + ((alpha - 1) * (digamma(alpha) - digamma(total))).sum(1)


def annealed(at: Any, outputs: np.ndarray) -> float:
    evidence = np.maximum(outputs + 1, 1e-3) - 1
    term = divergence(evidence * (1 - one_hot(at.targets)) + 1)
    return float(min(1.0, at.epoch / 150) * term.mean())


def dirichlet(at: Any, outputs: np.ndarray) -> float:
    alpha, wanted = np.maximum(outputs + 1, 1e-3), one_hot(at.targets)
    total = alpha.sum(1, keepdims=True)
    error = ((wanted - alpha / total) ** 2).sum(1)
    spread = (alpha * (total - alpha) / (total**2 * (total + 1))).sum(1)
    return float((error + spread).mean()) + annealed(at, outputs)


def dirichlet_digamma(at: Any, outputs: np.ndarray) -> float:
    alpha, wanted = np.maximum(outputs + 1, 1e-3), one_hot(at.targets)
    total = alpha.sum(1, keepdims=True)
    return float((wanted * (digamma(total) - digamma(alpha))).sum(1).mean()) + annealed(at, outputs)


def distilled(at: Any, outputs: np.ndarray) -> float:
    old, new = softmax(at.old_outputs[:, at.old] / 2.0), softmax(outputs[:, at.old] / 2.0)
    return float((old * np.log(old / new)).sum(1).mean()) * len(at.old) / at.present


def pooled(at: Any, outputs: np.ndarray) -> float:
    def unit(values: np.ndarray) -> np.ndarray:
        return values**2 / np.linalg.norm(values**2, axis=1, keepdims=True)

    levels = [(at.old_features, at.features), (at.old_outputs, outputs)]
    norms = [np.linalg.norm(unit(before) - unit(today), axis=1).mean() for before, today in levels]
    return float(np.mean(norms)) * len(at.old) / at.present


FORMULAS = {
    "CrossEntropyOperation": cross_entropy,
    "MSEOperation": squared,
    "WeightedCrossEntropyOperation": weighted,
    "CrossEntropyProjectionOperation": cross_entropy,
    "DirichletUncertaintyLossOperation": dirichlet,
    "DirichletKLLossOperation": annealed,
}
BESIDE = {"KnowledgeDistillationOperation": distilled, "PodLossOperation": pooled}


# A step ----------------------------------------------------------------------------------------------------


class At:
    """One step of the second experience: what CLMixer's formulas need, and the loss that the engine made."""

    def __init__(self, plugins: list[dict[str, Any]], epoch: int = 0, second: tuple[int, ...] = (3, 4, 5)) -> None:
        made = translated({"plugins": plugins, "model": {"model_type": "mlp", "hidden_size": HIDDEN}})
        self.job, self.notes = made.job, made.notes
        self.method = build_method(made.job["method"])
        stream = Stream([], (FEATURES,), CLASSES)
        model = build_model(made.job["model"], stream, 3)
        engine = Engine(self.method, Learner(model, seed=1), TRAINER.offers)
        generator = torch.Generator().manual_seed(5)

        def experience(index: int, classes: tuple[int, ...]) -> Experience:
            targets = torch.tensor(classes).repeat_interleave(torch.arange(1, len(classes) + 1) * 4)
            inputs = torch.randn(len(targets), FEATURES, generator=generator)
            return Experience(index, TensorData(inputs, targets), classes=classes)

        model.train()
        first = experience(0, (0, 1, 2))
        opened, _ = engine.begin(first)
        self._step(engine, opened, 0)
        engine.end(opened)
        before = copy.deepcopy(model).eval()
        new = experience(1, second)
        opened, _ = engine.begin(new)
        for _ in range(epoch):
            self._step(engine, opened, 0, move=False)
        captured: list[torch.Tensor] = []
        hook = model.backbone.register_forward_hook(lambda _, __, output: captured.append(output))
        step, self.loss = self._step(engine, opened, 0, move=False)
        hook.remove()
        data = opened.train
        self.epoch = epoch
        self.targets = step.targets.numpy()
        self.outputs = step.outputs.detach().double().numpy()
        self.features = captured[0].detach().double().numpy()
        self.old = [0, 1, 2]
        self.present = len(torch.unique(data.targets))
        self.counts = np.bincount(data.targets.numpy(), minlength=CLASSES)
        self.new = np.bincount(new.train.targets.numpy(), minlength=CLASSES)
        with torch.no_grad():
            self.old_features = before.backbone(step.inputs).double().numpy()
            self.old_outputs = before(step.inputs).double().numpy()
        self.engine, self.data = engine, data

    @staticmethod
    def _step(engine: Engine, opened: Experience, index: int, move: bool = True) -> Any:
        total = []

        def update(step: Any, weight: float, last: bool) -> None:
            engine.accumulate(step)
            losses = dict(engine.services.logged)
            inner = {one.name for one in engine.method if one.adds}
            total.append(sum(float(v) * f for name in losses if name not in inner for v, f in losses[name]))
            if move:
                with torch.no_grad():
                    for parameter in engine.learner.parameters():
                        if parameter.grad is not None:
                            parameter -= 0.5 * parameter.grad
            for parameter in engine.learner.parameters():
                parameter.grad = None

        engine.services.logged.clear()
        rows = torch.arange(len(opened.train))
        batch = opened.train.gather(rows)
        step = engine.step(Batch(batch.inputs, batch.targets), Now(index, 0.0, 0.0), update)
        return step, total[0]


def plugin(name: str, **hyperparameters: Any) -> dict[str, Any]:
    return {"name": name, "hyperparameters": {**KNOWN[name].defaults, **hyperparameters}}


def small(name: str) -> dict[str, Any]:
    """A plugin whose research part takes no time."""
    return plugin(name, **({"n": 6} if "n" in KNOWN[name].defaults else {}))


@pytest.mark.parametrize("name", COMPOSED)
def test_every_operation_is_composed_of_what_the_table_says(name: str) -> None:
    made = translated({"plugins": [plugin(name), *([] if KNOWN[name].loss else [plugin("CrossEntropyOperation")])]})
    found = [one["name"] for one in made.job["method"].get("operations", [])]
    if "cross_entropy" in COMPOSED[name] or not KNOWN[name].loss:
        assert made.job["criterion"] == "cross_entropy"  # the default job's loss, which needs no operation
    assert found == [one for one in COMPOSED[name] if one != "cross_entropy"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_loss_is_clmixers_formula(name: str) -> None:
    at = At([small(name)], epoch=3)
    assert at.loss == pytest.approx(FORMULAS[name](at, at.outputs), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(LOSSES, 2)))
def test_losses_of_every_pair_add(first: str, second: str) -> None:
    at = At([small(first), small(second)], epoch=2)
    wanted = FORMULAS[first](at, at.outputs) + FORMULAS[second](at, at.outputs)
    assert at.loss == pytest.approx(wanted, rel=2e-5)
    assert len([one for one in at.method if one.adds]) == 2


@pytest.mark.parametrize("retention", BESIDE)
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("loss", ["CrossEntropyOperation", "MSEOperation"])
def test_retention_losses_have_clmixers_ratio_of_classes_replayed_ones_included(
    retention: str, memory: bool, loss: str
) -> None:
    plugins = [plugin("RandomMemoryUpdaterOperation", cls_budget=2)] if memory else []
    at = At([*plugins, plugin(retention), plugin(loss)])
    assert at.present == (6 if memory else 3)
    wanted = FORMULAS[loss](at, at.outputs) + BESIDE[retention](at, at.outputs)
    assert at.loss == pytest.approx(wanted, rel=2e-5)


def test_the_bce_regressor_is_the_digamma_form() -> None:
    at = At([plugin("DirichletUncertaintyLossOperation", regressor="bce", kl_annealing_step=150)], epoch=4)
    assert at.loss == pytest.approx(dirichlet_digamma(at, at.outputs), rel=2e-5)


OTHERS = [name for name in COMPOSED if name not in LOSSES and name not in BESIDE]


@pytest.mark.parametrize("name", OTHERS)
def test_operations_without_a_loss_of_their_own_leave_the_steps_loss_alone(name: str) -> None:
    """Of the two surrogates and of MIR the later losses are ours, and a note says so."""
    at = At([plugin("CrossEntropyOperation"), small(name)])
    if name in ("LossApproxOperation", "LossLandscapeOperation", "MIRMemoryUpdaterOperation"):
        assert any(note.startswith(f"plugins.1 ({name})") for note in at.notes)
        return
    assert at.loss == pytest.approx(cross_entropy(at, at.outputs), rel=2e-5)


@pytest.mark.parametrize("first", ["WeightedCrossEntropyOperation", "RandomMemoryUpdaterOperation"])
def test_weights_of_classes_count_the_new_data_and_not_what_is_replayed(first: str) -> None:
    plugins = [plugin("WeightedCrossEntropyOperation"), plugin("RandomMemoryUpdaterOperation", cls_budget=3)]
    at = At(plugins if plugins[0]["name"] == first else plugins[::-1])
    assert at.counts[:3].tolist() == [3, 3, 3]
    assert at.new[:3].tolist() == [0, 0, 0]
    assert at.loss == pytest.approx(weighted(at, at.outputs), rel=2e-5)


def test_a_coefficient_is_a_weight() -> None:
    at = At([plugin("CrossEntropyOperation", loss_coeff=0.5), plugin("MSEOperation", loss_coeff=2.0)])
    assert at.loss == pytest.approx(0.5 * cross_entropy(at, at.outputs) + 2 * squared(at, at.outputs), rel=2e-5)
    assert set(at.engine.services.logged) >= {"cross_entropy", "one_hot_error", "loss"}


# CLMixer's own mistakes, where a file asks for them --------------------------------------------------------


@pytest.mark.parametrize("name", ["CrossEntropyOperation", "WeightedCrossEntropyOperation"])
def test_the_second_softmax_can_be_asked_for(name: str) -> None:
    at = At([plugin(name, as_clmixer=True)])
    assert at.loss == pytest.approx(FORMULAS[name](at, softmax(at.outputs)), rel=2e-5)
    assert not any("second softmax" in note for note in at.notes)
    assert any("second softmax" in note for note in At([plugin(name)]).notes)


def test_a_divergence_that_is_never_annealed_can_be_asked_for() -> None:
    at = At([plugin("MSEOperation"), plugin("DirichletKLLossOperation", as_clmixer=True)])
    at.epoch = 10**6
    assert at.loss == pytest.approx(squared(at, at.outputs) + annealed(at, at.outputs), rel=2e-5)


@pytest.mark.parametrize(("wrong", "scaled"), [(False, (3, 4, 5)), (True, (0, 1, 2))])
def test_weight_alignment_scales_the_new_classes_or_as_in_clmixer_the_old_ones(
    wrong: bool, scaled: tuple[int, ...]
) -> None:
    at = At([plugin("CrossEntropyOperation"), plugin("WeightAlignOperation", as_clmixer=wrong)])
    assert at.job["model"]["head"] == ("plain_cosine" if wrong else "fixed")
    model = at.engine.learner.model.eval()
    inputs = torch.randn(9, FEATURES)
    with torch.no_grad():
        before = model(inputs)
        norms = torch.cat([part.weight.norm(dim=1) for part in model.head.parts()])
        at.engine.end(Experience(1, at.data, classes=(3, 4, 5)))
        after = at.engine.predict(inputs)
    factor = norms[[0, 1, 2]].mean() / norms[[3, 4, 5]].mean()
    others = [label for label in range(CLASSES) if label not in scaled]
    assert torch.equal(before[:, others], after[:, others])
    if wrong:
        assert torch.allclose(after[:, list(scaled)], before[:, list(scaled)] * factor)
    assert not torch.allclose(before[:, list(scaled)], after[:, list(scaled)])


def test_finetuning_takes_as_many_of_each_class_from_memory_and_data_and_plain_cross_entropy() -> None:
    plugins = [plugin("RandomMemoryUpdaterOperation", cls_budget=2), plugin("MSEOperation")]
    at = At([*plugins, plugin("FinetuneOperation", finetune_epochs=1, cls_budget=9, finetune_bs=1000)])
    tuned = next(one for one in at.method if one.name == "balanced_finetune")
    head = at.engine.learner.head
    before = [parameter.detach().clone() for parameter in head.parameters()]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    criterion = torch.nn.functional.cross_entropy

    def watched(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((outputs.detach(), targets))
        return criterion(outputs, targets)

    torch.nn.functional.cross_entropy = watched
    try:
        tuned.end(Experience(1, at.data, classes=(3, 4, 5)), at.engine.services)
    finally:
        torch.nn.functional.cross_entropy = criterion
    assert torch.bincount(seen[0][1]).tolist() == [9] * 6
    assert not all(torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))


def test_as_clmixer_finetuning_takes_the_place_of_the_memorys_budget() -> None:
    memory, tuned = plugin("RandomMemoryUpdaterOperation"), plugin("FinetuneOperation", as_clmixer=True)
    ce = plugin("CrossEntropyOperation")

    def budgets(*plugins: Any) -> list[int]:
        operations = translated({"plugins": list(plugins)}).job["method"]["operations"]
        return [one["per_class"] for one in operations if one["name"] == "remember_exemplars"]

    assert budgets(ce, memory, tuned) == [15]
    assert budgets(ce, tuned, memory) == [10]
    assert budgets(ce, memory, plugin("FinetuneOperation")) == [10]
    assert budgets(ce, plugin("NCMMemoryUpdaterOperation", cls_budget=3), memory) == [3, 10]
