"""What is looked at now and then: rows held out of a source, the memory and counts; older experiences of a stream."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.core.boundary import Boundary
from holdfast.core.errors import ConfigError
from holdfast.core.experience import Batch, Data, Experience, Tree, tree_cat, tree_map
from holdfast.core.learner import derive_seed
from holdfast.core.operation import snake_case
from holdfast.core.source import Source
from holdfast.memory import Memory, Reservoir
from holdfast.streams.data import TensorData
from holdfast.training.evaluation import evaluate
from holdfast.training.session import Session

AGES = 4
"""Parts of equal length into which everything that has arrived is cut, to ask the model about each."""

BINS = 10
"""The same for what a memory holds."""

STRETCHES = 8
"""Stretches of the stream that are told apart, at most; when there would be more, two become one."""


class Observations:
    """Looks at a training on a source after every so many batches, and records what it sees.

    Events: `held_out`, loss and accuracy on rows that were never trained on, over all of them and by `ages`, the oldest
    quarter of everything that has arrived first; `stretches`, the same for stretches of the stream that stay what they
    are, each time that one of them has ended, so that what is lost of each can be followed; `memory`, how many rows of
    each class and of each tenth of the stream so far the memory holds; `source`, rows trained on, the source's own
    counts, and the seconds spent on waiting.

    Args:
        session: of a source.
        every: batches between two looks.
        rows: held out that are kept, at most, each that arrived with equal probability.

    Raises:
        ConfigError: for a number below 1.
    """

    def __init__(self, session: Session, every: int, rows: int = 1000) -> None:
        if every < 1 or rows < 1:
            raise ConfigError(f"observe_every is {every} and observe_rows {rows}. Give numbers of at least 1.")
        self.session = session
        self.every = every
        generator = torch.Generator().manual_seed(derive_seed(session.settings.seed, "held out"))
        self._kept = Memory(rows, insertion=Reservoir(generator), device=session.device)
        self._ends: list[int] = []  # how many rows had been held out at the end of each stretch
        self._looked = 0  # after which batch the last look was
        self._each, self._looks = 1, 0  # looks that a stretch takes, and those since the last one ended

    def take(self, batch: Batch) -> None:
        """Keep what is held out of a batch that arrived."""
        if batch.held_out is not None:
            self._kept.add({"inputs": batch.held_out.inputs, "targets": batch.held_out.targets})

    def due(self, step: int) -> bool:
        """Whether it is time to look, after so many batches, and nobody has yet."""
        return step > self._looked and step % self.every == 0

    def look(self, last: bool = False) -> None:
        """Record the events; after the `last` step, also of a stretch that has only begun."""
        session, position = self.session, self.session.position
        where = {"experience": position.experience, "step": session.engine.index, "samples": position.samples}
        self._looked = self._looked if last else position.step
        if len(self._kept):
            session.records.write(event="held_out", **where, **self._asked())
            if (last and self._kept.seen > max(self._ends, default=0)) or (not last and self._stretch_ended()):
                asked = [self._answers(data) for data in self.stretches()]
                each = {"looks": self._each, "ended": len(self._ends)}
                session.records.write(event="stretches", **where, **each, stretches=asked)
        memory = session.learner.memory
        if memory is not None and len(memory):
            session.records.write(event="memory", **where, **_composition(memory))
        counts = {} if session.source is None else session.source.counts()
        seconds = {"seconds": session.seconds, "idle_seconds": position.idle}
        session.records.write(event="source", **where, **counts, **seconds)

    def _asked(self) -> dict[str, Any]:
        """Loss and right answers over all rows that were kept, and by age."""
        asked = [self._answers(data) for data in self.parts()]
        return {**_total(asked), "old": _total(asked[: AGES // 2]), "ages": asked}

    def _answers(self, data: Data) -> dict[str, Any]:
        """Rows, mean loss and right answers of some of them."""
        counts = evaluate(self.session.engine, data, (), None) if len(data) else {}
        return {"rows": len(data), "loss": counts.get("loss"), "correct": counts.get("correct")}

    def _stretch_ended(self) -> bool:
        """Count a look; whether a stretch ended with it."""
        if len(self._ends) == STRETCHES:
            self._ends, self._each = self._ends[1::2], 2 * self._each
        self._looks += 1
        if self._looks == self._each:
            self._ends.append(self._kept.seen)
            self._looks = 0
        return not self._looks

    def stretches(self) -> list[Data]:
        """The rows that were kept, by stretches of the stream, the last of which may have only begun."""
        rows, ends = self._kept.all(), torch.tensor(self._ends)
        numbers = torch.bucketize(self._kept.arrivals.cpu(), ends, right=True)
        data, begun = TensorData(rows["inputs"], rows["targets"]), self._kept.seen > max(self._ends, default=0)
        return [data.subset((numbers == number).nonzero().flatten()) for number in range(len(ends) + begun)]

    def parts(self) -> list[Data]:
        """The rows that were kept, by quarters of everything that has arrived, the oldest first; empty without any."""
        if not len(self._kept):
            return []
        rows, arrivals = self._kept.all(), self._kept.arrivals.cpu()
        ages = (arrivals * AGES).div(max(1, self._kept.seen), rounding_mode="floor").clamp_max(AGES - 1)
        data = TensorData(rows["inputs"], rows["targets"])
        return [data.subset((ages == age).nonzero().flatten()) for age in range(AGES)]

    def state(self) -> dict[str, Any]:
        """The rows that were kept, and where stretches end."""
        return {"kept": self._kept.state(), "stretches": [list(self._ends), self._each, self._looks, self._looked]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._kept.load(state["kept"])
        ends, self._each, self._looks, self._looked = state.get("stretches", ([], 1, 0, 0))  # not in a state of before
        self._ends = list(ends)


def _total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several parts together, their loss weighted by their rows."""
    answered = [part for part in parts if part["rows"] and part["loss"] is not None]
    rows = sum(part["rows"] for part in answered)
    right = [part["correct"] for part in answered if part["correct"] is not None]
    return {
        "rows": rows,
        "loss": sum(part["loss"] * part["rows"] for part in answered) / rows if rows else None,
        "correct": sum(right) if right else None,
    }


def _composition(memory: Any) -> dict[str, Any]:
    """What a memory holds: rows, bytes, rows by class, and by tenths of all that it has seen."""
    told: dict[str, Any] = {"items": len(memory), "bytes": memory.nbytes}
    targets: Tensor = memory.column("targets")
    if not targets.is_floating_point() and targets.dim() == 1:
        counts = torch.bincount(targets.cpu()).tolist()
        told["classes"] = {str(label): count for label, count in enumerate(counts) if count}
    seen = getattr(memory, "seen", None)
    if seen:
        bins = (memory.arrivals.cpu() * BINS).div(seen, rounding_mode="floor").clamp_max(BINS - 1)
        told["offered"] = seen
        told["ages"] = torch.bincount(bins, minlength=BINS).tolist()
    return told


def note_boundary(session: Session, boundary: Boundary) -> None:
    """Record that an experience begins with the batch that is being trained on."""
    position = session.position
    session.records.write(
        event="boundary",
        experience=position.experience,
        step=session.engine.index,
        samples=position.samples,
        boundary=snake_case(type(boundary).__name__),
        **boundary.reason(),
    )


def go_back(session: Session, source: Source) -> None:
    """Let `source` go on where a checkpoint was made, or say how much lies between."""
    where = session.position.source
    if where is None:
        return
    if source.seekable:
        source.seek(where)
        return
    missing = where["batches"] - source.position()["batches"]
    session.records.write(
        event="gap", step=session.engine.index, source=type(source).__name__, batches=missing, position=dict(where)
    )
    warnings.warn(
        f"{type(source).__name__} cannot go back to where the checkpoint was made, {missing} batches on; the"
        " training goes on with what it gives now. Give a source that can seek, or one that begins there.",
        stacklevel=4,
    )


# Within an experience of a stream -------------------------------------------------------------------------------

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
        spaced = [round(total ** (number / (moments - 1))) for number in range(1, moments - 1)]
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
    present = sample.classes[sample.classes < outputs.shape[1]]
    if not len(present):
        return torch.zeros(2, dtype=torch.int64, device=outputs.device)
    best, among = outputs.argmax(1), present[outputs[:, present].argmax(1)]
    return torch.stack([(best == sample.targets).sum(), (among == sample.targets).sum()])
