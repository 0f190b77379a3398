"""Trains with every method in every way, on a stream that takes a blink, and writes which weights were equal.

python docs/conformance.py            write docs/conformance.md, for a release
python docs/conformance.py er lwf     print the rows of these methods

The comparisons are those of `holdfast.testing.check_method`, which every method has to pass anyway; this page says
which of the permitted answers each of them gives. No test asks for its rows.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch

from holdfast import methods
from holdfast.core.needs import NEEDS
from holdfast.testing import ways
from holdfast.testing.construction import MethodSubject
from holdfast.testing.toys import model_for, small

PAGE = Path(__file__).resolve().parent / "conformance.md"
COLUMNS = ("wrapper", "Lightning", "unlabelled stream", "stream with a boundary")
HEAD = f"""# The same weights in every way to train

<!-- Written by docs/conformance.py from its own run. -->

Every method, trained in every way on the same batches: three experiences of two classes, ten samples each,
{ways.EPOCHS} epochs, batches of {ways.BATCH} (the last one smaller), a small MLP, SGD with momentum. `equal` says that
every weight is `torch.equal` at the end to what `Trainer(method).fit(model, stream)` gives, and so is every prediction
on the test data; `refused` says that the way to train raised an error that says why and what to write instead: as soon
as the method was bound, and `moved weights` at the first boundary.

* **wrapper**: `Continual(model, method, optimizer)` in a plain loop, with `begin` and `end`.
* **Lightning**: `ContinualCallback(method)` with `StreamDataModule(stream)`, all experiences in one `fit`.
* **unlabelled stream**: `StreamTrainer(model, method)` over the trainer's batches in their order, compared with the
  trainer; `equal to the loop` where a method uses the classes of an experience if they are announced, and does
  something else if they are not: then it is compared with `Continual` in a loop without `begin`.
* **stream with a boundary**: `StreamTrainer(..., boundary=Every(steps=4))`, compared with `Continual` with the same.

`python docs/conformance.py` writes this page at a release; `holdfast.testing.check_method` checks the same of a method
of yours.

"""


def row(name: str) -> list[str]:
    """What every way gives for one method.

    Raises:
        CheckError: if a way neither gives equal weights nor is refused.
    """
    factory = getattr(methods, name)
    subject = MethodSubject(name, factory, factory, small, model_for(factory()))
    head = ways.natural_head(subject)
    spec = ways.OPTIMIZERS["momentum"]
    reference = ways.Outcome(subject, head, ways.by_trainer, spec)
    return [f"[`{name}`](methods/{name}.md)", *(ways.compared(subject, head, way, reference, spec) for way in COLUMNS)]


def page(names: list[str]) -> str:
    """The whole page, from a run of these methods in every way."""
    lines = [["method", *COLUMNS], ["---"] * (len(COLUMNS) + 1), *(row(name) for name in names)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    used = [need for need in NEEDS if f"refused: {need}" in table]
    legend = [f"* **{need}**: the method {NEEDS[need]}." for need in used]
    legend.append("* **moved weights**: the method changes weights at a boundary, which is detected after the forward.")
    return (
        f"{HEAD}{table}\n\nWhere it says `refused`, the reason is what the method needs:\n\n" + "\n".join(legend) + "\n"
    )


def main() -> None:
    """Write the page, or print some of its rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            print(" | ".join(row(name)))
        return
    PAGE.write_text(page(list(methods.__all__)), encoding="utf-8")


if __name__ == "__main__":
    main()
