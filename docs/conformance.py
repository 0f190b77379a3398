"""Trains with every method in every way, on a stream that takes a blink, and writes which weights were equal.

python docs/conformance.py            write docs/conformance.md
python docs/conformance.py --check    write nothing; say what is out of date, and exit with 1 if anything is
"""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from holdfast import Continual, Every, StreamTrainer, Trainer, datasets, methods, models, streams
from holdfast.core.errors import HoldfastError, NeedError
from holdfast.core.experience import Batch, Stream
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS

PAGE = Path(__file__).resolve().parent / "conformance.md"
ROWS, BATCH, EPOCHS, SEED, LR, MOMENTUM = 28, 8, 2, 3, 0.05, 0.5
WAYS = ("trainer", "wrapper", "Lightning", "unlabelled stream", "stream with a boundary")
HEAD = f"""# The same weights in every way to train

<!-- Written by docs/conformance.py from its own run. -->

Every method, trained in every way on the same batches: three experiences of two digits, {ROWS} samples each, {EPOCHS}
epochs, batches of {BATCH} (the last one smaller), a small MLP, SGD with momentum. `equal` says that
every weight is `torch.equal` at the end, and so is every prediction on the test data; `refused` says that the way to
train raised an error that says why and what to write instead: as soon as the method was bound, and `moved weights`
at the first boundary.

* **trainer**: `Trainer(method).fit(model, stream)`; the others are held against it.
* **wrapper**: `Continual(model, method, optimizer)` in a plain loop, with `begin` and `end`.
* **Lightning**: `ContinualCallback(method)` with `StreamDataModule(stream)`, all experiences in one `fit`.
* **unlabelled stream**: `StreamTrainer(model, method)` over the trainer's batches in their order. Held against the
  trainer; `equal to the loop` where a method uses the classes of an experience if they are announced, and so does
  something else if they are not: then it is held against `Continual` in a loop without `begin`.
* **stream with a boundary**: `StreamTrainer(..., boundary=Every(steps=4))`, held against `Continual` with the same.

`python docs/conformance.py` writes this page again; `pytest -m slow tests/conformance` checks that it says what a run
gives.

"""

Loop = Callable[[Method, nn.Module, Stream], Callable[..., Tensor]]


def tiny(paradigm: str) -> Stream:
    """Three experiences of two digits."""
    stream = streams.split(datasets.digits(), experiences=5, paradigm=paradigm)
    kept = stream.experiences[:3]
    for experience in kept:
        experience.train = experience.train.subset(torch.arange(ROWS))
        experience.test = experience.test.subset(torch.arange(12)) if experience.test is not None else None
        experience.validation = None
    return Stream(kept, stream.input_shape, 6, stream.paradigm, stream.prepare, "three pairs of digits")


def net(stream: Stream, head: str) -> nn.Module:
    """The same network every time."""
    return models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[12], head=head, seed=0)


def sgd(parameters: object) -> torch.optim.SGD:
    """The optimiser of every way."""
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)  # type: ignore[arg-type]


# The ways to train ---------------------------------------------------------------------------------------


def by_trainer(method: Method, model: nn.Module, stream: Stream) -> Callable[..., Tensor]:
    """Our own loop."""
    optimizer = {"name": "SGD", "lr": LR, "momentum": MOMENTUM}
    trainer = Trainer(method, optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH, evaluate="none", seed=SEED)
    trainer.fit(model, stream)

    def predict(inputs: Tensor, task: int | None) -> Tensor:
        with trainer.engine.evaluating(), torch.no_grad():
            return trainer.engine.predict(inputs, task)

    return predict


def by_wrapper(method: Method, model: nn.Module, stream: Stream) -> Callable[..., Tensor]:
    """The user's loop with `begin` and `end`."""
    optimizer = sgd(model.parameters())
    cl = Continual(model, method, optimizer, prepare=stream.prepare, seed=SEED)
    order = cl.learner.rng("order")
    for experience in stream:
        data = cl.begin(experience, epochs=EPOCHS, batch_size=BATCH)
        for _ in range(EPOCHS if len(data) else 0):
            for batch in data.batches(torch.randperm(len(data), generator=order), BATCH):
                one_step(cl, optimizer, batch)
        cl.end()
    return cl.predict


def one_step(cl: Continual, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """A step of the user's loop."""
    loss = cl.loss(cl(batch.inputs, batch.task), batch.targets, batch.inputs)
    optimizer.zero_grad()
    cl.backward(loss, batch.targets, inputs=batch.inputs, task=batch.task)
    optimizer.step()


def by_lightning(method: Method, model: nn.Module, stream: Stream) -> Callable[..., Tensor]:
    """Lightning's loop."""
    import lightning.pytorch as lightning

    from holdfast.lightning import ContinualCallback, StreamDataModule

    callback = ContinualCallback(method, seed=SEED)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return callback.loss(self.net(batch[0]), batch[1], batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.parameters())

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_epochs=EPOCHS * len(stream), callbacks=[callback], accelerator="cpu", **dict.fromkeys(off, False)
    )
    trainer.fit(Module(), datamodule=StreamDataModule(stream, batch_size=BATCH, epochs=EPOCHS))
    return callback.predict


def arriving(stream: Stream) -> Iterator[Batch]:
    """The batches that the trainer takes, in its order, where no method chooses others."""
    from holdfast.core.learner import derive_seed

    order = torch.Generator().manual_seed(derive_seed(SEED, "order"))
    for experience in stream:
        for _ in range(EPOCHS):
            rows = torch.randperm(len(experience.train), generator=order)
            yield from experience.train.batches(rows, BATCH)


def by_stream(method: Method, model: nn.Module, stream: Stream, boundary: Every | None = None) -> Callable[..., Tensor]:
    """Batches as they arrive."""
    optimizer = {"name": "SGD", "lr": LR, "momentum": MOMENTUM}
    trainer = StreamTrainer(model, method, optimizer=optimizer, boundary=boundary, prepare=stream.prepare, seed=SEED)
    trainer.train(arriving(stream))
    return trainer.predict


def by_plain_loop(
    method: Method, model: nn.Module, stream: Stream, boundary: Every | None = None
) -> Callable[..., Tensor]:
    """The user's loop over the same, without `begin` and `end`."""
    optimizer = sgd(model.parameters())
    cl = Continual(model, method, optimizer, boundary=boundary, prepare=stream.prepare, seed=SEED)
    for batch in arriving(stream):
        one_step(cl, optimizer, batch)
    return cl.predict


# What came of it -----------------------------------------------------------------------------------------


class Outcome:
    """Weights and predictions after training in one way, or the sentence it was refused with."""

    def __init__(self, name: str, train: Loop) -> None:
        method = getattr(methods, name)()
        task = "task" in method.needs
        stream = tiny("task" if task else "class")
        model = net(stream, "task" if task else "fixed")
        self.refused: HoldfastError | None = None
        try:
            predict = train(method, model, stream)
        except HoldfastError as error:
            self.refused = error
            return
        self.values = dict(model.state_dict())
        model.eval()
        for experience in stream:
            assert experience.test is not None
            test = experience.test.gather(torch.arange(len(experience.test)))
            self.values[f"predictions {experience.index}"] = predict(test.inputs, experience.task)

    def equals(self, other: Outcome) -> bool:
        """Whether both ended with the same weights and predictions."""
        one, two = self.values, other.values
        return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    def reason(self) -> str:
        """Why it was refused: the need by its name, else the sentence."""
        sentence = str(self.refused)
        if "changes weights at a boundary" in sentence:
            return "refused: moved weights"
        for need, why in NEEDS.items():
            if isinstance(self.refused, NeedError) and why in sentence:
                return f"refused: {need}"
        return f"refused: {sentence}"


def row(name: str) -> list[str]:
    """What every way gives for one method.

    Raises:
        AssertionError: if a way neither gives equal weights nor is refused.
    """
    cells = []
    reference = Outcome(name, by_trainer)
    start = Outcome(name, lambda method, model, stream: lambda inputs, task: torch.zeros(()))
    for way, train in zip(WAYS, (by_trainer, by_wrapper, by_lightning, by_stream, with_boundary(by_stream))):
        found = reference if way == "trainer" else Outcome(name, train)
        if found.refused is not None:
            cells.append(found.reason())
            continue
        if way != "stream with a boundary" and found.equals(reference):
            cells.append("equal")
            continue
        loop = with_boundary(by_plain_loop) if way == "stream with a boundary" else by_plain_loop
        if not way.endswith(("stream", "boundary")) or not found.equals(Outcome(name, loop)):
            raise AssertionError(f"{name}, {way}: other weights")
        cells.append("equal" if way == "stream with a boundary" else "equal to the loop")
    if not reference.refused and all(torch.equal(start.values[key], reference.values[key]) for key in start.values):
        raise AssertionError(f"{name} learned nothing")
    return [f"[`{name}`](methods/{name}.md)", *cells]


def with_boundary(train: Callable[..., Callable[..., Tensor]]) -> Loop:
    """The same with a boundary every four steps."""
    return lambda method, model, stream: train(method, model, stream, Every(steps=4, window=16))


def page(names: list[str] | None = None) -> str:
    """The whole page, from a run of every method in every way."""
    rows = [row(name) for name in names or methods.__all__]
    lines = [["method", *WAYS], ["---"] * (len(WAYS) + 1), *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    used = [need for need in NEEDS if re.search(rf"refused: {need}\b", table)]
    legend = [f"* **{need}**: the method {NEEDS[need]}." for need in used]
    legend.append("* **moved weights**: the method changes weights at a boundary, which is found after the forward.")
    return (
        f"{HEAD}{table}\n\nWhere it says `refused`, the reason is what the method needs:\n\n" + "\n".join(legend) + "\n"
    )


def quiet() -> None:
    """Let nothing but this script print."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    quiet()
    text = page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), text.splitlines(True), "committed", "this run"))
    return int(old != text)


if __name__ == "__main__":
    sys.exit(main())
