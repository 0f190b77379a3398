"""A generator of chunks: one small network makes every stretch of the flat vector of another network's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.core.errors import ConfigError
from holdfast.models.build import Activation, check_sizes, make_activation
from holdfast.models.generators import Generator, Target
from holdfast.models.hyperfan import Init, initialise_chunks

# Letters in shapes: T tasks that weights are generated for, C chunks, E values of an embedding.


class ChunksGenerator(Generator):
    """Chunks of the whole flat vector of weights, each made by the same network from the embeddings of task and chunk.

    "Continual learning with hypernetworks" (von Oswald et al., ICLR 2020), section 2.3. Tensors follow each other in
    the order of `targets`; the last chunk is cut to size. Difference: scales of normalisation are generated as
    deviations from 1.

    Args:
        targets: the tensors to generate, by name.
        tasks: how many to start with.
        chunk: values of a chunk.
        embedding: values of a task's embedding.
        chunk_embedding: values of a chunk's embedding.
        per_task: whether each task has chunk embeddings of its own; otherwise all share them.
        hidden: units of the hidden layers; none makes a linear map.
        activation: after each hidden layer.
        init: as for `HeadsGenerator`; the hyperfan kinds set the chunk embeddings of each chunk too.
        embedding_std: standard deviation of the initial embeddings of tasks.
        chunk_embedding_std: of those of chunks; the hyperfan kinds set their own.
        seed: of what tasks get that are added later.

    Example:
        >>> generator = ChunksGenerator({"weight": Target((10, 7), 7, 10)}, tasks=2, chunk=16)
        >>> generator.chunks, generator([1, 0])["weight"].shape
        (5, torch.Size([2, 10, 7]))
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        tasks: int = 1,
        chunk: int = 1000,
        embedding: int = 32,
        chunk_embedding: int = 32,
        per_task: bool = False,
        hidden: Sequence[int] = (50, 50),
        activation: Activation = "relu",
        init: Init = "default",
        embedding_std: float = 1.0,
        chunk_embedding_std: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(targets, tasks, embedding, embedding_std, seed)
        check_sizes("hidden", hidden)
        check_sizes("chunk", [chunk])
        check_sizes("chunk_embedding", [chunk_embedding])
        if chunk_embedding_std <= 0:
            raise ConfigError(f"chunk_embedding_std is {chunk_embedding_std}. Write a positive number.")
        self.chunk = chunk
        self.chunks = -(-self.generated // chunk)
        self.chunk_embedding = chunk_embedding
        self.chunk_embedding_std = chunk_embedding_std
        self.per_task = per_task
        sizes = (embedding + chunk_embedding, *hidden, chunk)
        self.layers = nn.ModuleList(nn.Linear(inputs, units) for inputs, units in pairwise(sizes))
        self.activation = make_activation(activation)
        self.chunk_stds: Tensor | None = None
        self.chunk_embeddings = nn.ParameterList()
        initialise_chunks(self, init)
        if not per_task:
            self.chunk_embeddings.append(self._placed(self._drawn_chunks(None)))
        self.grow(tasks)

    def forward(self, tasks: Sequence[int]) -> dict[str, Tensor]:
        """Every tensor for each of `tasks`, `[T, *shape]`, by name."""
        self.check(tasks)
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        task_TE = torch.stack([self.embeddings[task] for task in tasks])
        if self.per_task:
            chunk_TCE = torch.stack([self.chunk_embeddings[task] for task in tasks])
        else:
            chunk_TCE = self.chunk_embeddings[0][None]
        of_task = F.linear(task_TE, first.weight[:, : self.embedding])  # once a task, not once a chunk
        values = of_task[:, None] + F.linear(chunk_TCE, first.weight[:, self.embedding :], first.bias)
        for layer in self.layers[1:]:
            values = layer(self.activation(values))
        flat = values.reshape(len(tasks), -1)[:, : self.generated]
        made = {}
        parts = flat.split([target.size for target in self.targets.values()], dim=1)
        for (name, target), part in zip(self.targets.items(), parts):
            made[name] = part.view(-1, *target.shape)
            if target.offset:
                made[name] = made[name] + target.offset
        return made

    def of_task(self, task: int) -> list[nn.Parameter]:
        """Its embedding, and its chunk embeddings where tasks have their own."""
        return [self.embeddings[task], *([self.chunk_embeddings[task]] if self.per_task else [])]

    def _drawn_chunks(self, generator: torch.Generator | None) -> Tensor:
        """Initial chunk embeddings, `[C, chunk_embedding]`."""
        drawn = torch.randn(self.chunks, self.chunk_embedding, generator=generator)
        return drawn * (self.chunk_embedding_std if self.chunk_stds is None else self.chunk_stds[:, None])

    def _keep_tasks(self, tasks: int) -> None:
        super()._keep_tasks(tasks)
        if self.per_task:
            self.chunk_embeddings = nn.ParameterList(self.chunk_embeddings[:tasks])

    def _new_task(self, generator: torch.Generator | None) -> list[nn.Parameter]:
        if not self.per_task:
            return []
        self.chunk_embeddings.append(self._placed(self._drawn_chunks(generator)))
        return [self.chunk_embeddings[-1]]
