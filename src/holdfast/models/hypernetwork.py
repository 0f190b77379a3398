"""Partial hypernetworks: a network whose weights above a cut are made by a generator, for each task anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.core.body import chain_of
from holdfast.core.copying import deep_copy
from holdfast.core.errors import ConfigError, UsageError, unknown
from holdfast.core.forward import forward_task, running_task
from holdfast.core.inspect import eval_mode
from holdfast.core.needs import declares
from holdfast.core.ranges import Count, NonNegative, Size, ranged
from holdfast.models.build import Activation, check_sizes, seeded
from holdfast.models.chunks import ChunksGenerator
from holdfast.models.convolutional import cnn, resnet18
from holdfast.models.dense import linear, mlp
from holdfast.models.generators import Generator, HeadsGenerator, targets_of
from holdfast.models.heads import MASKED, Head
from holdfast.models.heads.generated import GeneratedOutputs
from holdfast.models.hyperfan import Init
from holdfast.models.norms import Norm, TaskBatchNorm, replace_batch_norm
from holdfast.models.vit import vit

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "linear": linear,
    "mlp": mlp,
    "resnet18": resnet18,
    "vit": vit,
}
"""What a configuration can name as the network whose weights are generated."""


class Hypernetwork(nn.Module):
    """`f(x; psi, H(t; theta))`: ordinary weights psi below a cut, above it weights that a generator makes for task t.

    A batch of one task has its weights generated once, whatever its size; a batch that mixes tasks once for each task
    in it. The task is that of the forward that is running (`core.forward.forward_task`); "all" gives the outputs of
    each task by its own network, side by side.

    Args:
        below: what runs first, on the inputs.
        upper: what runs on the latents, output layer included. Its parameters give shapes and names to what is
            generated, and are taken away from it.
        generator: makes them; its targets are the parameters of `upper` by name (`targets_of`).
        head: puts outputs at the classes of the task.
        output: name of the output layer within `upper`.
        start: whether the embedding of a new task is a "fresh" one or a "copy" of the previous task's.

    Attributes:
        below: as given; `below(inputs)` are the latents at the cut.
        upper: a module without parameters.
        generator: as given.
        head: as given.
    """

    begun: Tensor

    def __init__(
        self,
        below: nn.Module,
        upper: nn.Module,
        generator: Generator,
        head: GeneratedOutputs,
        output: str,
        start: Literal["fresh", "copy"] = "fresh",
    ) -> None:
        super().__init__()
        if start not in ("fresh", "copy"):
            raise ConfigError(unknown("start of a task", start, ["fresh", "copy"]))
        self.below = below
        self.upper = upper
        self.generator = generator
        self.head = head
        self.output = output
        self.start = start
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))  # tasks that training came to
        for module in upper.modules():
            for name, _ in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, None)
        self._splits = any(isinstance(module, TaskBatchNorm) for module in upper.modules())

    @property
    def tasks(self) -> int:
        """Number of tasks that weights can be generated for."""
        return self.generator.tasks

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[rows, classes]` of inputs as the stages below take them, masked outside the task of each row."""
        return self.above(self.below(inputs))

    def above(self, latents: Tensor) -> Tensor:
        """Outputs `[rows, classes]` of latents at the cut, `[rows, ...]`.

        Raises:
            UsageError: if no task is running, or one that weights cannot be generated for.
        """
        task = running_task()
        if task is None:
            task = self.head.task
        if task is None:
            raise UsageError(
                "a hypernetwork cannot choose which weights to generate: no task is running. "
                "Use a task-incremental stream, or run the model within `forward_task(t)`."
            )
        if isinstance(task, int):
            return self._masked_beyond(latents, task)
        if isinstance(task, Tensor):
            return self._mixed(latents, task)
        return self._every(latents)

    def weights(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """The generated tensors for each of `tasks`, `[T, *shape]` by their name in `upper`."""
        return self.generator(tasks)

    def add_tasks(self, tasks: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Begin with the last of `tasks` tasks; returns the parameters that were made for it, for the optimiser."""
        new = self.generator.grow(tasks, generator)
        begun = int(self.begun)
        if self.start == "copy":
            for task in range(max(1, begun), tasks):
                self.generator.copy_embedding(task - 1, task)
        self.begun.fill_(max(begun, tasks))
        return new

    def _masked_beyond(self, latents: Tensor, task: int) -> Tensor:
        """Outputs for one task; in evaluation, for one yet to come, all masked or, where they are numbers, zero."""
        if not self.training and self.generator.tasks <= task:
            nothing = MASKED if len(self.head.members) else 0.0
            return latents.new_full((latents.shape[0], self.head.width), nothing)
        return self._run(latents, task, {name: value[0] for name, value in self.weights([task]).items()})

    def _run(self, latents: Tensor, task: int, weights: dict[str, Tensor]) -> Tensor:
        if not self._splits:
            return self.head(functional_call(self.upper, weights, (latents,)), task)
        with forward_task(task):
            return self.head(functional_call(self.upper, weights, (latents,)), task)

    def _mixed(self, latents: Tensor, tasks: Tensor) -> Tensor:
        """Outputs of rows of several tasks: one pass of the upper part for each, over its rows."""
        distinct = tasks.unique().tolist()  # the host must know which weights are wanted
        made = self.weights(distinct)
        if len(distinct) == 1:
            return self._run(latents, distinct[0], {name: value[0] for name, value in made.items()})
        parts, places = [], []
        for position, task in enumerate(distinct):
            rows = (tasks == task).nonzero().flatten()
            weights = {name: value[position] for name, value in made.items()}
            parts.append(self._run(latents.index_select(0, rows), task, weights))
            places.append(rows)
        return torch.cat(parts).index_select(0, torch.cat(places).argsort())

    def _every(self, latents: Tensor) -> Tensor:
        """The outputs of each task's classes, by the network of that task."""
        members = self.head.members
        if not len(members):
            raise UsageError("outputs of every task were asked for, and no classes were assigned to any yet.")
        made = self.weights(range(len(members)))
        result: Tensor | None = None
        for task in range(len(members)):
            outputs = self._run(latents, task, {name: value[task] for name, value in made.items()})
            result = outputs if result is None else torch.where(members[task], outputs, result)
        assert result is not None
        return result


@declares(needs={"task"})
@ranged
def hypernetwork(
    *,
    input_shape: Sequence[int],
    classes: int,
    backbone: nn.Module | dict[str, Any] | str = "mlp",
    cut: int | str = 0,
    tasks: Count = 1,
    task_classes: Count | None = None,
    norm: Norm = "instance",
    generator: Literal["heads", "chunks"] = "heads",
    embedding: Count = 32,
    hidden: Sequence[Count] = (50, 32),
    head_embedding: Size = 32,
    chunk: Count = 1000,
    chunk_embedding: Count = 32,
    chunk_per_task: bool = False,
    vectors: Literal["own", "generated"] = "own",
    activation: Activation = "relu",
    init: Init = "default",
    embedding_std: NonNegative = 1.0,
    chunk_embedding_std: NonNegative = 1.0,
    start: Literal["fresh", "copy"] = "fresh",
    seed: int | None = None,
) -> nn.Module:
    """A network whose weights above a cut are generated for each task; those below are ordinary ones.

    `cut=0` generates everything, the last cut the output layer only. With the reduced ResNet-18 the cuts 0 to 4 are
    the models SH and SPv1 to SPv4 of "Partial Hypernetworks for Continual Learning" (Hemati et al., CoLLAs 2023); with
    `generator="chunks"` and `cut=0` it is the model of "Continual learning with hypernetworks" (von Oswald et al.,
    ICLR 2020). Needs task labels. Differences from Hemati et al.: weights are generated once for each task in a batch,
    not once for each sample; below the cut, batch norm keeps running statistics.

    Args:
        input_shape: shape of one sample.
        classes: number of classes of the whole stream.
        backbone: the network: "mlp", "cnn", "resnet18", "vit" or "linear", alone or with arguments
            (`{"name": "mlp", "hidden": [100, 100]}`); in a job also any other model by name, yours from a plug-in among
            them; in Python any module. All have to run stages in order (`chain_of`).
        cut: how many of its stages are ordinary ones; or the name of the last of them, or "SH", "SPv1" to "SPv4".
        tasks: number of tasks to start with; more are added as they come.
        task_classes: outputs of each generated network, one for each class of its task; None generates an output for
            every class of the stream and masks those of other tasks.
        norm: what replaces batch norm above the cut: "instance" (what the published code does), "batch" (statistics
            for each task), "group" or "none".
        generator: "heads" has one head for each tensor, "chunks" makes the flat vector of weights chunk by chunk.
        embedding: values of a task's embedding.
        hidden: units of the generator's hidden layers.
        head_embedding: values of the embedding of a row of a tensor, for "heads"; 0 makes every tensor whole, by one
            linear map.
        chunk: values of a chunk, for "chunks".
        chunk_embedding: values of a chunk's embedding, for "chunks".
        chunk_per_task: whether tasks have chunk embeddings of their own.
        vectors: of "heads": "own" gives each task biases and scales of its own, "generated" makes them too.
        activation: after each of the generator's hidden layers.
        init: of the generator: "default" is torch's; "xavier" is uniform with zero biases; "hyperfan_in" and
            "hyperfan_out" give the generated weights the variance of an ordinary network's.
        embedding_std: standard deviation of the initial embeddings of tasks.
        chunk_embedding_std: of those of chunks.
        start: whether the embedding of a new task is a "fresh" one, or a "copy" of the previous task's.
        seed: of the initial weights; None draws them from torch's global generator.

    Raises:
        ConfigError: for an unknown name, a cut that the backbone does not have, or a size below 1.

    Example:
        >>> from holdfast.models import parameter_count
        >>> model = hypernetwork(input_shape=(3, 32, 32), classes=100, backbone="resnet18", cut="SH", tasks=20)
        >>> model.generator.generated, parameter_count(model)
        (1109240, 1272877)
    """
    check_sizes("input_shape", input_shape)
    if task_classes is not None:
        check_sizes("task_classes", [task_classes])
    with seeded(seed):
        chain = chain_of(_backbone(backbone, input_shape, classes))
        position = chain.position(cut)
        stages = list(chain.stages.items())
        below = nn.Sequential(OrderedDict(stages[:position]))
        upper = nn.Sequential(OrderedDict(stages[position:]))
        outputs = classes if task_classes is None else task_classes
        name = "output" if "output" not in chain.stages else "output_layer"
        upper.add_module(name, _output_layer(chain.output, outputs))
        replace_batch_norm(upper, norm)
        _try(nn.Sequential(below, upper), input_shape, outputs, norm)
        shared: dict[str, Any] = {"tasks": tasks, "embedding": embedding, "hidden": hidden, "activation": activation}
        shared |= {"init": init, "embedding_std": embedding_std, "seed": seed}
        targets = targets_of(upper, name)
        made: Generator
        if generator == "heads":
            made = HeadsGenerator(targets, head_embedding=head_embedding, vectors=vectors, **shared)
        elif generator == "chunks":
            made = ChunksGenerator(
                targets,
                chunk=chunk,
                chunk_embedding=chunk_embedding,
                chunk_embedding_std=chunk_embedding_std,
                per_task=chunk_per_task,
                **shared,
            )
        else:
            raise ConfigError(unknown("generator", generator, ["heads", "chunks"]))
        head = GeneratedOutputs(outputs, classes, task_classes is not None)
        return Hypernetwork(below, upper, made, head, name, start)


def _backbone(backbone: nn.Module | Mapping[str, Any] | str, input_shape: Sequence[int], classes: int) -> nn.Module:
    """The network to cut: a copy of the module, or what the named factory makes."""
    if isinstance(backbone, nn.Module):
        return deep_copy(backbone)
    arguments = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    name = arguments.pop("name", None)
    if name not in BACKBONES:
        told = unknown("backbone", name, BACKBONES)
        raise ConfigError(f"{told} A model of yours in a file: `--plugin FILE`; in Python give the module itself.")
    try:
        return BACKBONES[name](input_shape=input_shape, classes=max(1, classes), **arguments)
    except TypeError as error:
        raise ConfigError(f"the backbone {name!r} cannot take {sorted(arguments)}. Its error says: {error}.") from error


def _output_layer(output: nn.Module, outputs: int) -> nn.Module:
    """The layer whose weights are generated: linear in place of a head of ours or a linear layer, else the model's."""
    if not isinstance(output, (Head, nn.Linear)):
        return output
    features = output.features if isinstance(output, Head) else output.in_features
    return nn.Linear(features, outputs, bias=isinstance(output, Head) or output.bias is not None)


def _try(network: nn.Module, input_shape: Sequence[int], outputs: int, norm: str) -> None:
    """Run the network once, on zeros, so that what does not fit is said before anything long starts."""
    try:
        with torch.no_grad(), eval_mode(network), forward_task(0):
            made = network(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever a module raises for a wrong size
        raise ConfigError(
            f"the backbone cannot take inputs of shape {tuple(input_shape)} with norm={norm!r} ({error}). Give the "
            "shape it was made for; images that shrink to one pixel need another norm than 'instance'."
        ) from error
    if made.shape[-1] != outputs:
        raise ConfigError(
            f"the backbone has {made.shape[-1]} outputs, and {outputs} are wanted. Change its last layer, or write "
            f"task_classes={made.shape[-1]}."
        )
