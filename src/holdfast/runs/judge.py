"""Two models asked about the same rows, one before and one after an update; and whether new inputs have shifted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.engine import Engine
from holdfast.core.experience import Data, Stream
from holdfast.core.mmd import MMD
from holdfast.runs.assemble import Restored
from holdfast.runs.inputs import outputs
from holdfast.runs.verdict import SAME_ROWS, Kept, Shift, Verdict, whole
from holdfast.streams.data import TensorData
from holdfast.training.observations import Observations

COMPARED = 300
"""Rows of each side in the test for shift, at most."""

ROWS = 512
"""Rows of a forward."""

QUARTERS = ("the oldest quarter", "the second quarter", "the third quarter", "the newest quarter")
"""What was held out of a source, by when it arrived."""


def judged(
    old: Restored,
    engine: Engine,
    stream: Stream | None,
    about: Mapping[str, Any],
    rows: Mapping[str, Data],
    earlier: Mapping[int, Data],
) -> Verdict:
    """What an update kept, lost and learned: the model before it and the one after it on the same rows.

    Args:
        old: the model before.
        engine: of the model after.
        stream: of the update, its newest experience last, with test data where available; None for a source.
        about: `update.json` of the version.
        rows: the new ones: `train`, and `test`, which were held out.
        earlier: rows that earlier versions held out.
    """
    verdict = Verdict("", since="before the update", new_since="before the update")
    verdict.notes += about.get("notes") or []
    names = old.stream.class_names
    parts = _of_source(old, earlier) if stream is None else _of_stream(stream)
    if len(parts) <= len(earlier):  # all that is there was held out of updates
        memory = _of_memory(old)
        parts = [*memory, *parts]
        told = "what the memory holds, which was trained on, is asked instead" if memory else "nothing is asked instead"
        verdict.notes.append(f"no test data of what the run learned are available; {told}")
    by_class: dict[int, list[int]] = {}
    rows_of: list[bytes] = []
    for name, data, task in parts:
        verdict.experiences.append(_compared(name, old.engine, engine, data, task, by_class, rows_of))
    if len(set(rows_of)) < len(rows_of):
        verdict.notes.append(SAME_ROWS)
    for label in sorted(by_class):
        asked, before, now, both = by_class[label]
        name = names[label] if label < len(names) else str(label)
        verdict.classes.append(Kept.counted(name, (before, asked), (now, asked), both))
    verdict.whole = whole(verdict.experiences, "all of them", rows_of)
    task = about["of"]["task"]
    verdict.new = _compared(f"{about['name']} (new)", old.engine, engine, rows["test"], task, {}, [])
    verdict.shift = shift_of(old, _some(list(rows.values())), _some([data for _, data, _ in parts]))
    return verdict


def _some(parts: Sequence[Data]) -> Tensor | None:
    """Inputs of some rows of each part, evenly from its beginning to its end."""
    pieces = []
    for data in parts:
        count = min(len(data), -(-COMPARED // len(parts)))
        inputs = data.gather(torch.linspace(0, len(data) - 1, count).long()).inputs if count else None
        if isinstance(inputs, Tensor):
            pieces.append(inputs.cpu())
    return torch.cat(pieces) if pieces and len({one.shape[1:] for one in pieces}) == 1 else None


Part = tuple[str, Data, int | None]
"""A name, rows, and their task."""


def _of_stream(stream: Stream) -> list[Part]:
    """Test data of every experience before the newest, as far as available."""
    parts = [(one.name, one.test or one.validation, one.task) for one in stream.experiences[:-1]]
    names = [name for name, _, _ in parts]
    labels = [f"{number}: {name}" if names.count(name) > 1 else name for number, name in enumerate(names)]
    return [(label, data, task) for label, (_, data, task) in zip(labels, parts) if data is not None and len(data)]


def _of_source(old: Restored, earlier: Mapping[int, Data]) -> list[Part]:
    """What was held out of a source by quarters, and of updates since."""
    observations = old.trainer.session.observations
    parts: list[Part] = []
    for name, data in zip(QUARTERS, observations.parts() if isinstance(observations, Observations) else []):
        parts += [(name, data, None)] if len(data) else []
    return [*parts, *((f"update {number}", data, None) for number, data in earlier.items())]


def _of_memory(old: Restored) -> list[Part]:
    memory = old.engine.learner.memory
    if memory is None or not len(memory):
        return []
    rows = memory.all()
    if not isinstance(rows.get("inputs"), Tensor) or rows["inputs"].shape[1:] != torch.Size(old.stream.input_shape):
        return []
    return [
        ("what the memory holds", TensorData(rows["inputs"].cpu(), rows["targets"].cpu(), task=rows.get("task")), None)
    ]


def _compared(
    name: str,
    old: Engine,
    new: Engine,
    data: Data,
    task: int | None,
    classes: dict[int, list[int]],
    rows_of: list[bytes],
) -> Kept:
    """Two models on the same rows.

    Adds what tells these rows from others' to `rows_of`, and, unless the same rows were there before, rows, right
    before, right now and right twice of each class to `classes`.
    """
    targets: list[Tensor] = []
    answers: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in data.batches(torch.arange(len(data)), ROWS):
        targets.append(batch.targets.cpu())
        for engine, model_answers in zip((old, new), answers):
            each: Any = task if batch.task is None else batch.task
            model_answers.append(outputs(engine, batch.inputs, each))
    wanted = torch.cat(targets)
    asked_before = (rows := _answers_digest(wanted, torch.cat(answers[0]))) in rows_of
    rows_of.append(rows)
    if wanted.is_floating_point():
        wide = wanted.flatten(1).double()
        errors = [float((torch.cat(one).flatten(1).double() - wide).abs().mean()) for one in answers]
        return Kept.of_errors(name, len(wanted), *errors)
    before, now = (torch.cat([part.argmax(1) for part in one]) == wanted for one in answers)
    for label in [] if asked_before else wanted.unique().tolist():
        here = wanted == label
        counts = (here, before & here, now & here, before & now & here)
        kept = classes.setdefault(label, [0, 0, 0, 0])
        classes[label] = [count + int(one.sum()) for count, one in zip(kept, counts)]
    count, both = len(wanted), int((before & now).sum())
    return Kept.counted(name, (int(before.sum()), count), (int(now.sum()), count), both)


def _answers_digest(targets: Tensor, model_answers: Tensor) -> bytes:
    """The same for the same rows: one model answers them alike, to the last bit."""
    parts = (targets.contiguous(), model_answers.float().contiguous())
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).digest()


def answered(restored: Restored, inputs: Tensor, task: int | None) -> Tensor:
    """Outputs for raw inputs, `[rows, outputs]` on the CPU."""
    size = restored.eval_batch_size
    return torch.cat([outputs(restored.engine, part, task) for part in inputs.split(size)])


def shift_of(restored: Restored, inputs: Tensor | None, old: Tensor | None = None) -> Shift | None:
    """Whether new inputs come from the distribution of old ones; None if there are none to compare.

    Args:
        restored: the model, whose preparation of the inputs is used, and whose memory holds old ones.
        inputs: raw, `[rows, ...]`.
        old: raw ones; None for those of the memory.
    """
    against = "old test data"
    memory = restored.engine.learner.memory
    if old is None and memory is not None and len(memory):
        old, against = memory.all().get("inputs"), "what the memory holds"
    if (
        not isinstance(old, Tensor)
        or inputs is None
        or old.shape[1:] != inputs.shape[1:]
        or min(map(len, (old, inputs))) < 2
    ):
        return None
    prepare = restored.engine.learner.prepare
    sides = []
    for number, rows in enumerate((old, inputs)):
        generator = torch.Generator().manual_seed(number)
        rows = rows[torch.randperm(len(rows), generator=generator)[:COMPARED]].cpu()
        sides.append((rows if prepare is None else prepare(rows, False, None)).flatten(1).float())
    test = MMD().fit(sides[0])
    score = test.score(sides[1])
    return Shift(score, test.p_value, against, test.drifted, test.level)
