"""Bugs that other libraries shipped, one direct test per line of the list of known bugs that the present code touches.

Each test names its line. Most lines have closer tests beside the code they are about; here each is shown once, as a
user would meet it. Line 18 (a producer that dies, back-pressure) is not among them: it waits for streaming sources.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast.methods
from holdfast.config.build import build_method, resolve
from holdfast.core.boundary import Every
from holdfast.core.engine import Engine
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Experience
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS
from holdfast.core.step import Step
from holdfast.memory import Memory, Reservoir, select_herding, select_random
from holdfast.methods import agem, der, ewc, finetune, hat, lwf, mir, si
from holdfast.metrics import accuracy_matrix, average_accuracy, forgetting_first, forgetting_max
from holdfast.operations import (
    BiasCorrection,
    CrossEntropy,
    CumulativeData,
    Evidential,
    FisherPenalty,
    JointData,
    MaskedCrossEntropy,
    PathPenalty,
    Remember,
    Replay,
    WeightAlign,
    WeightedCrossEntropy,
)
from holdfast.operations.gradient_projection import project
from holdfast.streams import permuted, split
from holdfast.streams.data import TensorData
from holdfast.streams.datasets import synthetic
from holdfast.testing.toys import model_for
from holdfast.training import Continual, Trainer
from holdfast.training.evaluation import evaluate


def _one_step(engine: Engine, x: torch.Tensor, y: torch.Tensor, lr: float = 0.0) -> None:
    outputs = engine.learner(x)
    step = Step(x, y, F.cross_entropy(outputs, y), outputs)
    for p in engine.learner.parameters():
        p.grad = None
    engine.backward(step)
    with torch.no_grad():
        for p in engine.learner.parameters():
            p -= lr * p.grad
    engine.update(step)


def _points(rows: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randint(3, (rows,), generator=generator)


@pytest.mark.parametrize("penalty", [PathPenalty, FisherPenalty])
def test_the_penalty_of_si_has_a_gradient_and_that_of_ewc_is_not_zero_by_default(penalty: Any) -> None:
    """Line 1: Synapse detaches SI's penalty; InSituML's and Avalanche's EWC do nothing by default."""
    torch_model = nn.Linear(4, 3)
    engine = Engine(Method(penalty()), Learner(torch_model), NEEDS)
    (operation,) = engine.method.operations
    x, y = _points()
    experience = Experience(0, TensorData(x, y), classes=(0, 1, 2))
    engine.begin(experience)
    for _ in range(3):
        _one_step(engine, x, y, lr=0.3)
    engine.end(experience)
    with torch.no_grad():
        torch_model.weight.add_(0.5)
    term, factor = operation.loss(None, engine.learner)
    assert float(term.detach()) * factor > 0
    assert torch.autograd.grad(term, torch_model.weight)[0].abs().sum() * factor > 0


@pytest.mark.parametrize("per_layer", [False, True])
def test_agem_touches_nothing_without_a_conflict_and_leaves_none_with_one(per_layer: bool) -> None:
    """Line 2: Synapse leaves the memory's gradient in place; a zero reference must not divide by zero."""
    g = [torch.tensor([1.0, 2.0]), torch.tensor([[-3.0]])]
    for reference in ([0.5 * v for v in g], [0.0 * v for v in g]):
        kept = [v.clone() for v in g]
        project(kept, reference, per_layer)
        assert all(torch.equal(a, b) for a, b in zip(kept, g, strict=True))
    reference = [torch.tensor([-1.0, 0.5]), torch.tensor([[2.0]])]
    project(g, reference, per_layer)
    assert sum(float((a * b).sum()) for a, b in zip(g, reference, strict=True)) >= -1e-6


def test_agem_survives_gradients_that_are_zeroed_instead_of_dropped() -> None:
    """Line 2: InSituML keeps a view of the gradient."""
    ends = []
    for set_to_none in (True, False):
        torch_model = nn.Linear(4, 3)
        with torch.no_grad():
            torch_model.weight.fill_(0.1)
            torch_model.bias.zero_()
        optimizer = torch.optim.SGD(torch_model.parameters(), lr=0.5)
        cl = Continual(torch_model, agem(capacity=6, size=6), optimizer)
        for seed in range(5):
            x, y = _points(seed=0)
            loss = F.cross_entropy(torch_model(x), (y + seed) % 3)
            optimizer.zero_grad(set_to_none=set_to_none)
            cl.backward(loss, (y + seed) % 3, inputs=x)
            optimizer.step()
        ends.append(torch_model.weight.detach().clone())
    assert torch.equal(*ends)


def test_stored_logits_are_the_models_own_for_every_item_of_the_batch() -> None:
    """Line 3: Synapse stores other samples' logits and drops items beyond the replay size."""
    engine = Engine(der(capacity=40, size=2), Learner(nn.Linear(4, 3)), NEEDS)
    x, y = _points(rows=20)
    expected = engine.learner.model(x).detach().clone()
    _one_step(engine, x, y, lr=1.0)
    held = engine.learner.memory.all()
    assert torch.equal(held["inputs"], x)
    assert torch.equal(held["logits"], expected)


def test_a_reservoir_keeps_every_sample_with_equal_probability_also_after_a_load() -> None:
    """Line 4: slot 0 included, and the count of samples seen survives."""
    held = torch.zeros(40)
    for seed in range(3000):
        memory = Memory(8, insertion=Reservoir(torch.Generator().manual_seed(seed)))
        memory.add({"inputs": torch.arange(20), "targets": torch.arange(20)})
        fresh = Memory(8, insertion=Reservoir(torch.Generator()))
        fresh.load(memory.state())
        fresh.add({"inputs": torch.arange(20, 40), "targets": torch.arange(20, 40)})
        assert fresh.seen == 40
        held[fresh.all()["targets"]] += 1
    expected = 3000 * 8 / 40
    deviation = (held - expected) / (expected * (1 - 8 / 40)) ** 0.5
    assert float(deviation.abs().max()) < 4.5
    assert 0.6 < float(deviation.square().mean()) < 1.6


def test_random_exemplars_have_no_repeats_and_herded_ones_are_nearest_to_the_mean() -> None:
    """Line 4: random exemplars without replacement; herding's indices are those of its own samples."""
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    chosen = select_random(features, 12, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == 12
    herded = select_herding(features, 4)
    unit = F.normalize(features, dim=1)
    candidates = [(float((unit.mean(0) - unit[i]).norm()), i) for i in range(30)]
    assert int(herded[0]) == min(candidates)[1]
    assert len(set(herded.tolist())) == 4


def _two_experiences(operation: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Engine:
    """Classes 0 and 1, then 2 and 3, with no training in between."""
    engine = Engine(Method(operation), Learner(model), NEEDS)
    for index, classes in enumerate(((0, 1), (2, 3))):
        rows = (y == classes[0]) | (y == classes[1])
        opened, _ = engine.begin(Experience(index, TensorData(x[rows], y[rows]), classes=classes))
        engine.end(opened)
    return engine


@pytest.mark.parametrize("operation", [WeightAlign(), BiasCorrection(held_out=6)])
def test_alignment_and_bias_correction_change_the_new_classes_alone_and_the_arg_max(operation: Any) -> None:
    """Line 5: a factor for every class, or one for old classes, would correct nothing."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(48) % 4
    x = F.one_hot(y, 4) + 0.3 * torch.randn(48, 4, generator=generator)
    torch_model = nn.Linear(4, 4)
    with torch.no_grad():
        torch_model.weight.copy_(torch.eye(4))
        torch_model.weight[2:] *= 6
        torch_model.weight[2:, :2] += 2
        torch_model.bias.zero_()
    before = torch_model(x).detach().clone()
    engine = _two_experiences(operation.clone(), torch_model, x, y)
    with engine.evaluating(), torch.no_grad():
        after = engine.predict(x)
    assert torch.equal(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2:], before[:, 2:])
    assert (after.argmax(1) == y).float().mean() > (before.argmax(1) == y).float().mean() + 0.2


@pytest.mark.parametrize("loss", [CrossEntropy(), WeightedCrossEntropy(), MaskedCrossEntropy(over="batch")])
def test_cross_entropy_is_taken_of_the_outputs_and_not_of_their_softmax(loss: Any) -> None:
    """Line 6: on a softmax, ten classes could never get below 1.46."""
    targets = torch.arange(10)
    sure = 30.0 * F.one_hot(targets, 10).float()
    engine = Engine(Method(loss.clone()), Learner(nn.Linear(2, 10)), NEEDS)
    assert float(engine.criterion(sure, targets, sure)) < 1e-6


@pytest.mark.parametrize("form", ["mse", "log", "digamma"])
@pytest.mark.parametrize("evidence", ["softplus", "relu", "exp"])
def test_evidential_losses_are_finite_and_their_annealing_is_applied(form: Any, evidence: Any) -> None:
    """Line 6: evidence of large outputs overflowed, and the annealed divergence never entered."""
    loss = Evidential(form=form, evidence=evidence, annealing=10)
    targets = torch.tensor([0, 1, 2])
    for scale in (0.0, 1.0, 1e4, -1e4):
        outputs = (scale * torch.tensor([[1.0, -1.0, 0.5]]).repeat(3, 1)).requires_grad_()
        value = loss.measure(outputs, targets)
        assert value.isfinite()
        assert torch.autograd.grad(value, outputs)[0].isfinite().all()
    outputs = torch.tensor([[1.0, -1.0, 0.5]]).repeat(3, 1)
    values = []
    for loss.steps in (0, 5, 10, 100):
        values.append(float(loss.measure(outputs, targets)))
    assert values[0] < values[1] < values[2] == values[3]


def test_interfered_replay_replays_and_its_virtual_step_leaves_the_model_alone() -> None:
    """Line 7: a virtual step on the model itself, or no term at all."""
    engine = Engine(mir(capacity=12, size=2, candidates=6, rate=10.0), Learner(nn.Linear(4, 3)), NEEDS)
    for seed in range(3):
        _one_step(engine, *_points(seed=seed))
    weights = [p.detach().clone() for p in engine.learner.parameters()]
    x, y = _points(seed=9)
    outputs = engine.learner(x)
    step = Step(x, y, F.cross_entropy(outputs, y), outputs)
    for p in engine.learner.parameters():
        p.grad = None
    term, factor = engine.method.operations[0].loss(step, engine.learner)
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.learner.parameters(), strict=True))
    assert all(p.grad is None for p in engine.learner.parameters())
    assert float(term.detach()) * factor > 0
    assert torch.autograd.grad(term, engine.learner.parameters()[0])[0].abs().sum() > 0


def test_the_gates_of_hard_attention_sharpen_within_each_epoch(toy: Any) -> None:
    """Line 8: annealed over the run instead, or the other way round."""
    stream = toy.stream("task")
    model = toy.model(stream, "task")
    method = hat(s_max=50.0)
    engine = Trainer(method, evaluate="none").bind(model, stream)
    sharpness: list[float] = []
    model.train()
    for engine.learner.epoch_progress in (0.0, 0.5, 1.0):
        sharpness.append(method.operations[0].sharpness)
    assert sharpness[0] == pytest.approx(1 / 50)
    assert sharpness[0] < sharpness[1] < sharpness[2] == pytest.approx(50)


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, {"name": "Adam", "lr": 0.01}],
    ids=["momentum", "adam"],
)
def test_what_a_task_used_under_hard_attention_stays_to_the_bit(toy: Any, optimizer: dict[str, Any]) -> None:
    """Line 8: momentum, weight decay and Adam move a unit whose gradient is zero."""
    stream = toy.stream("task")
    model, answers = toy.model(stream, "task"), []
    inputs = stream[0].test.gather(torch.arange(4)).inputs

    def answer(event: dict[str, Any]) -> None:
        if event["event"] == "experience":
            with trainer.engine.evaluating(), torch.no_grad():
                answers.append(trainer.engine.predict(inputs, 0)[:, :2].clone())

    trainer = Trainer(hat(), optimizer=optimizer, batch_size=4, epochs=3, evaluate="none", record=answer)
    trainer.fit(model, stream)
    assert len(answers) == 3
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("factory", [der, ewc, si, lwf])
def test_a_head_that_appears_mid_run_is_optimised_and_old_penalties_survive_it(factory: Any, toy: Any) -> None:
    """Line 9: DER crashes in CLArena and RWalk in Avalanche when the head grows."""
    for head, paradigm in (("growing", "class"), ("task", "task")):
        stream = toy.stream(paradigm)
        model = toy.model(stream, head)
        trainer = Trainer(factory(), optimizer={"name": "SGD", "lr": 0.05}, batch_size=4, evaluate="none")
        seen: list[torch.Tensor] = []
        grown = trainer.bind(model, stream).learner.on_growth
        grown.append(lambda new, seen=seen: seen.extend(p.detach().clone() for p in new))
        started = toy.model(stream, head)
        trainer = toy.train(factory(), started, stream)
        held = {id(p) for group in trainer.optimization.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in started.parameters()} == held
        assert started.head.width == 6
        assert all(p.isfinite().all() for p in started.parameters())


def test_evaluation_creates_no_outputs_for_tasks_to_come(toy: Any) -> None:
    """Line 9: evaluation of a future task predicts nothing and makes nothing."""
    stream = toy.stream("task")
    trainer = Trainer(finetune(), evaluate="none")
    model = toy.model(stream, "task")
    engine = trainer.bind(model, stream)
    engine.begin(stream[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(engine, stream[2].test, stream[2].classes, stream[2].task)
    assert found["correct"] == 0
    assert model.head.width == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", holdfast.methods.__all__)
def test_a_scheduler_given_by_the_user_steps_in_every_method(name: str, toy: Any) -> None:
    """Line 10: CLArena ignores it in most methods."""
    method = getattr(holdfast.methods, name)()
    stream = toy.stream_for(method, experiences=2, classes=4, samples=4)
    head = "task" if "task" in method.needs else "fixed"
    model = model_for(method)(stream, head)
    made: list[Any] = []

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        made.append(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5))
        return made[-1]

    trainer = toy.train(method, model, stream, scheduler=schedule, scheduler_every="step", log_every=1)
    rates: dict[int, list[float]] = {}
    for event in trainer.events:
        if event["event"] == "train":
            rates.setdefault(event["experience"], []).append(event["lr"])
    assert len(made) == 2
    assert rates or name in ("random", "ranpac", "simple_cil"), "nothing was trained"
    for found in rates.values():
        assert found == pytest.approx([0.05 * 0.5 ** (step + 1) for step in range(len(found))])


def test_a_memory_reports_its_bytes_and_lets_go_of_what_it_no_longer_holds() -> None:
    """Line 11: Avalanche's views keep all past data alive."""
    memory = Memory(10, insertion=Reservoir(torch.Generator().manual_seed(0)))
    batch = torch.zeros(1000, 50, dtype=torch.uint8)
    memory.add({"inputs": batch, "targets": torch.zeros(1000, dtype=torch.int64)})
    assert memory.nbytes == 10 * (50 + 8 + 8)
    stored = memory.column("inputs")
    assert stored.untyped_storage().nbytes() == 10 * 50
    assert stored.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr()
    memory.clear()
    assert memory.nbytes == 0


@pytest.mark.parametrize("experiences", [2, 3, 4, 6, 7])
def test_no_class_is_dropped_when_classes_do_not_divide_evenly(experiences: int) -> None:
    """Line 12."""
    stream = split(synthetic(classes=7, samples=3), experiences=experiences)
    assert sorted(label for experience in stream for label in experience.classes) == list(range(7))
    assert sum(len(experience.train) for experience in stream) == 21


def test_nothing_reseeds_the_global_random_state(toy: Any) -> None:
    """Line 12: not streams, not models, not a whole training with evaluation."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    stream = split(synthetic(classes=4, samples=6), experiences=2, class_order="random", seed=3)
    permuted(synthetic(classes=2, samples=4), experiences=2, seed=1)
    toy.train(der(), toy.model(stream, "growing", dropout=0.3), stream, evaluate="test")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_permuted_streams_shift_labels_in_class_and_task_incremental_mode_only() -> None:
    """Line 13."""
    data = synthetic(classes=3, samples=4)
    for paradigm, shifted in (("class", True), ("task", True), ("domain", False)):
        stream = permuted(data, experiences=3, paradigm=paradigm)
        for index, experience in enumerate(stream):
            first = 3 * index if shifted else 0
            assert experience.classes == (first, first + 1, first + 2)
            assert sorted(set(experience.test.targets.tolist())) == [first, first + 1, first + 2]
        assert stream.classes == (9 if shifted else 3)


def test_split_streams_number_classes_in_order_of_appearance() -> None:
    """Line 13."""
    stream = split(synthetic(classes=4, samples=2), experiences=2, class_order=[3, 1, 0, 2])
    assert [experience.classes for experience in stream] == [(0, 1), (2, 3)]
    assert stream.class_names == ("3", "1", "0", "2")


def test_accuracy_is_weighed_by_samples_with_an_uneven_last_batch() -> None:
    """Line 14: CLMixer reports precision, CLArena weighs by a constant."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    inputs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    targets = torch.tensor([0, 0, 1, 1, 0])  # right, right, wrong, right, wrong
    engine = Engine(finetune(), Learner(model), NEEDS)
    for batch_size in (1, 2, 3, 4, 5):
        found = evaluate(engine, TensorData(inputs, targets), (0, 1), None, batch_size)
        assert (found["samples"], found["correct"]) == (5, 3)
        assert found["class_samples"] == {"0": 3, "1": 2}
        assert found["class_correct"] == {"0": 2, "1": 1}  # recall 2/3 and 1/2, whatever was predicted of others
        assert found["loss"] == pytest.approx(float(F.cross_entropy(model(inputs), targets)))


def test_the_two_kinds_of_forgetting_have_different_names_and_values() -> None:
    """Line 14."""
    matrix = np.array([[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.6, 1.0]])
    assert forgetting_max(matrix) == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)
    assert forgetting_first(matrix) == pytest.approx(((0.8 - 0.5) + (0.7 - 0.6)) / 2)
    assert average_accuracy(matrix) == pytest.approx((0.5 + 0.6 + 1.0) / 3)


def test_test_data_are_evaluated_only_when_asked_for(toy: Any) -> None:
    """Line 14: a run for model selection sees the validation data alone."""
    for asked, seen in (
        ("validation", {"validation"}),
        ("test", {"test"}),
        ("both", {"test", "validation"}),
        ("none", set()),
    ):
        stream = split(synthetic(classes=4, samples=10), experiences=2, validation=0.2)
        trainer = toy.train(finetune(), toy.model(stream), stream, evaluate=asked)
        assert {event["split"] for event in trainer.events if event["event"] == "evaluate"} == seen


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"method": {"operations": ["replai"]}}, "replay"),
        ({"method": {"name": "er", "capasity": 5}}, "capacity"),
        ({"trainer": {"epoch": 2}}, "epochs"),
        ({"methods": "er"}, "method"),
        ({"method": {"name": "er", "policy": "resevoir"}}, "reservoir"),
        ({"optimizer": {"name": "Adm"}}, "Adam"),
    ],
)
def test_a_misspelt_operation_key_or_value_is_an_error_with_the_nearest_name(wrong: Any, nearest: str) -> None:
    """Line 15."""
    with pytest.raises(ConfigError, match=nearest):
        resolve(wrong)


def test_two_instances_of_an_operation_keep_their_hyperparameters_through_json() -> None:
    """Line 16: the closer tests of entry points are in `tests/core/test_moments.py`."""
    config = {
        "operations": [
            {"name": "replay", "size": 3},
            {"name": "replay", "size": 9},
            {"name": "remember", "capacity": 5},
        ]
    }
    method = build_method(config)
    assert [(one.name, getattr(one, "size", None)) for one in method] == [
        ("replay", 3),
        ("replay_2", 9),
        ("remember", None),
    ]
    assert [one["size"] for one in method.config()["operations"][:2]] == [3, 9]


def test_two_operations_that_both_choose_the_data_refuse_each_other() -> None:
    """Line 16: never does the second silently overwrite the first."""
    with pytest.raises(ConfigError, match="both choose the data of an experience"):
        Method(JointData(), CumulativeData())


def test_reading_a_run_never_changes_it_and_an_interrupted_one_resumes_mid_experience(tmp_path: Path, toy: Any) -> None:
    """Line 17: the closer tests are in `tests/runs/test_resume.py`."""
    from holdfast.metrics import compute, read_log

    path = tmp_path / "log.jsonl"
    stream = toy.stream()
    whole = toy.model(stream)
    with path.open("w") as file:
        toy.train(der(), whole, stream, evaluate="test", record=lambda event: file.write(json.dumps(event) + "\n"))
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    compute(read_log(path))
    accuracy_matrix(read_log(tmp_path))
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    keep, resumed = toy.KeepAt(7), toy.model(stream)
    toy.train(der(), toy.model(stream), stream, checkpoints=keep)
    toy.train(der(), resumed, stream, resume=keep.kept)
    assert keep.kept["position"]["epoch_step"] > 0
    assert toy.equal(whole, resumed)


def test_no_device_is_written_into_the_code() -> None:
    """Line 19."""
    source = Path(holdfast.methods.__file__).parents[1]
    named = [
        f"{path.relative_to(source)}:{number}"
        for path in sorted(source.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ".cuda()" in line or '.to("cuda' in line or 'device="cuda' in line
    ]
    assert named == []


@pytest.mark.slow
def test_where_torch_says_that_there_is_no_gpu_a_process_trains_on_the_cpu() -> None:
    """Line 19, in a process of its own."""
    source = Path(holdfast.methods.__file__).parents[1]
    code = (
        "import torch; torch.cuda.is_available = lambda: False\n"
        "from holdfast import Continual, Trainer, methods, models, streams, datasets\n"
        "stream = streams.split(datasets.synthetic(classes=4, samples=6), experiences=2)\n"
        "model = models.mlp(input_shape=stream.input_shape, classes=4, hidden=[4], seed=0)\n"
        "Trainer(methods.er(), batch_size=4).fit(model, stream); print('done')"
    )
    env = {"PYTHONPATH": str(source.parent), "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


def test_a_model_on_another_device_takes_memory_and_state_with_it() -> None:
    """Line 19: checked with the device `meta`, which every machine has."""
    torch_model = nn.Linear(4, 3, device="meta")
    learner = Learner(torch_model)
    engine = Engine(Method(Replay(size=2), Remember(capacity=4)), learner, NEEDS)
    assert learner.device.type == "meta"
    assert engine.learner.memory.device.type == "meta"
    assert learner.classes.device.type == "meta"


def test_a_boundary_that_nobody_announces_does_not_silence_a_method(toy: Any) -> None:
    """Line 1 again, in the drop-in: distillation must not be a no-op where classes are not announced."""
    stream = toy.stream()
    ends = []
    for method in (finetune(), lwf()):
        model = toy.model(stream)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        cl = Continual(model, method, optimizer, boundary=Every(steps=3))
        for index in range(2):
            for batch in toy.batches(stream, index, 3):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batch.inputs), batch.targets)
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                optimizer.step()
        ends.append(model)
    assert not toy.equal(*ends)
