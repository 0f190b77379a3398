"""What a search shall begin with: published methods and single operations on five data sets, at their defaults.

python benchmarks/search_portfolio.py --out DIR                          all five: usps, kmnist, mixed, gas, digits
python benchmarks/search_portfolio.py --out DIR --data usps --json FILE  one of them, into a file of results
python benchmarks/search_portfolio.py --page docs/search_portfolio.md    the page of the committed results

Of an operation every combination of its choices is tried, where these are at most eight. Measured is the accuracy on
validation data after all experiences, with one seed; what keeps more than the limit, or diverges, counts as 0 %. The
portfolio is greedy: next comes what most raises the mean, over the data sets, of the best so far as a part of the best
of all (as in Feurer et al. 2022, "Auto-sklearn 2.0"). None of the data are those of `search_gain.py`.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import os
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_gain import features

from holdfast.config import kinds
from holdfast.core.errors import HoldfastError
from holdfast.discovery.command import planned
from holdfast.discovery.plan import Plan, published
from holdfast.discovery.trial import reach
from holdfast.metrics.log import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "search_portfolio.json"
MOST_CHOICES, MOST_SECONDS = 8, 20
RAW = ["model.hidden=[50]", "memory=100", "protocol=validation", "at_most.memory=300kB"]
DATA: dict[str, list[str]] = {
    "usps": ["stream.experiences=5", "trainer.epochs=2", *RAW],
    "kmnist": ["stream.experiences=5", "trainer.epochs=2", *RAW],
    "mixed": ["stream.experiences=10", "trainer.epochs=5", "model.hidden=[100]", "memory=200", "protocol=validation",
              "at_most.memory=600kB"],
    "gas": ["stream.experiences=6", "trainer.epochs=3", *RAW],
    "digits": ["stream.experiences=10", "trainer.epochs=2", *RAW],
}  # fmt: skip
DRAWN = {"kmnist": (10_000, 2500), "usps": (7291, 2000), "gas": (6697, 2500)}
"""How many samples there are, and how many of them are drawn."""

ABOUT = {
    "usps": "2,000 images of USPS, pixels",
    "kmnist": "2,500 images of KMNIST's test part, halved in size, pixels",
    "mixed": "Fashion-MNIST and KMNIST, 20 classes of 150, as 256 frozen features",
    "gas": "2,500 rows of the gas sensor array",
    "digits": "the digits of scikit-learn",
}


# Data ------------------------------------------------------------------------------------------------------


def prepared(name: str, folder: Path) -> list[str]:
    """The words that name a data set, whose file is made once from those in `$HOLDFAST_DATA`."""
    if name == "digits":
        return ["stream.dataset=digits"]
    file, root = folder / f"{name}.npz", Path(os.environ["HOLDFAST_DATA"])
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        content = mixed(root) if name == "mixed" else drawn(name, *rows(name, root))
        with open(folder / f".{name}.tmp", "wb") as out:
            np.savez(out, **content)
        os.replace(folder / f".{name}.tmp", file)
    return ["stream.dataset=npz", f"stream.dataset.path={file}"]


def rows(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All samples of a data set, and their classes."""
    if name == "usps":
        import h5py

        with h5py.File(root / "usps" / "usps.h5") as file:
            return file["train"]["data"][:].reshape(-1, 256), file["train"]["target"][:]
    if name == "kmnist":
        images, labels = kmnist(root)
        return images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(images), -1) / 255, labels
    table, classes = [], []
    for batch in sorted((root / "gas_drift").glob("*.gz")):
        for line in gzip.decompress(batch.read_bytes()).decode().splitlines():
            first, *rest = line.split()
            classes.append(int(first.split(";")[0]) - 1)
            table.append([float(value.split(":")[1]) for value in rest])
    values = np.array(table)
    return ((values - values.mean(0)) / values.std(0)).clip(-10, 10), np.array(classes)


def kmnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test part of KMNIST."""
    images, labels = (np.load(root / "kmnist_test" / f"kmnist-test-{part}.npz")["arr_0"] for part in ("imgs", "labels"))
    return images, labels


def drawn(name: str, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Some of the samples, three tenths of them for tests."""
    draw = np.random.default_rng(0)
    for other, (size, count) in DRAWN.items():  # one generator draws from all of them, one after the other
        chosen = draw.permutation(size)[:count]
        order = chosen[draw.permutation(count)]
        if other == name:
            break
    cut = int(0.7 * len(order))
    return {
        f"{key}_{part}": value[some].astype(np.float32 if key == "x" else int)
        for part, some in (("train", order[:cut]), ("test", order[cut:]))
        for key, value in (("x", x), ("y", y))
    }


def mixed(root: Path) -> dict[str, np.ndarray]:
    """Fashion-MNIST and KMNIST as one data set, as features that were learned without labels."""

    def idx(path: Path) -> np.ndarray:
        raw = gzip.decompress(path.read_bytes())
        shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    draw, images, classes = np.random.default_rng(0), [], []
    fashion = [idx(root / "fashion_mnist" / f"t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1")]
    for number, (x, y) in enumerate((fashion, kmnist(root))):
        some = np.concatenate([draw.permutation(np.flatnonzero(y == label))[:150] for label in range(10)])
        images.append(x[some])
        classes.append(y[some].astype(int) + 10 * number)
    order = draw.permutation(3000)
    x = np.pad(np.concatenate(images)[order], ((0, 0), (2, 2), (2, 2)))[..., None]
    y = np.concatenate(classes)[order]
    low, high = features(x[:2400], x[2400:])
    return {"x_train": low, "y_train": y[:2400], "x_test": high, "y_test": y[2400:]}


# Candidates ------------------------------------------------------------------------------------------------


class Written:
    """A trial whose answers are written down; the first or least where nothing is."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """What is written, else the first."""
        return self.params.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """What is written, else the least."""
        return int(self.params.get(name, low))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """What is written, else the least."""
        return float(self.params.get(name, low))


def candidates(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every published method that is a point of the space, then every operation alone, by name."""
    for name in kinds.names("methods"):
        try:
            yield name, plan.space.point(published(name, {}))
        except (HoldfastError, TypeError):
            continue
    defaults = plan.space.defaults()
    for operation, every in plan.space.operations.items():
        axes = [axis for axis in every if axis.choices]
        combinations = list(itertools.product(*(axis.labels for axis in axes)))
        if len(combinations) > MOST_CHOICES:
            combinations = [tuple(defaults[axis.name] for axis in axes)]
        for labels in combinations:
            params = plan.alone(operation) | {axis.name: label for axis, label in zip(axes, labels)}
            name = f"{operation} alone" + (f" ({', '.join(map(str, labels))})" if len(combinations) > 1 else "")
            try:
                yield name, plan.space.suggest(Written(params))
            except HoldfastError:
                continue


def measured(plan: Plan) -> dict[str, dict[str, Any]]:
    """Candidate -> `accuracy` (0 where it diverged or failed) and `kilobytes`; what is a job of before is left out."""
    keys: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, params in candidates(plan):
        try:
            key = plan.accepted(params, keys)
            keys[key] = name
            with tempfile.TemporaryDirectory() as folder:
                job = plan.trial_job(params)
                found = reach(Path(folder), job, plan.prefixes[-1], most_seconds=MOST_SECONDS)
        except HoldfastError:
            continue
        except Exception as error:
            print(f"{name}: {error}")
            continue
        accuracy = found.values.get("average_accuracy", 0.0) if found.state == "done" else 0.0
        rows[name] = {"accuracy": accuracy, "kilobytes": found.values.get("method_bytes_peak", 0.0) / 1e3}
    return rows


# What follows ----------------------------------------------------------------------------------------------


def within(kept: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Data set -> candidate -> accuracy as a part of the best; 0 beyond the limit."""
    parts = {}
    for data, rows in kept.items():
        limit = float(next(word for word in DATA[data] if word.startswith("at_most.memory=")).split("=")[1][:-2])
        values = {name: one["accuracy"] * (one["kilobytes"] <= limit) for name, one in rows.items()}
        parts[data] = {name: value / max(values.values()) for name, value in values.items()}
    return parts


def portfolio(parts: Mapping[str, Mapping[str, float]], count: int) -> list[str]:
    """The greedy portfolio; where two add the same, the one that is better by itself."""
    names = sorted({name for rows in parts.values() for name in rows})
    chosen: list[str] = []

    def worth(name: str) -> tuple[float, float]:
        together = sum(max(rows.get(one, 0.0) for one in (*chosen, name)) for rows in parts.values())
        return round(together, 3), sum(rows.get(name, 0.0) for rows in parts.values())

    while len(chosen) < count:
        chosen.append(max((name for name in names if name not in chosen), key=worth))
    return chosen


def page(kept: Mapping[str, Any]) -> str:
    """The page of the committed results."""
    parts = within(kept)
    order = portfolio(parts, 4)
    mean = {name: sum(rows.get(name, 0.0) for rows in parts.values()) / len(parts)
            for name in {name for rows in parts.values() for name in rows}}  # fmt: skip

    def row(label: str, values: Sequence[float]) -> str:
        return f"| {label} | {' | '.join(f'{100 * value:.1f}' for value in values)} |"

    lines = ["# What a search begins with", "", *_paragraphs(), "", "## The portfolio", ""]
    lines += [f"| the best of | {' | '.join(parts)} |", f"| --- |{' --- |' * len(parts)}"]
    for number in range(1, len(order) + 1):
        together = [max(rows.get(one, 0.0) for one in order[:number]) for rows in parts.values()]
        lines.append(row(f"{'and ' if number > 1 else ''}{order[number - 1]}", together))
    lines += ["", "What the first three of a portfolio that was chosen on four data sets reach on the fifth:", ""]
    lines += ["| left out | first three | best of them, % of the best |", "| --- | --- | --- |"]
    for data, rows in parts.items():
        three = portfolio({other: some for other, some in parts.items() if other != data}, 3)
        lines.append(f"| {data} | {', '.join(three)} | {100 * max(rows.get(one, 0.0) for one in three):.1f} |")
    lines += ["", "## By itself", "", f"| the 25 best by their mean | {' | '.join(parts)} | mean |"]
    lines += [f"| --- |{' --- |' * len(parts)} --- |"]
    for name in sorted(mean, key=lambda one: -mean[one])[:25]:
        lines.append(row(name, [*(rows.get(name, 0.0) for rows in parts.values()), mean[name]]))
    return "\n".join([*lines, ""])


def _paragraphs() -> list[str]:
    data = "; ".join(f"{name}: {about} (`{' '.join(DATA[name])}`)" for name, about in ABOUT.items())
    text = f"""
        Every published method that is a point of a search, and every operation alone with each of its choices, at
        default numbers: accuracy on validation data after all experiences, one seed, as % of the best on that data set
        that keeps to the limit on bytes (0: beyond the limit, or diverged). {data}. None of them are the data on which
        [a search is measured](search_gain.md)."""
    names = """
        The portfolio is greedy: next comes what most raises the mean of the best so far. Its first three are what a
        search begins with; `mahalanobis alone (False, features)` is FeCAM without training first. Then come the best
        known methods, and those that are best by themselves."""
    command = "python benchmarks/search_portfolio.py --out DIR"
    written = """The numbers are in `benchmarks/results/search_portfolio.json`; `--page docs/search_portfolio.md` writes
        this page."""
    wrapped = [textwrap.fill(" ".join(one.split()), 118, break_on_hyphens=False) for one in (text, names, written)]
    return [wrapped[0], "", wrapped[1], "", "```console", command, "```", "", wrapped[2]]


def main() -> None:
    """Measure and print the portfolio, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(DATA), action="append", default=[])
    parser.add_argument("--out", type=Path, help="folder of the data sets as they are learned")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of results that this one joins")
    parser.add_argument("--page", type=Path, help="write the page of the committed results, and measure nothing")
    arguments = parser.parse_args()
    if arguments.page is not None:
        arguments.page.write_text(page(read_json(RESULTS)))
        return
    if arguments.out is None:
        parser.error("--out is missing")
    for name in arguments.data or DATA:
        words = [*prepared(name, arguments.out), *DATA[name]]
        rows = measured(planned(None, words, trials=24, finals=0, warm_start=False))
        write_json(arguments.json, {**read_json(arguments.json), name: rows})
        print(name, len(rows), "measured", flush=True)
    for name in portfolio(within(read_json(arguments.json)), 8):
        print(name)


if __name__ == "__main__":
    main()
