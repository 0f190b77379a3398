"""Output regularisation: a generator of weights keeps what it generated for earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.core.experience import Experience, Stream
from holdfast.core.operation import Operation, Term, require
from holdfast.core.ranges import Count, Strength
from holdfast.core.services import Services
from holdfast.core.step import Step
from holdfast.models import Hypernetwork, hypernetwork
from holdfast.operations.lookahead import planned_moves

Lookahead = Literal["none", "sgd", "optimizer"]
Targets = Literal["recomputed", "cached"]
Likelihood = Literal["mean", "sum"]


class OutputRegularisation(Operation):
    r"""Weights that the generator makes for earlier tasks are pulled to what they were before this experience.

    $$ L = L_{\text{task}} + \frac{\beta}{|S|} \sum_{k \in S}
       \big\lVert H(k; \theta^*) - H(k; \theta + \Delta\theta) \big\rVert_2^2 $$

    where theta are all parameters of the generator, embeddings included, theta* their values when the experience
    began, and S the earlier tasks, or so many of them drawn anew at each step. Delta theta is zero, a plain gradient
    step on the task's loss, or what the optimiser would do with that gradient. `second_order` lets the gradient of the
    term go through Delta theta, too: the same value, another gradient. The first experience has no term.

    Needs a model whose weights are generated (`models.hypernetwork`) and task labels.

    Args:
        strength: the papers' beta (`coef_hnet_replay`).
        tasks: how many earlier tasks at each step, drawn without replacement; None takes all (`hnet_reg_ntasks`).
        lookahead: "none", "sgd" (minus learning rate times gradient) or "optimizer" (SGD with momentum, Adam, AdamW,
            with their present averages).
        second_order: whether Delta theta is differentiated; without, it is a constant.
        targets: "recomputed" keeps theta* and generates H(k; theta*) at each step; "cached" keeps these weights, faster
            and larger by the generated weights of each task.
        used_outputs: leave out the weights of output units that a task does not use.
        likelihood: "mean" takes the task's loss as the mean over samples that it is; "sum" as the sum over the
            experience's training samples, as the published code of posterior replay does: strength counts
            1 / samples of what it says.
        freeze_embeddings: whether what belongs to an earlier task alone (its embedding) is not trained any more.
        log_conflict: also log the cosine between the gradients of the task's loss and of this term, as
            `<name>/cosine`; costs two more backward passes.

    Source: von Oswald et al. 2020, "Continual learning with hypernetworks", eq. 2 (lookahead: eq. 3 and appendix);
    Hemati et al. 2023, "Partial hypernetworks for continual learning", algorithm 1.
    Differences: where several processes share a batch, each looks ahead along its own gradient.

    Example:
        >>> OutputRegularisation(strength=0.5, lookahead="sgd").second_order
        False
    """

    role = "knowledge retention"
    needs = frozenset({"boundaries", "task"})
    state = ("finished", "before", "cached", "factor")

    @staticmethod
    def check_model(stream: Stream, head: str = "task", **settings: Any) -> nn.Module:
        """A small model that it works with, for checks (`holdfast.testing`), which else train one with own weights."""
        layers = settings.get("backbone", {"name": "mlp", "hidden": settings.get("hidden", [7])})
        return hypernetwork(
            input_shape=stream.input_shape,
            classes=settings.get("classes", stream.outputs),
            backbone=layers,
            generator="chunks",
            chunk=20,
            embedding=4,
            chunk_embedding=4,
            hidden=(6,),
            seed=settings.get("seed", 0),
        )

    def __init__(
        self,
        strength: Strength = 0.01,
        tasks: Count | None = None,
        lookahead: Lookahead = "none",
        second_order: bool = False,
        targets: Targets = "recomputed",
        used_outputs: bool = False,
        likelihood: Likelihood = "mean",
        freeze_embeddings: bool = False,
        log_conflict: bool = False,
    ) -> None:
        super().__init__()
        name = "output_regularisation"
        for key, value, kind in (
            ("lookahead", lookahead, Lookahead),
            ("targets", targets, Targets),
            ("likelihood", likelihood, Likelihood),
        ):
            require(value in get_args(kind), name, f"got {key}={value!r}. Choose one of {', '.join(get_args(kind))}.")
        require(
            lookahead != "none" or not second_order,
            name,
            "got second_order=True without lookahead, which has nothing to differentiate. Write lookahead='sgd'.",
        )
        self.strength = strength
        self.tasks = tasks
        self.lookahead = lookahead
        self.second_order = second_order
        self.targets = targets
        self.used_outputs = used_outputs
        self.likelihood = likelihood
        self.freeze_embeddings = freeze_embeddings
        self.log_conflict = log_conflict
        self.finished: list[int] = []
        self.before: dict[str, Tensor] = {}
        self.cached: Tensor | None = None
        self.factor = 1.0

    def setup(self, learner: Services) -> None:
        """Look for the generator."""
        self._model = generated_model(learner.model, "output_regularisation")
        if self.tasks is not None:
            learner.rng(f"tasks/{self.name}")

    def begin(self, experience: Experience, learner: Services) -> None:
        """Keep what the generator makes now for the tasks so far."""
        self.factor = 1 / max(1, len(experience.train)) if self.likelihood == "sum" else 1.0
        generator = self._model.generator
        if not self.finished:
            return
        if self.freeze_embeddings:
            learner.trainable.freeze([p for task in self.finished for p in generator.of_task(task)])
        if self.targets == "cached":
            with torch.no_grad():
                self.cached = flat(generator(self.finished))
        else:
            self.before = {name: value.detach().clone() for name, value in generator.named_parameters()}

    def end(self, experience: Experience, learner: Services) -> None:
        """The task of this experience is an earlier one from now on."""
        if experience.task is not None and experience.task not in self.finished:
            self.finished.append(experience.task)

    def loss(self, step: Step, learner: Services) -> Term | None:
        """The term, once there are earlier tasks."""
        if not self.finished or self.strength == 0:
            return None
        places = learner.decide(lambda: self._places(learner))
        if not places:
            return None
        with torch.autocast(learner.device.type, enabled=False):  # a sum of very many small squares
            return self._term(step, learner, places)

    def _places(self, learner: Services) -> list[int]:
        """Which of the finished tasks are regularised at this step, as places in `finished`; never the current one."""
        earlier = [position for position, task in enumerate(self.finished) if task != learner.task]
        if self.tasks is None or self.tasks >= len(earlier):
            return earlier
        drawn = torch.randperm(len(earlier), generator=learner.rng(f"tasks/{self.name}"))[: self.tasks]
        return [earlier[position] for position in sorted(drawn.tolist())]

    def _term(self, step: Step, learner: Services, places: Sequence[int]) -> Term:
        generator = self._model.generator
        chosen = [self.finished[position] for position in places]
        theta: dict[str, Tensor] = dict(generator.named_parameters())
        trained = {name: p for name, p in generator.named_parameters() if p.requires_grad}
        gradients: list[Tensor] = []
        if self.lookahead != "none" or self.log_conflict:
            gradients = _gradients(step.loss, trained, self.second_order)
        if self.lookahead != "none":
            theta.update(self._ahead(learner, trained, gradients))
        made = flat(functional_call(generator, theta, (chosen,)))
        if self.cached is not None:
            wanted = self.cached[list(places)]
        else:
            with torch.no_grad():
                wanted = flat(functional_call(generator, self.before, (chosen,)))
        term = self._distance(made - wanted, chosen) / len(chosen)
        if self.log_conflict:
            against = _gradients(term, trained, keep=False)
            learner.log(f"{self.name}/cosine", _cosine(gradients, against))
        return term, self.strength * self.factor

    def _ahead(self, learner: Services, trained: dict[str, nn.Parameter], gradients: list[Tensor]) -> dict[str, Tensor]:
        """Theta + Delta theta, by name."""
        if not self.second_order:
            gradients = [gradient.detach() for gradient in gradients]
        parameters = list(trained.values())
        if self.lookahead == "optimizer":
            optimizer = learner.trainable.optimizer()
            require(
                optimizer is not None,
                "output_regularisation",
                "looks ahead as the optimiser would move, and this loop does not say which it uses. Write 'sgd'.",
            )
            assert optimizer is not None
            moves = planned_moves(optimizer, parameters, gradients)
        else:
            rate = learner.decide(lambda: learner.trainable.rate)
            require(
                rate is not None,
                "output_regularisation",
                "looks ahead by a step of the learning rate, and this loop has none. Write lookahead='none'.",
            )
            moves = [gradient * -rate for gradient in gradients]  # type: ignore[operator]
        return {name: p + move for (name, p), move in zip(trained.items(), moves)}

    def _distance(self, difference_SN: Tensor, chosen: Sequence[int]) -> Tensor:
        """Sum of squares over all tasks, without outputs that a task does not use."""
        head = self._model.head
        masks = [head.used(task) for task in chosen] if self.used_outputs else [None]
        if any(mask is None for mask in masks):
            return difference_SN.square().sum()
        used_SO = torch.stack([mask for mask in masks if mask is not None]).to(difference_SN.dtype)
        total = difference_SN.new_zeros(())
        offset = 0
        for target in self._model.generator.targets.values():
            if target.output:
                part = difference_SN[:, offset : offset + target.size].reshape(len(chosen), target.shape[0], -1)
                total = total + (part.square() * used_SO[:, :, None]).sum()
            offset += target.size
        outside = sum(target.size for target in self._model.generator.targets.values() if not target.output)
        return total + difference_SN[:, :outside].square().sum()


def generated_model(model: nn.Module, operation: str) -> Hypernetwork:
    """The model as one whose weights are generated.

    Raises:
        ConfigError: if it is not one.
    """
    inner = next((module for module in model.modules() if isinstance(module, Hypernetwork)), None)
    require(
        inner is not None,
        operation,
        f"needs a model whose weights are generated, and {type(model).__name__} has its own. "
        'Write {"name": "hypernetwork", "backbone": ...} as the model.',
    )
    assert inner is not None
    return inner


def flat(made: dict[str, Tensor]) -> Tensor:
    """Everything generated for each task as one row, `[tasks, values]`."""
    return torch.cat([value.flatten(1) for value in made.values()], dim=1)


def _gradients(loss: Tensor, parameters: dict[str, nn.Parameter], keep: bool) -> list[Tensor]:
    """Gradient of `loss` by each parameter, with a graph where `keep`; zeros where it has no part in the loss."""
    grads = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, create_graph=keep, allow_unused=True
    )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), grads)]


def _cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Cosine of the angle between two gradients; 0 where one is zero."""
    left = torch.cat([one.detach().flatten() for one in first])
    right = torch.cat([one.detach().flatten() for one in second])
    return torch.nn.functional.cosine_similarity(left, right, dim=0)
