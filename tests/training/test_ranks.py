"""The trainer in several processes: the weights and the log of one, on parts of every batch."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import holdfast
from holdfast import methods
from holdfast.core.errors import ConfigError, HoldfastError, Interrupted, NeedError
from holdfast.core.learner import Learner
from holdfast.core.method import Method
from holdfast.core.operation import Operation
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.streams.data import TensorData
from holdfast.training import Trainer
from holdfast.training.launch import start_method
from holdfast.training.ranks import Ranks
from holdfast.training.state import of_rank

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="Lightning is not installed")
SOURCE = Path(holdfast.__file__).parents[1]
MOMENTUM = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}


# One process's part, without any other ------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size", "count"), [(12, 4, 2), (11, 4, 2), (10, 5, 3), (13, 4, 3), (2, 4, 3)])
def test_every_row_of_a_batch_goes_to_one_rank_and_weights_make_the_mean_right(
    rows: int, batch_size: int, count: int
) -> None:
    data = TensorData(torch.arange(rows).view(-1, 1), torch.zeros(rows, dtype=torch.int64))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    parts = [list(Ranks(rank, count).batches(data, order, batch_size)) for rank in range(count)]
    assert len({len(part) for part in parts}) == 1
    for number, whole in enumerate(order.split(batch_size)):
        own = [part[number][0].inputs.flatten() for part in parts]
        weights = [part[number][1] for part in parts]
        if len(whole) < count:  # too few to share: all have all of them
            assert all(sorted(rows.tolist()) == sorted(whole.tolist()) for rows in own)
        else:
            assert sorted(torch.cat(own).tolist()) == sorted(whole.tolist())
        mean = sum(weight * rows.float().mean() for weight, rows in zip(weights, own)) / count
        assert float(mean) == pytest.approx(float(whole.float().mean()))


def test_a_memory_and_what_is_drawn_from_it_are_shared_out_to_the_last_sample() -> None:
    net = nn.Linear(2, 2)
    for count in (1, 2, 3, 7):
        shares = [Learner(net, rank=rank, ranks=count).share(20) for rank in range(count)]
        assert sum(shares) == 20
        assert max(shares) - min(shares) <= 1
    assert Learner(net, rank=3, ranks=4).share(2) == 1


def test_ranks_draw_from_their_memories_for_themselves_and_all_else_alike() -> None:
    first, second = (Learner(nn.Linear(2, 2), seed=1, rank=rank, ranks=2) for rank in range(2))
    for name, own in {"draw/replay": True, "augment": True, "order": False, "head": False, "weights/x": False}.items():
        same = torch.equal(first.rng(name).get_state(), second.rng(name).get_state())
        assert same is not own, name


def test_a_fisher_pass_over_parts_adds_up_and_an_empty_part_adds_nothing(toy: Any) -> None:
    stream = toy.stream()
    data = stream[0].train.subset(torch.arange(3))
    net = toy.model(stream)
    whole = fisher_diagonal(Learner(net, prepare=stream.prepare), data, "exact")
    parts = [
        fisher_diagonal(Learner(net, prepare=stream.prepare, rank=rank, ranks=4), data, "exact") for rank in range(4)
    ]
    for name, value in whole.items():
        assert not parts[3][name].any()
        torch.testing.assert_close(sum(part[name] for part in parts) / 3, value)


@pytest.mark.parametrize(
    ("method", "arguments", "error", "says"),
    [
        (methods.slda(), {}, NeedError, "2 processes see a part each"),
        (methods.generative_classifier(), {}, NeedError, "a model for each class"),
        (methods.finetune(), {"batch_size": 1}, ConfigError, "batch_size=1 leaves some of 2 processes"),
        (methods.finetune(), {"num_nodes": 2}, ConfigError, "torchrun or SLURM"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_any_is_started(
    method: Method, arguments: dict[str, Any], error: type[Exception], says: str, toy: Any
) -> None:
    stream = toy.stream()
    with pytest.raises(error, match=says):
        Trainer(method, devices=2, **arguments).fit(toy.model(stream), stream)


@pytest.mark.parametrize(("name", "value"), [("devices", 0), ("num_nodes", 0), ("strategy", "fsdp")])
def test_numbers_and_strategies_that_there_are_not_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Trainer(methods.finetune(), **{name: value})


def test_processes_fork_with_one_thread_and_spawn_with_several() -> None:
    assert start_method("ddp_spawn", 1) == "spawn"
    assert start_method("ddp_fork", 4) == "fork"
    assert start_method("ddp", 4) == "spawn"
    assert start_method("ddp", 1) == ("fork" if sys.platform == "linux" else "spawn")


def test_a_state_of_other_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"saved by 2 processes, and 1 is.*devices=2"):
        of_rank({"ranks": [{}]}, Ranks())
    with pytest.raises(ConfigError, match=r"saved by 1 process, and 2 are.*devices=1"):
        of_rank({"engine": {}}, Ranks(1, 2))


# Two processes ------------------------------------------------------------------------------------------


class Keep:
    """Checkpoints in memory, written and read as files are."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.states: list[bytes] = []

    def due(self, seconds: float, steps: int) -> bool:
        return steps >= self.every

    def save(self, state: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        self.states.append(file.getvalue())

    def load(self, number: int) -> dict[str, Any]:
        return torch.load(io.BytesIO(self.states[number]), weights_only=True)


def learned(toy: Any, make: Any, devices: int, **other: Any) -> tuple[dict[str, Tensor], Trainer]:
    stream = toy.stream("class")
    net = toy.model(stream, "growing")
    settings = {"optimizer": MOMENTUM, "evaluate": "test", "batch_size": 5, **other}
    return toy.weights(net), toy.train(make(), net, stream, devices=devices, **settings)


def compared(toy: Any, make: Any, **other: Any) -> tuple[Trainer, Trainer]:
    """One process and two: equal weights up to rounding, the same number of correct predictions."""
    start, one = learned(toy, make, 1, **other)
    _, two = learned(toy, make, 2, **other)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert name not in start or not torch.equal(value, start[name])
    counts = [[event["correct"] for event in run.events if event["event"] == "evaluate"] for run in (one, two)]
    assert counts[0] == counts[1]
    return one, two


def exact_ewc() -> Method:
    return methods.ewc(strength=20.0, fisher="exact")


def test_two_processes_learn_what_one_does_with_a_growing_head_and_an_uneven_last_batch(toy: Any) -> None:
    keep = Keep(every=3)
    one, two = compared(toy, exact_ewc, checkpoints=keep, clip_norm=0.5)
    assert [event["event"] for event in one.events] == [event["event"] for event in two.events]
    assert "LOCAL_RANK" not in os.environ
    assert not torch.distributed.is_initialized()
    _, again = learned(toy, exact_ewc, 2, checkpoints=Keep(10**6), clip_norm=0.5, resume=keep.load(-4))
    for name, value in two.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "si", "mas", "lwf", "l2", "ewc", "rwalk", "simple_cil"])
def test_methods_without_draws_end_with_the_weights_of_one_process(name: str, toy: Any) -> None:
    if name == "simple_cil":  # which looks at the data once more, and trains less
        one, two = (learned(toy, getattr(methods, name), devices)[1] for devices in (1, 2))
        for key, value in one.model.state_dict().items():
            torch.testing.assert_close(two.model.state_dict()[key], value, rtol=1e-4, atol=1e-5)
        return
    even = {"batch_size": 6} if name == "rwalk" else {}  # whose Fisher weighs a batch by its rows
    compared(toy, exact_ewc if name == "ewc" else getattr(methods, name), **even)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_are_averaged_over_processes_once(accumulate: int, toy: Any) -> None:
    compared(toy, methods.finetune, accumulate=accumulate)


@pytest.mark.slow
def test_a_whole_memory_replayed_in_two_parts_is_the_memory_replayed_by_one(toy: Any) -> None:
    everything = 2 * 18 * 3
    for make in (methods.er, methods.agem, methods.der_plus_plus):
        _, two = compared(toy, lambda make=make: make(capacity=everything, size=everything), batch_size=6, epochs=1)
        held = [event["memory_items"] for event in two.events if event["event"] == "experience"]
        assert held == [18, 36, 54]
        assert len(two.learner.memory) == 27


@pytest.mark.slow
def test_a_stop_is_heard_by_all_and_the_resumed_run_is_the_whole_one(toy: Any) -> None:
    def make() -> Method:
        return methods.er(capacity=10, size=4)

    _, whole = learned(toy, make, 2)
    keep = Keep(10**6)
    stream = toy.stream("class")
    trainer = Trainer(make(), optimizer=MOMENTUM, batch_size=5, seed=3, devices=2, checkpoints=keep, log_every=1)
    seen: list[int] = []

    def record(event: dict[str, Any]) -> None:
        seen.append(1)
        trainer.stop = trainer.stop or len(seen) == 12

    trainer.record = record
    with pytest.raises(Interrupted, match="saved"):
        trainer.fit(toy.model(stream, "growing"), stream)
    _, again = learned(toy, make, 2, resume=keep.load(-1))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


class Die(Operation):
    """Ends its process, if that is not the first, at the tenth step."""

    def __init__(self, how: str = "killed") -> None:
        super().__init__()
        self.how = how

    def observe(self, step: Any, learner: Learner) -> None:
        if step.index == 9 and learner.rank == 1:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("something odd")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "says"), [("killed", "process 1 of 2 was killed by signal 9"), ("raised", "something odd")]
)
def test_a_process_that_dies_ends_the_run_with_a_sentence(how: str, says: str, toy: Any) -> None:
    started = time.perf_counter()
    with pytest.raises(HoldfastError, match=says):
        learned(toy, lambda: Method(Die(how)), 2, epochs=50)
    assert not mp.active_children()
    assert time.perf_counter() - started < 120


@pytest.mark.slow
def test_processes_that_are_spawned_get_all_they_need(toy: Any) -> None:
    compared(toy, exact_ewc, strategy="ddp_spawn")


# Every method -------------------------------------------------------------------------------------------


def work(rank: int, ports: list[int], names: list[str], toy: Any, folder: str) -> None:
    """One of two processes that somebody else started, as `torchrun` does."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    found: dict[str, Any] = {}
    for port, name in zip(ports, names):
        os.environ["MASTER_PORT"] = str(port)
        method = getattr(methods, name)(**{"capacity": 20} if name in ("gdumb", "gss") else {})
        stream = toy.stream_for(method)
        net = toy.model_for(method)(stream, "task" if "task" in method.needs else "growing")
        try:
            trainer = toy.train(method, net, stream, optimizer=MOMENTUM, batch_size=5, devices=2)
        except NeedError as error:
            found[name] = str(error)
        else:
            found[name] = dict(net.state_dict())
            found[f"{name}/events"] = json.dumps([e["loss"] for e in trainer.events if e["event"] == "train"])
    torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_both_processes_hold_the_same_weights_with_every_method_or_refuse_it(toy: Any, tmp_path: Path) -> None:
    names = list(methods.__all__)
    sockets = [socket.socket() for _ in names]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    context = mp.get_context("fork")
    processes = [context.Process(target=work, args=(rank, ports, names, toy, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], "its traceback is in the captured stderr"
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = [name for name in names if any(operation.alone for operation in getattr(methods, name)())]
    assert {"generative_classifier", "slda"} <= set(alone)
    assert len(alone) < 5
    assert [name for name in names if isinstance(first[name], str)] == alone
    for name in set(names) - set(alone):
        assert first[f"{name}/events"] == second[f"{name}/events"]
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name}: ranks differ in {key}"


# The command line ---------------------------------------------------------------------------------------


def matrix(folder: Path) -> Tensor:
    rows = [line.split(",")[1:] for line in (folder / "accuracy_matrix.csv").read_text().splitlines()[1:]]
    return torch.tensor([[float(cell) for cell in row] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("method={name: ewc, strength: 5.0, fisher: exact}", 0.0),
        ("method={name: er, capacity: 200}", 0.1),
        ("method={name: agem, capacity: 200, size: 64}", 0.1),
    ],
)
def test_ddp_sim_gives_the_accuracy_matrix_of_one_process(method: str, most: float, tmp_path: Path) -> None:
    """The mean over three seeds of the last row, for methods that draw; the same matrix for one that does not."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    common = ["experiment=digits", method, "trainer.epochs=5", "references=[]", "seeds=3", "-q"]
    for name, preset in (("one", "cpu"), ("two", "ddp_sim")):
        command = [sys.executable, "-m", "holdfast", "run", *common, f"trainer={preset}", "-o", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
    matrices = [torch.stack([matrix(tmp_path / name / f"seed-{seed}") for seed in range(3)]) for name in ("one", "two")]
    one, two = (found.nan_to_num(0) for found in matrices)
    if not most:
        assert torch.equal(one, two)
    assert float((one[:, -1].mean(0) - two[:, -1].mean(0)).mean().abs()) <= most
    assert float((one.mean(0) - two.mean(0)).abs().mean()) <= most
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
