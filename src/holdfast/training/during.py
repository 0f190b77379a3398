"""Measures inside an experience: how right the model is on a bounded sample of older ones, every now and then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.core.experience import Experience, Tree, tree_cat, tree_map
from holdfast.core.learner import derive_seed
from holdfast.training.session import Session

MOST_MOMENTS, MOST_ROWS, FEWEST_ROWS = 24, 1024, 8
"""Moments of an experience; rows of all old experiences together at a moment; rows of each of them."""


class Sample(NamedTuple):
    """Test rows of an older experience, on the device.

    Attributes:
        experience: its index.
        inputs: raw.
        targets: `[rows]`.
        classes: of the experience, ascending.
        task: its label, or None.
    """

    experience: int
    inputs: Tree
    targets: Tensor
    classes: Tensor
    task: int | None


class During:
    """Evaluates older experiences at a few moments of the current one; the training goes on as if it had not.

    The first moment is before the first step, the others are dense at the beginning, where accuracy falls for a while
    ("Continual evaluation for lifelong learning: Identifying the stability gap", De Lange, van de Ven and Tuytelaars,
    ICLR 2023). Forwards over all moments are at most `evaluate_during` times the steps of the experience, and rows at
    most that share of the rows trained on, doubled, as a forward costs less than half of a step.

    Args:
        session: of a stream.
        experience: that is learned now.
        total: its steps.

    Attributes:
        following: the step before which the next moment is; -1 for none.
    """

    def __init__(self, session: Session, experience: Experience, total: int) -> None:
        self._session = session
        self._samples: list[Sample] = []
        self._moments: list[int] = []
        share, stream, index = session.settings.evaluate_during, session.stream, session.position.experience
        if share > 0 and stream is not None and index > 0:
            old = [one for one in stream[:index] if one.test is not None and len(one.test) and one.classes]
            self._plan(old, share, total)
        self.following = next((moment for moment in self._moments if moment >= session.position.step), -1)

    def _plan(self, old: list[Experience], share: float, total: int) -> None:
        forwards = len(old) if any(one.task is not None for one in old) else 1
        moments = min(MOST_MOMENTS, int(share * total / max(1, forwards)))
        rows = min(MOST_ROWS, int(2 * share * total * self._session.current.batch_size / max(1, moments)))
        if old and rows < FEWEST_ROWS * len(old):  # fewer moments rather than too few rows
            moments = moments * rows // (FEWEST_ROWS * len(old))
            rows = FEWEST_ROWS * len(old)
        if moments < 2 or not old:
            return
        spaced = [round(total ** (place / (moments - 1))) for place in range(1, moments - 1)]
        self._moments = sorted({0, *spaced, total - 1} & set(range(total)))
        self._samples = [self._drawn(one, rows // len(old)) for one in old]

    def _drawn(self, experience: Experience, rows: int) -> Sample:
        data, device = experience.test, self._session.device
        assert data is not None
        seed = derive_seed(self._session.settings.seed, f"during/{experience.index}")
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
        with torch.random.fork_rng(devices=[]):  # readers of files may draw seeds for their processes
            batch = data.gather(chosen)
        inputs = tree_map(lambda leaf: leaf.to(device), batch.inputs)
        classes = torch.tensor(sorted(experience.classes), device=device)
        return Sample(experience.index, inputs, batch.targets.to(device), classes, experience.task)

    def look(self) -> None:
        """Record how right the model is now, before the step that comes; the next moment follows."""
        session, step = self._session, self._session.position.step
        after = [moment for moment in self._moments if moment > step]
        self.following = after[0] if after else -1
        engine = session.engine
        with engine.evaluating(), torch.inference_mode():
            if all(one.task is None for one in self._samples):
                whole = engine.predict(tree_cat([one.inputs for one in self._samples]))
                parts = whole.split([len(one.targets) for one in self._samples])
            else:
                parts = tuple(engine.predict(one.inputs, one.task) for one in self._samples)
            counts = torch.stack([_right(outputs, one) for outputs, one in zip(parts, self._samples)]).tolist()
        session.model.train()
        session.records.write(
            event="during",
            experience=session.position.experience,
            step=step,
            old=[one.experience for one in self._samples],
            samples=[len(one.targets) for one in self._samples],
            correct=[count for count, _ in counts],
            correct_task=[count for _, count in counts],
        )


def _right(outputs: Tensor, sample: Sample) -> Tensor:
    """How many answers are right among all outputs, and among the classes of the experience, `[2]`."""
    known = sample.classes[sample.classes < outputs.shape[1]]
    if not len(known):
        return torch.zeros(2, dtype=torch.int64, device=outputs.device)
    best, among = outputs.argmax(1), known[outputs[:, known].argmax(1)]
    return torch.stack([(best == sample.targets).sum(), (among == sample.targets).sum()])
