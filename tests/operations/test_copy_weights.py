"""Copy weights: outputs of each experience trained apart, and put together by loops over classes."""

from typing import Any

import pytest
import torch

from holdfast.core.errors import ConfigError
from holdfast.core.method import Method
from holdfast.operations import CopyWeights


def _rows(learner: Any) -> tuple[torch.Tensor, torch.Tensor]:
    parts = learner.head.parts()
    weights, biases = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    return weights.detach().clone(), biases.detach().clone()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("start", ["zero", "random"])
@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_outputs_of_each_experience_are_trained_apart_and_joined(
    few: Any, head: str, start: str, centred: bool
) -> None:
    engine = few.bind(CopyWeights(start=start, centred=centred), model=few.net(head, classes=6))
    learner = engine.learner
    kept: dict[int, tuple[torch.Tensor, float]] = {}
    for index in range(3):
        x, y = few.points(6, classes=2, seed=index, first=2 * index)
        experience = few.experience(x, y, index=index)
        engine.begin(experience)
        weights, biases = _rows(learner)
        if start == "zero":
            assert not torch.cat([weights.flatten(), biases]).any()
        else:
            assert weights.abs().max() <= 5**-0.5
            assert weights.std() > 0.1
            assert all(not torch.equal(weights[label], kept[label][0]) for label in kept)
        for _ in range(3):
            few.step(engine, x, y, lr=0.5)
        weights, biases = _rows(learner)
        engine.end(experience)
        for label in (2 * index, 2 * index + 1):
            kept[label] = (weights[label], float(biases[label]))
        if centred:
            total, count, level = 0.0, 0, 0.0
            for row, bias in kept.values():
                for value in row.tolist():
                    total, count = total + value, count + 1
                level += bias / len(kept)
            for label in (2 * index, 2 * index + 1):
                kept[label] = (kept[label][0] - total / count, kept[label][1] - level)
        weights, biases = _rows(learner)
        for label in range(len(weights)):
            row, bias = kept.get(label, (torch.zeros(5, dtype=torch.float64), 0.0))
            torch.testing.assert_close(weights[label], row)
            assert float(biases[label]) == pytest.approx(bias)


def test_the_outputs_of_other_classes_are_left_to_the_bit(few: Any) -> None:
    engine = few.bind(CopyWeights(), model=few.net("growing"))
    before = None
    for index in range(2):
        x, y = few.points(6, classes=2, seed=index, first=2 * index)
        experience = few.experience(x, y, index=index)
        engine.begin(experience)
        few.step(engine, x, y, lr=0.5)
        engine.end(experience)
        if before is None:
            before = _rows(engine.learner)
    after = _rows(engine.learner)
    assert before is not None
    assert all(torch.equal(now[:2], then) for now, then in zip(after, before, strict=True))


def test_a_state_from_the_middle_of_an_experience_goes_on_alike(few: Any) -> None:
    engines = [few.bind(CopyWeights(), model=few.net("fixed", classes=4)) for _ in range(2)]
    first, second = (few.experience(*few.points(6, classes=2, first=2 * k, seed=k), index=k) for k in range(2))
    one, other = engines
    one.begin(first)
    few.step(one, *few.points(6, classes=2), lr=0.5)
    one.end(first)
    one.begin(second)
    few.step(one, *few.points(6, classes=2, first=2, seed=1), lr=0.5)
    other.load(one.state())
    one.end(second)
    other.end(second)
    assert all(torch.equal(a, b) for a, b in zip(_rows(one.learner), _rows(other.learner), strict=True))


def test_heads_without_rows_of_their_own_are_refused(few: Any) -> None:
    with pytest.raises(ConfigError, match="have no direction"):
        few.bind(CopyWeights(), model=few.net("cosine"))
    with pytest.raises(ConfigError, match="Drop it"):
        few.bind(CopyWeights(), model=few.net("task"))
    with pytest.raises(ConfigError, match="Choose zero or random"):
        CopyWeights(start="ones")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="both start the head anew"):
        Method(CopyWeights(), CopyWeights())
