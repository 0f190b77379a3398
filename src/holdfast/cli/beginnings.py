"""`holdfast init table | images | method`: a commented starting point that runs as it is, to be changed by line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.common import reported
from holdfast.core.errors import ConfigError, unknown

# Nothing that imports torch may be imported here: `holdfast --help` answers at once.

TRAINING = """\
model:
  name: mlp
  hidden: [100, 100]       # units of the hidden layers
method: er                 # experience replay: `holdfast list methods` names the others
optimizer:
  name: SGD
  lr: 0.1
trainer:
  epochs: 10               # passes over each experience
  batch_size: 32
references: [finetune, joint]   # to compare with: nothing done against forgetting, and everything at once
seed: 0                    # or several: seeds: 5
"""

TABLE = """\
# Learn a table whose rows arrive over time: one experience after the other, without losing the earlier ones.
#   holdfast run table.yaml              learns it, and prints the folder with the report
#   holdfast predict RUN new.csv         gives new rows a label, without this table
stream:
  name: grouped            # an experience for each group of rows; `split` makes one for each few classes instead
  dataset:
    name: csv              # or parquet
    path: {path}
    target: {target}            # the column to predict
    by: {by}              # the column that makes the groups: dates, a machine, a hospital
    period: month          # of dates: year, quarter, month, week, day or hour; leave it out for other columns
    # features: [a, b]     # only these columns are learned from; or leave some out:
    # drop: [id]
    # missing: mean        # rows with empty cells are refused; or drop
    # kind: regression     # where the target is a number; then also criterion: mse, below
"""

IMAGES = """\
# Learn a folder of images with one sub-folder for each class: a few classes, then the next few.
#   holdfast run images.yaml             learns it, and prints the folder with the report
#   holdfast predict RUN photo.png       names the class of new images, without these
stream:
  name: split
  experiences: 2           # how many times new classes arrive
  dataset:
    name: image_folder
    path: {path}
    size: 16               # height and width that all images are brought to
    # grayscale: true
    # normalise: true
"""

METHOD = '''\
"""A method of your own: an operation, and the method that uses it. `holdfast run method.yaml --plugin my_method.py`"""

from torch import Tensor

from holdfast import Method, Operation, Services, Step
from holdfast.core.ranges import NonNegative
from holdfast.operations import Remember, Replay


class SmallLogits(Operation):
    """Outputs are kept small, which keeps new classes from drowning old ones.

    Args:
        weight: of the mean square of the outputs in the loss.
    """

    role = "knowledge retention"

    def __init__(self, weight: NonNegative = 0.01) -> None:
        super().__init__()
        self.weight = weight

    def loss(self, step: Step, learner: Services) -> Tensor:
        """What is added to the loss of each step."""
        return self.weight * step.outputs.square().mean()


def my_method(weight: NonNegative = 0.01, capacity: int = 200) -> Method:
    """Experience replay with small outputs.

    Args:
        weight: of the mean square of the outputs in the loss.
        capacity: samples that are remembered.
    """
    return Method(Replay(size=32), SmallLogits(weight), Remember(capacity=capacity), name="my_method")
'''

METHOD_JOB = """\
# Try a method of your own beside those of the papers.
#   holdfast run method.yaml --plugin my_method.py
#   holdfast run -m method.yaml --plugin my_method.py method=my_method,er,der_plus_plus seed=0,1,2
stream:
  name: split
  experiences: 5
  dataset: digits
method:
  name: my_method
  weight: 0.01             # an argument of the function my_method
"""

KINDS = ("table", "images", "method")


def init(
    kind: Annotated[str, typer.Argument(metavar="table|images|method", help="What to begin with.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where to write it; made if it does not exist.")] = Path(),
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Your table, or your folder of images; none makes an example.", show_default=False),
    ] = None,
) -> None:
    """Write a commented starting point that runs as it is: a job for your table or images, or a method of your own."""
    with reported():
        if kind not in KINDS:
            raise ConfigError(unknown("beginning", kind, KINDS))
        if kind == "images" and data is None and (folder / "pictures").exists():
            raise ConfigError(f"{folder / 'pictures'} exists already, and nothing is overwritten. Name another folder.")
        files = _files(kind, data)
        for name in files:
            if (folder / name).exists():
                raise ConfigError(f"{folder / name} exists already, and nothing is overwritten. Name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "images" and data is None:
            _make_images(folder / "pictures")
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
            typer.echo(str(folder / name))
        job = next(name for name in files if name.endswith(".yaml"))
        plugin = " --plugin my_method.py" if kind == "method" else ""
        inside = "" if folder == Path() else f"cd {folder} && "
        typer.echo(f"run it: {inside}holdfast run {job}{plugin}", err=True)


def _files(kind: str, data: Path | None) -> dict[str, str]:
    """The files to write, by name."""
    if kind == "method":
        lines = [line for line in TRAINING.splitlines(keepends=True) if not line.startswith("method:")]
        return {"my_method.py": METHOD, "method.yaml": METHOD_JOB + "".join(lines)}
    if kind == "images":
        images = IMAGES.format(path="pictures" if data is None else data.resolve())
        return {"images.yaml": images + TRAINING}
    if data is None:
        table = TABLE.format(path="measurements.csv", target="gas", by="date")
        return {"table.yaml": table + TRAINING, "measurements.csv": _example_table()}
    target, by = _columns(data)
    return {"table.yaml": TABLE.format(path=data.resolve(), target=target, by=by) + TRAINING}


def _columns(path: Path) -> tuple[str, str]:
    """The target and the column that groups, as far as they can be guessed: the last one, and the first of dates."""
    import json

    from holdfast.streams.datasets.columns import dates
    from holdfast.streams.datasets.text import read_table

    raw = read_table(path)
    dated = next((name for name, column in zip(raw.names, raw.values) if dates(column) is not None), raw.names[0])
    return json.dumps(raw.names[-1]), json.dumps(dated)


def _example_table() -> str:
    """Three gases that two sensors tell apart, while the sensors drift from month to month."""
    import random

    draw = random.Random(0)
    lines = ["date,sensor_1,sensor_2,site,gas"]
    for month in range(1, 5):
        for row in range(90):
            number = row % 3
            one, two = draw.gauss(2 * number + 0.4 * month, 0.5), draw.gauss(number - 0.3 * month, 0.5)
            gas, site = ("acetone", "ethanol", "toluene")[number], draw.choice(("north", "south"))
            lines.append(f"2024-{month:02d}-{1 + row // 4:02d},{one:.3f},{two:.3f},{site},{gas}")
    return "\n".join(lines) + "\n"


def _make_images(folder: Path) -> None:
    """Circles, crosses, bars and squares of random places and sizes, forty of each."""
    import numpy as np

    from holdfast.core.errors import needs_extra

    try:
        from PIL import Image
    except ImportError as error:
        raise needs_extra("init images", "Pillow", "images") from error
    draw = np.random.default_rng(0)
    y, x = np.mgrid[0:16, 0:16]
    for name in ("bars", "circles", "crosses", "squares"):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            row, column, size = draw.uniform(5, 10), draw.uniform(5, 10), draw.uniform(2.5, 4.5)
            down, across = np.abs(y - row), np.abs(x - column)
            shape = {
                "bars": down < 1.2,
                "circles": np.abs(np.hypot(down, across) - size) < 0.9,
                "crosses": np.minimum(down, across) < 0.9,
                "squares": np.abs(np.maximum(down, across) - size) < 0.9,
            }[name]
            colour = draw.uniform(120, 255, 3)
            pixels = draw.uniform(0, 60, (16, 16, 3)) + shape[:, :, None] * colour
            Image.fromarray(pixels.clip(0, 255).astype("u1")).save(folder / name / f"{number:02d}.png")
