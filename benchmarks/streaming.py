"""What a step on an endless stream costs, as a ratio to a hand-written loop that predicts, learns and counts the same.

    python benchmarks/streaming.py [--rounds 9] [--steps 3000] [--json FILE]

One process, one thread, CPU seconds of the process (`--wall` for the clock on the wall). Every round runs each
candidate once, in turn; the figure is the median over rounds of the ratio within the round, so that a machine whose
speed drifts does not matter. The hand-written loop counts right predictions at every step, as `StreamTrainer.accuracy`
does; ours records loss and accuracy every 50 steps as well.

Also, against a hand-written counterpart: `ContinualClassifier` one sample at a time; the sources of files (CSV,
Parquet, openPMD over HDF5 and BP) beside a bare read of the same file (above 1 it is slower); how busy a reservoir
keeps the trainer with a producer half as fast; and with `--items N` the memory of the process over so many rows of a
file.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.util
import itertools
import json
import random
import resource
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import ContinualClassifier, StreamTrainer
from holdfast.core.source import Arrays, Iterated, Source
from holdfast.methods import er, finetune
from holdfast.models import mlp
from holdfast.sources import Csv, OpenPMD, Parquet, Queued

LR, CAPACITY = 0.01, 500


def images(count: int) -> tuple[Tensor, Tensor]:
    """MNIST-shaped noise: the cost of a step does not depend on what is in the images."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 28, 28, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def net(hidden: int) -> nn.Module:
    """The two-layer network of the measurements."""
    return mlp(input_shape=(1, 28, 28), classes=10, hidden=[hidden, hidden], seed=0)


def arriving(inputs: Tensor, targets: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs as they arrive."""
    yield from zip(inputs.split(batch), targets.split(batch))


def by_hand(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int) -> float:
    """Fine-tuning: predict, count, learn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for x, y in arriving(inputs, targets, batch):
        outputs = model(x)
        right += (outputs.detach().argmax(1) == y).sum()
        seen += len(y)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
    return float(right) / seen


def by_hand_with_replay(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int) -> float:
    """The same with experience replay: a vectorised reservoir, one joined forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    kept_inputs, kept_targets = torch.empty(CAPACITY, *inputs.shape[1:]), torch.empty(CAPACITY, dtype=torch.int64)
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for x, y in arriving(inputs, targets, batch):
        if seen:
            drawn = torch.randperm(min(seen, CAPACITY))[:batch]
            outputs, all_targets = model(torch.cat((x, kept_inputs[drawn]))), torch.cat((y, kept_targets[drawn]))
        else:
            outputs, all_targets = model(x), y
        right += (outputs.detach()[: len(y)].argmax(1) == y).sum()
        optimizer.zero_grad()
        F.cross_entropy(outputs, all_targets).backward()
        optimizer.step()
        numbers = torch.arange(seen, seen + len(y))
        slots = (torch.rand(len(y), dtype=torch.float64) * (numbers + 1)).long()
        slots = torch.where(numbers < CAPACITY, numbers, slots)
        accepted = slots < CAPACITY
        kept_inputs[slots[accepted]] = x[accepted]
        kept_targets[slots[accepted]] = y[accepted]
        seen += len(y)
    return float(right) / seen


def by_trainer(model: nn.Module, inputs: Tensor, targets: Tensor, batch: int, replay: bool, source: bool) -> float:
    """Our endless loop, on an iterator or on a source in memory."""
    method = er(capacity=CAPACITY, size=batch) if replay else finetune()
    trainer = StreamTrainer(model, method, optimizer={"name": "SGD", "lr": LR})
    trainer.train(Arrays(inputs, targets, batch_size=batch) if source else arriving(inputs, targets, batch))
    assert trainer.accuracy is not None
    return trainer.accuracy


# One sample at a time ------------------------------------------------------------------------------------


def samples(count: int) -> tuple[list[dict[str, float]], list[int]]:
    """Features by name, and one of three classes."""
    x = torch.randn(count, 20, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return [{f"f{place}": value for place, value in enumerate(row)} for row in x.tolist()], y.tolist()


def one_by_one_by_hand(rows: list[dict[str, float]], labels: list[int], replay: bool) -> float:
    """Predict in eval mode, count, learn by Adam; with replay from a reservoir of 1000 rows, 32 of them a step."""
    names = sorted(rows[0])
    net = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 3))
    optimizer = torch.optim.Adam(net.parameters())
    kept_inputs, kept_targets = torch.empty(1000, 20), torch.empty(1000, dtype=torch.int64)
    seen = right = 0
    for features, label in zip(rows, labels):
        x, y = torch.tensor([[features[name] for name in names]]), torch.tensor([label])
        net.eval()
        with torch.no_grad():
            right += int(net(x)[0].argmax()) == label
        net.train()
        if replay and seen:
            drawn = torch.randperm(min(seen, 1000))[:32]
            loss = F.cross_entropy(net(torch.cat((x, kept_inputs[drawn]))), torch.cat((y, kept_targets[drawn])))
        else:
            loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if replay:
            slot = seen if seen < 1000 else random.randrange(seen + 1)
            if slot < 1000:
                kept_inputs[slot], kept_targets[slot] = x[0], y[0]
        seen += 1
    return right / seen


def one_by_one(rows: list[dict[str, float]], labels: list[int], replay: bool) -> float:
    """The same with `ContinualClassifier`, which knows the classes after its first samples."""
    import pandas

    method = {"name": "er", "capacity": 1000, "size": 32} if replay else "finetune"
    model = ContinualClassifier(method=method, epochs=1, random_state=0)
    first = [labels.index(label) for label in range(3)]
    model.partial_fit(pandas.DataFrame([rows[place] for place in first])[sorted(rows[0])], range(3))
    right = 0
    for features, label in zip(rows, labels):
        right += model.predict_one(features) == label
        model.learn_one(features, label)
    return right / len(rows)


# Reading -------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: int) -> None:
    """Eight numbers and a class a line."""
    values = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)).tolist()
    with path.open("w") as file:
        file.write(",".join(f"f{place}" for place in range(8)) + ",class\n")
        file.writelines(",".join(f"{value:.6f}" for value in row) + f",{int(row[0] > 0)}\n" for row in values)


def bare_csv(path: Path, batch: int) -> int:
    """Python's csv reader and NumPy, a block at a time, as tensors in batches."""
    import numpy as np

    count = 0
    with path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        while block := list(itertools.islice(lines, 1024)):
            values = np.array(block, dtype=np.float64)
            x, y = torch.from_numpy(values[:, :-1].astype("f4")), torch.from_numpy(values[:, -1].astype("i8"))
            count += sum(len(b) for _, b in zip(x.split(batch), y.split(batch)))
    return count


def bare_parquet(path: Path, batch: int) -> int:
    """Pyarrow's batches of rows, of the size that it chooses, and NumPy, as tensors in batches."""
    import numpy as np
    import pyarrow.parquet as reader

    count = 0
    with reader.ParquetFile(path) as file:
        for block in file.iter_batches():
            *columns, last = (column.to_numpy() for column in block.columns)
            x, y = torch.from_numpy(np.stack(columns, axis=1).astype("f4")), torch.from_numpy(last.astype("i8"))
            count += sum(len(b) for _, b in zip(x.split(batch), y.split(batch)))
    return count


def write_particles(path: Path, rows: int) -> None:
    """Ten iterations of electrons, each with three coordinates and three momenta."""
    import numpy as np
    import openpmd_api as io

    told = {} if path.suffix == ".h5" else {"iteration_encoding": "variable_based"}
    series = io.Series(str(path), io.Access.create_linear, json.dumps(told))
    generator = np.random.default_rng(0)
    for number in range(10):
        iteration = series.snapshots()[number]
        for record, axis in itertools.product(("position", "momentum"), "xyz"):
            values = generator.normal(size=rows // 10).astype(np.float32)
            component = iteration.particles["e"][record][axis]
            component.reset_dataset(io.Dataset(values.dtype, values.shape))
            component.store_chunk(values)
            series.flush()
        iteration.close()
    series.close()


def bare_openpmd(path: Path, batch: int) -> int:
    """openPMD-api in a loop: ask for six components of an iteration, one flush, tensors in batches."""
    import numpy as np
    import openpmd_api as io

    count = 0
    series = io.Series(str(path), io.Access.read_linear, json.dumps({"defer_iteration_parsing": True}))
    for iteration in series.read_iterations():
        electrons = iteration.particles["e"]
        chunks = [[electrons[record][axis].load_chunk() for axis in "xyz"] for record in ("position", "momentum")]
        iteration.close()
        x, y = (torch.from_numpy(np.stack(components, axis=1)) for components in chunks)
        count += sum(len(b) for _, b in zip(x.split(batch), y.split(batch)))
    series.close()
    return count


def our_read(source: Source) -> int:
    """What a source gives."""
    with source:
        return sum(len(one.targets) for one in source.batches())


def readers(rows: int, batch: int, rounds: int) -> list[dict[str, object]]:
    """Each source of files beside the bare read of the same file, as it is and standardised, which that is not.

    Binary files get ten times the rows of the text, which takes more than ten times as long to read.
    """
    found = []
    records = (["particles/e/position"], ["particles/e/momentum"])
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        write_table(table, rows)
        pairs: dict[str, tuple[Path, Callable[[Path, int], int], Callable[[str, bool], Source]]] = {
            "CSV": (table, bare_csv, lambda path, scaled: Csv(path, classes=2, standardise=scaled, batch_size=batch))
        }
        if importlib.util.find_spec("pyarrow"):
            import pyarrow
            import pyarrow.csv
            import pyarrow.parquet

            columns = table.with_suffix(".parquet")
            pyarrow.parquet.write_table(pyarrow.concat_tables([pyarrow.csv.read_csv(table)] * 10), columns)
            parquet = lambda path, scaled: Parquet(path, classes=2, standardise=scaled, batch_size=batch)  # noqa: E731
            pairs["Parquet"] = (columns, bare_parquet, parquet)
        for name, ending in (("HDF5", ".h5"), ("BP", ".bp")) if importlib.util.find_spec("openpmd_api") else ():
            series = Path(folder) / f"electrons{ending}"
            write_particles(series, 10 * rows)
            openpmd = lambda path, scaled: OpenPMD(path, *records, standardise=scaled, batch_size=batch)  # noqa: E731
            pairs[f"openPMD {name}"] = (series, bare_openpmd, openpmd)
        for name, (path, bare, source) in pairs.items():
            assert bare(path, batch) == our_read(source(str(path), False))
            pair: dict[str, Callable[[], object]] = {
                "bare": lambda p=path, b=bare: b(p, batch),  # type: ignore[misc]
                "source": lambda p=path, s=source: our_read(s(str(p), False)),  # type: ignore[misc]
                "standardised": lambda p=path, s=source: our_read(s(str(p), True)),  # type: ignore[misc]
            }
            count = (1 if name == "CSV" else 10) * rows // batch
            row = report(f"reading {name}, batch {batch}", interleave(pair, rounds), count)
            row["speed"] = round(1 / row["source"]["ratio"], 4)  # type: ignore[index]
            print(f"{'':34s} {row['speed']:.2f} of the bare read's speed", flush=True)
            found.append(row)
    return found


# Waiting, and memory -------------------------------------------------------------------------------------


def busy(steps: int, batch: int = 32) -> tuple[float, float]:
    """Share of its time that the trainer does not wait, with a producer half as fast; share of the rows trained on.

    The trainer's time is what its thread used of the processor, and what it waited for a batch: on a machine that does
    other things besides, that is the clock that its work and the producer's pace are measured by.
    """
    x, y = images(steps * batch)
    trainer = StreamTrainer(net(100), er(capacity=CAPACITY, size=batch), optimizer={"name": "SGD", "lr": LR})
    thread = time.pthread_getcpuclockid(threading.get_ident())
    begun = time.clock_gettime(thread)
    trainer.train(Arrays(x[: 20 * batch], y[: 20 * batch], batch_size=batch))
    pace = 2 * (time.clock_gettime(thread) - begun) / 20
    waited: list[Callable[[], float]] = []

    def slowly() -> Iterator[tuple[Tensor, Tensor]]:
        begun = time.clock_gettime(thread)
        for number, pair in enumerate(arriving(x, y, batch)):
            while waited and time.clock_gettime(thread) - begun + waited[0]() < number * pace:
                time.sleep(pace / 10)
            yield pair

    with Queued(Iterated(slowly()), "reservoir", capacity=64 * batch, batch_size=batch, timeout=60) as source:
        source.peek()
        waited.append(lambda: source.waited)
        idle, begun, before = source.waited, time.clock_gettime(thread), trainer.samples
        trainer.train(source)
        worked, idle = time.clock_gettime(thread) - begun, source.waited - idle
        return worked / (worked + idle), (trainer.samples - before) / len(y)


def memory_over(items: int, batch: int = 100) -> dict[str, float]:
    """MB after a tenth of so many rows of a text file, and after all of them: resident, and allocated by Python.

    What Python allocates is traced in a second pass, since tracing takes memory too.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        table, path = Path(folder) / "part.csv", Path(folder) / "table.csv"
        write_table(table, 10_000)
        head, _, lines = table.read_text().partition("\n")
        with path.open("w") as file:
            file.write(head + "\n")
            file.writelines(lines for _ in range(items // 10_000))
        for traced in (False, True):
            model = mlp(input_shape=(8,), classes=2, hidden=[100], seed=0)
            trainer = StreamTrainer(model, er(capacity=CAPACITY, size=batch), optimizer={"name": "SGD", "lr": LR})
            with Queued(Csv(str(path), classes=2, batch_size=batch), capacity=64) as source:
                if traced:
                    tracemalloc.start()
                for share in (0.1, 1.0):
                    trainer.train(source, steps=int(share * items) // batch - trainer.steps)
                    peak = tracemalloc.get_traced_memory()[1] / 2**20
                    peak = peak if traced else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    found[f"{'traced' if traced else 'resident'} after {trainer.samples}"] = round(peak, 2)
        tracemalloc.stop()
    return found


clock = time.process_time


def interleave(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after a round that is not counted.

    What a candidate leaves for Python's collector is collected before the next one, since a pass over all that this
    process imported takes as long as some candidates, and would be the next one's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            gc.collect()
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], steps: int) -> dict[str, object]:
    """Print and return the medians, the first candidate being 1.00."""
    base = next(iter(seconds))
    row: dict[str, object] = {"case": title}
    text = []
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[base]))
        each = statistics.median(values) / steps * 1e6
        row[name] = {"ratio": round(ratio, 4), "us_per_step": round(each, 1)}
        text.append(f"{name} {each:7.1f} us/step ({ratio:.3f})")
    print(f"{title:34s} " + "   ".join(text), flush=True)
    return row


def main() -> None:
    """Measure everything and print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3000, help="per run")
    parser.add_argument("--wall", action="store_true", help="measure wall time instead of CPU time")
    parser.add_argument("--items", type=int, default=0, help="also measure memory over so many rows: 1000000")
    parts = ["loop", "samples", "reader", "waiting", "memory"]
    parser.add_argument("--only", choices=parts, nargs="+", help="default: all; memory needs --items")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    global clock
    clock = time.perf_counter if arguments.wall else time.process_time
    rows: list[dict[str, object]] = []
    chosen = arguments.only or ["loop", "samples", "reader", "waiting"]
    if "samples" in chosen:
        features, labels = samples(arguments.steps)
        for replay, name in ((False, "fine-tuning"), (True, "ER")):
            pair: dict[str, Callable[[], object]] = {
                "by hand": lambda r=replay: one_by_one_by_hand(features, labels, r),  # type: ignore[misc]
                "estimator": lambda r=replay: one_by_one(features, labels, r),  # type: ignore[misc]
            }
            title = f"{name}, one sample at a time"
            rows.append(report(title, interleave(pair, arguments.rounds), arguments.steps))
    if "reader" in chosen:
        rows += readers(32 * arguments.steps, 32, arguments.rounds)
    if "waiting" in chosen:
        share, seen = busy(min(arguments.steps, 600))
        print(f"reservoir, producer half as fast: {100 * share:.1f} % busy, {100 * seen:.1f} % of the rows trained on")
        rows.append({"case": "reservoir, producer half as fast", "busy": round(share, 4), "seen": round(seen, 4)})
    if arguments.items:
        found = memory_over(arguments.items)
        print("memory, MB at most: " + ", ".join(f"{value:.1f} {where}" for where, value in found.items()))
        rows.append({"case": "memory", **found})
    for replay, name, hand in ((False, "fine-tuning", by_hand), (True, "ER", by_hand_with_replay)):
        for hidden in (100,) if "loop" in chosen else ():
            for batch in (1, 10, 32):
                x, y = images(arguments.steps * batch)
                candidates: dict[str, Callable[[], object]] = {
                    "by hand": lambda h=hand, n=hidden, x=x, y=y, b=batch: h(net(n), x, y, b),  # type: ignore[misc]
                    "iterator": lambda r=replay, n=hidden, x=x, y=y, b=batch: by_trainer(net(n), x, y, b, r, False),  # type: ignore[misc]
                    "arrays": lambda r=replay, n=hidden, x=x, y=y, b=batch: by_trainer(net(n), x, y, b, r, True),  # type: ignore[misc]
                }
                seconds = interleave(candidates, arguments.rounds)
                rows.append(report(f"{name}, MLP 2x{hidden}, batch {batch}", seconds, arguments.steps))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
