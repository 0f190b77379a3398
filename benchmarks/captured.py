"""What a captured step costs beside one made as written and a hand-written loop, and whether its weights are the same.

    python benchmarks/captured.py                                  on a GPU: graphs, all methods, two networks
    python benchmarks/captured.py --how compile --method er ewc    on a CPU: compiled, which takes seconds a method
    python benchmarks/captured.py --how tape                       on a CPU: the same recordings, call by call

For each method a model learns a first experience, and steps of the second are timed: as written and captured in turn,
on the same batches, beside experience replay written by hand. The figure is the median over rounds of microseconds a
step, and the median of the ratio to the hand-written loop within the round; on a CPU these are seconds of the process.
Then the weights of both are compared: equal with graphs and the tape, within rounding when compiled. A method that is
not captured is listed with the line that prevents it. On a GPU a line ends in
WAITS where torch sees the host wait for the device within a captured step.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from holdfast import Trainer, methods
from holdfast.core.experience import Batch, Stream
from holdfast.models import mlp, resnet18
from holdfast.streams.datasets import arrays
from holdfast.streams.splits import split
from holdfast.testing import toys
from holdfast.testing.checking import arguments_of
from holdfast.training import fit_stacked
from holdfast.training.loop import Loop
from holdfast.training.state import Saver
from holdfast.training.trainer import open_experience

WINDOW = 50
"""Steps between two moments that are looked at where runs are trained at once."""

WARM = 100
"""Steps of each experience before any is timed: those that rarely go another way have been recorded by then."""

NETWORKS = {"mlp": (10, (1, 28, 28)), "mlp400": (32, (1, 28, 28)), "resnet18": (32, (3, 32, 32))}
"""Network -> batch size, and shape of an image: perceptrons of two layers of 100 or 400, and a ResNet."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"name": "SGD", "lr": 0.01},
    "Adam": {"name": "Adam", "lr": 0.001},
    "AdamW": {"name": "AdamW", "lr": 0.001},
}


def stream_of(network: str, steps: int, tasks: bool) -> Stream:
    """Two experiences of images of noise, long enough for so many steps."""
    batch, shape = NETWORKS[network]
    rows = batch * steps
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * rows, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.arange(2 * rows) % 4
    data = arrays(images.numpy(), labels.numpy(), test_fraction=0.01)
    return split(data, experiences=2, paradigm="task" if tasks else "class")


def net(network: str, of: Stream, head: str) -> nn.Module:
    """The network of a measurement."""
    if network != "resnet18":
        hidden = [400, 400] if network == "mlp400" else [100, 100]
        return mlp(input_shape=of.input_shape, classes=of.classes, hidden=hidden, head=head, seed=0)
    return resnet18(input_shape=of.input_shape, classes=of.classes, head=head, seed=0)


class Timed:
    """A method on its way through the second experience, some steps at a time.

    Args:
        name: of the method.
        network: of `NETWORKS`.
        capture: how steps are made.
        device: where.
        warm: steps of the first experience, and of the second before any is timed.
        timed: steps that will be.
        optimizer: of `OPTIMIZERS`.
    """

    def __init__(
        self, name: str, network: str, capture: str, device: str, warm: int, timed: int, optimizer: str
    ) -> None:
        factory = getattr(methods, name)
        batch, _ = NETWORKS[network]
        known = inspect.signature(factory).parameters
        chosen = {"capacity": 500, "size": batch}
        method = factory(**{key: value for key, value in chosen.items() if key in known})
        tasks = "task" in method.needs
        of = stream_of(network, warm + timed + 8, tasks)
        head, made = "task" if tasks else "growing", toys.model_for(method)
        self.model = net(network, of, head) if made is toys.model else made(of, head)
        settings: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer], "batch_size": batch, "log_every": 50}
        self.trainer = Trainer(method, evaluate="none", device=device, capture=capture, **settings)
        self.trainer.bind(self.model, of)
        self.session = session = self.trainer.session
        self.loop = Loop(session, Saver(session))
        self.model.train()
        for index in range(2):
            self.opened = open_experience(session, index)
            if session.captured is not None:
                session.captured.begin(warm + timed)
            data = self.opened.train.to(session.device)
            order = torch.randperm(len(data), generator=session.learner.rng("order"))
            self.batches: list[tuple[Batch, float]] = [(one, 1.0) for one in data.batches(order, batch)]
            self.run(warm)
            if index == 0:
                session.engine.end(self.opened)
                session.position.leave()

    def run(self, steps: int) -> int:
        """Make so many steps; returns how many were left to make."""
        chosen, self.batches = self.batches[:steps], self.batches[steps:]
        self.loop.steps(chosen, 10**6)
        return len(chosen)

    def told(self) -> str:
        """Why not every step was run as recorded, if so."""
        captured = self.session.captured
        if captured is None:
            return ""
        captured.end(1)
        event = self.session.records.events[-1]
        return "; ".join(event["reasons"]) if not event["captured"] else ""


class ByHand:
    """Experience replay written by hand, on the same data."""

    def __init__(self, network: str, device: str, steps: int, optimizer: str) -> None:
        self.batch, shape = NETWORKS[network]
        of = stream_of(network, 2, False)
        self.model = net(network, of, "fixed").to(device).train()
        settings = dict(OPTIMIZERS[optimizer])
        self.optimizer = getattr(torch.optim, settings.pop("name"))(self.model.parameters(), **settings)
        rows = self.batch * (steps + 1)
        self.inputs = torch.rand(rows, *shape).to(device)
        self.targets = torch.randint(0, 4, (rows,)).to(device)
        self.kept, self.labels = torch.rand(500, *shape).to(device), torch.randint(0, 4, (500,)).to(device)
        self.seen = 500
        self.start = 0

    def run(self, steps: int) -> int:
        """Make so many steps."""
        size, device = self.batch, self.inputs.device
        for _ in range(steps):
            at = self.start % (len(self.targets) - size)
            self.start += size
            x, y = self.inputs[at : at + size], self.targets[at : at + size]
            drawn = torch.randperm(500)[:size].to(device)
            outputs = self.model(torch.cat((x, self.kept[drawn])))
            loss = F.cross_entropy(outputs[:size], y) + F.cross_entropy(outputs[size:], self.labels[drawn])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            numbers = torch.arange(self.seen, self.seen + size)
            slots = (torch.rand(size, dtype=torch.float64) * (numbers + 1)).long()
            kept = (slots < 500).nonzero().squeeze(1)
            self.kept[slots[kept].to(device)] = x[kept.to(device)]
            self.labels[slots[kept].to(device)] = y[kept.to(device)]
            self.seen += size
        return steps


def microseconds(run: Callable[[int], int], steps: int, device: str) -> float:
    """Of one step; NaN where there is none left."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    made = run(steps)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 1e6 * (clock() - start) / made if made else float("nan")


def waits_in(timed: Timed, device: str) -> bool | None:
    """Whether the host waits for the device in captured steps; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        timed.run(4)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def many(
    name: str, network: str, how: str, device: str, runs: int, steps: int, optimizer: str = "SGD"
) -> tuple[float, float]:
    """Microseconds of one step of so many runs at once, their feed and log included.

    Returns:
        Of the clock on the wall, and of the process, all its threads together; medians over blocks of steps.
    """
    batch, _ = NETWORKS[network]
    moments: list[tuple[float, float]] = []

    def record(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            moments.append((time.perf_counter(), time.process_time()))

    factory = getattr(methods, name)
    chosen = {"capacity": 500, "size": batch}
    chosen = {key: value for key, value in chosen.items() if key in inspect.signature(factory).parameters}
    made = []
    of = stream_of(network, steps, "task" in factory(**chosen).needs).first(1)
    for number in range(runs):
        settings: dict[str, Any] = {"batch_size": batch, "evaluate": "none", "device": device, "log_every": WINDOW}
        settings |= {"capture": how, "seed": number, "record": record if number == runs - 1 else None}
        trainer = Trainer(factory(**chosen), optimizer=OPTIMIZERS[optimizer], **settings)
        made.append((trainer, net(network, of, "fixed"), of))
    if runs == 1:
        trainer, model, of = made[0]
        trainer.fit(model, of)
    else:
        fit_stacked(*zip(*made))
    return steady([wall for wall, _ in moments]), steady([process for _, process in moments])


def steady(moments: list[float]) -> float:
    """Microseconds a step, of the moments at which windows of the log were written, the first quarter left aside.

    Many windows are written at once where many steps are made between two looks: the last of each such bunch counts.
    """
    pause = max((moments[-1] - moments[0]) / (4 * len(moments)), 1e-3)
    ends = [n for n, (a, b) in enumerate(itertools.pairwise(moments)) if b - a > pause] + [len(moments) - 1]
    ends = [n for n in ends if n >= len(moments) // 4]  # the first ones record, or compile
    ends = ends[:-1] if len(ends) > 2 else ends  # the last bunch is what is left, and the end of the training
    if len(ends) < 2:
        return float("nan")  # too few steps to tell
    return statistics.median(1e6 * (moments[b] - moments[a]) / (WINDOW * (b - a)) for a, b in itertools.pairwise(ends))


def measure_many(
    name: str, network: str, how: str, device: str, counts: list[int], steps: int, optimizer: str = "SGD"
) -> list[dict[str, Any]]:
    """Runs at once beside a single captured one, in turn; on a GPU by the clock on the wall, else of the process."""
    first = 0 if device.startswith("cuda") else 1
    single = many(name, network, how, device, 1, steps, optimizer)
    rows: list[dict[str, Any]] = []
    for count in counts:
        at_once = many(name, network, how, device, count, steps, optimizer)
        again = many(name, network, how, device, 1, steps, optimizer)
        one = [(before + after) / 2 for before, after in zip(single, again)]
        row = {"method": name, "network": network, "runs": count, "threads": torch.get_num_threads()}
        row |= {"at_once": at_once[first], "single": one[first], "wall_at_once": at_once[0], "wall_single": one[0]}
        rows.append(row)
        single = again
    return rows


def measure(
    name: str,
    network: str,
    how: str,
    device: str,
    rounds: int,
    steps: int,
    optimizer: str = "SGD",
    written: bool = True,
) -> dict[str, Any]:
    """One method on one network; steps as they are written, and the weights that they lead to, where `written`."""
    timed = rounds * steps + 4
    hand = ByHand(network, device, timed, optimizer)
    fast = Timed(name, network, how, device, WARM, timed, optimizer)
    loops: dict[str, Any] = {"hand": hand, "captured": fast}
    if written:
        loops["written"] = Timed(name, network, "none", device, WARM, timed, optimizer)
    hand.run(20)
    found: dict[str, list[float]] = {key: [] for key in loops}
    for _ in range(rounds):
        for key, one in loops.items():
            found[key].append(microseconds(one.run, steps, device))
    told: dict[str, Any] = {"difference": 0.0}
    if written:
        a, b = loops["written"].model.state_dict(), fast.model.state_dict()
        gaps = [float((a[key].double() - b[key].double()).abs().max()) for key in a if a[key].numel()]
        told["difference"] = max(gaps, default=0.0)
    for key in found.keys() - {"hand"}:
        told[f"{key}_ratio"] = round(statistics.median(x / y for x, y in zip(found[key], found["hand"])), 3)
    return {
        "method": name,
        "network": network,
        **{key: round(statistics.median(values), 1) for key, values in found.items()},
        **told,
        "waits": waits_in(fast, device),
        "why_not": fast.told(),
    }


def equal(name: str, how: str, device: str) -> dict[str, Any]:
    """Train a method as written and captured: three experiences, a growing head (or one a task), an odd last batch.

    Returns:
        `different`: the weights that are not equal to the last bit, with how far they are apart; `captured`: how many
        of the `steps` were run as recorded; and `why_not`.
    """
    nets, trainers = [], []
    for capture in ("none", how):
        keywords = arguments_of(getattr(methods, name), {})
        method = getattr(methods, name)(**keywords)
        of = toys.stream_for(method, samples=13)
        nets.append(toys.model_for(method)(of, "task" if "task" in method.needs else "growing"))
        settings = {"optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.5}, "epochs": 2, "device": device}
        trainers.append(toys.train(method, nets[-1], of, capture=capture, log_every=4, **settings))
    a, b = (net.state_dict() for net in nets)
    gaps = {key: float((a[key].double() - b[key].double()).abs().max()) for key in a if not torch.equal(a[key], b[key])}
    told = [event for event in trainers[1].events if event["event"] == "capture"]
    counts = {key: sum(event[key] for event in told) for key in ("captured", "recorded", "as_written")}
    reasons = list(dict.fromkeys(reason for event in told for reason in event["reasons"]))
    return {"different": gaps, "captured": counts["captured"], "steps": sum(counts.values()), "why_not": reasons}


def tell_many(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a line for each number of runs."""
    for row in rows:
        ratio = row["at_once"] / row["single"]
        print(
            f"{row['network']:9s} {row['method']:26s} one run {row['single']:8.1f}   {row['runs']:4d} at once"
            f" {row['at_once']:8.1f}   = {ratio:.2f} single runs, {row['at_once'] / row['runs']:.1f} a run and step"
            f" ({row['wall_at_once'] / row['wall_single']:.2f} by the clock on the wall, {row['threads']} threads)",
            flush=True,
        )
    return rows


def main() -> int:
    """Print a line for each method and network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--how", choices=["graph", "compile", "tape"], help="default: graph on a GPU, else tape")
    parser.add_argument("--method", nargs="*", default=None, help="default: all")
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), help="default: mlp, on a GPU resnet18 too")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="SGD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a round (50); a twelfth of those of each run, with --runs (400)")
    parser.add_argument("--runs", type=int, nargs="*", default=[], help="measure so many runs at once instead")
    parser.add_argument("--threads", type=int, default=1, help="of torch; a stack uses two where one run hardly does")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = arguments.how or ("graph" if device == "cuda" else "tape")
    networks = arguments.network or (["mlp", "resnet18"] if device == "cuda" else ["mlp"])
    steps = arguments.steps or (400 if arguments.runs else 50)
    torch.set_num_threads(arguments.threads)
    print(f"{device}, {how}, torch {torch.__version__}: microseconds a step (and ratio to the hand-written loop of ER)")
    results = []
    if arguments.runs:
        for network in networks:
            for name in arguments.method or ["er"]:
                results += tell_many(
                    measure_many(name, network, how, device, arguments.runs, steps * 12, arguments.optimizer)
                )
    for network in [] if arguments.runs else networks:
        for name in arguments.method or methods.__all__:
            try:
                one = measure(name, network, how, device, arguments.rounds, steps, arguments.optimizer)
            except Exception as error:  # one method must not cost the figures of the others
                print(f"{network:9s} {name:26s} failed: {type(error).__name__}: {error}", flush=True)
                continue
            results.append(one)
            same = "equal" if one["difference"] == 0 else f"within {one['difference']:.0e}"
            told = f"  as written: {one['why_not']}" if one["why_not"] else "  WAITS" if one["waits"] else ""
            columns = [f"{network:9s} {name:26s} by hand {one['hand']:8.1f}"]
            for label, key in (("as written", "written"), ("captured", "captured")):
                columns.append(f"{label} {one[key]:8.1f} ({one[f'{key}_ratio']:.2f})")
            print("   ".join([*columns, same]) + told, flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": device, "how": how, "torch": torch.__version__, "rows": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
