"""What a training needs to go on where it was: tensors and plain values only, with the part of every process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, Interrupted
from holdfast.core.learner import Learner, derive_seed
from holdfast.training.precision import torch_checks
from holdfast.training.ranks import Ranks
from holdfast.training.session import Position, Session


class Saver:
    """Saves the state of a session now and then.

    Args:
        session: whose state is saved.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.wanted = session.ranks.gather(session.checkpoints is not None)[0]
        self._at, self._step = time.perf_counter(), session.engine.index

    def due(self, moment: float, coming: int = 0) -> bool:
        """Whether it is time to save the state at `moment` of the process's clock, `coming` steps from here."""
        checkpoints = self.session.checkpoints
        step = self.session.engine.index + coming
        return checkpoints is not None and checkpoints.due(moment - self._at, step - self._step)

    def save(self) -> None:
        """Save the state, if there is where to; then stop, if that was asked for.

        Raises:
            Interrupted: if the session was told to stop.
        """
        session = self.session
        session.stop = session.ranks.gather(session.stop)[0]
        if self.wanted:
            session.write_window()
            session.position.clock = session.seconds
            state = state_of(session)
            if session.checkpoints is not None:
                session.checkpoints.save(state)
            self._at, self._step = time.perf_counter(), session.engine.index
        if session.stop:
            raise Interrupted("training was stopped" + (", and its state saved." if self.wanted else "."))


def state_of(session: Session) -> dict[str, Any]:
    """Everything needed to go on.

    What is alike on every rank is kept once, from rank 0; under `ranks` stands what the others have of their own:
    their parts of the memory, their random numbers, their buffers. Every rank must call this; the whole is rank 0's.
    """
    names = {id(p): name for name, p in session.learner.every_parameter().items()}
    if session.source is not None:
        session.position.source = session.source.position()
        session.position.right = session.records.window.right_so_far()
    state: dict[str, Any] = {
        "position": session.position.state(),
        "engine": session.engine.state(),
        "optimization": session.optimization.state(names),
        "random": random_state(session.device),
        "scaler": None if session.scaler is None else session.scaler.state_dict(),
    }
    if session.phases is not None:
        state["phases"] = session.phases.state()
    if session.observations is not None:
        state["observations"] = session.observations.state()
    if session.ranks.count > 1:
        rank_state = {} if session.ranks.rank == 0 else _own(state, names.values())
        state["ranks"] = session.ranks.collect(on_cpu(rank_state))[1:]
    return state


def _own(state: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """The part of this rank's state that rank 0 does not have."""
    rank_state = {"engine": _lighter(state["engine"], set(parameters)), "random": state["random"]}
    if "begin" in state["position"]:
        rank_state["begin"] = _lighter(state["position"]["begin"], set(parameters))
    return rank_state


def _lighter(engine: dict[str, Any], parameters: set[str]) -> dict[str, Any]:
    model = {name: value for name, value in engine["learner"]["model"].items() if name not in parameters}
    return {**engine, "learner": {**engine["learner"], "model": model}}


def of_rank(state: Mapping[str, Any], ranks: Ranks) -> Mapping[str, Any]:
    """The state of this rank, from that of all.

    Raises:
        ConfigError: if it was saved by another number of processes.
    """
    saved = 1 + len(state.get("ranks") or [])
    if saved != ranks.count:
        raise ConfigError(
            f"this state was saved by {saved} process{'es' if saved > 1 else ''}, and {ranks.count}"
            f" {'are' if ranks.count > 1 else 'is'} to go on with it: each has a part of the memory."
            f" Write trainer.devices={saved}."
        )
    if ranks.rank == 0:
        return state
    rank_state = state["ranks"][ranks.rank - 1]
    position = dict(state["position"])
    if "begin" in rank_state:
        position["begin"] = _heavier(rank_state["begin"], position["begin"])
    return {**state, **rank_state, "engine": _heavier(rank_state["engine"], state["engine"]), "position": position}


def _heavier(rank_state: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    model = {**first["learner"]["model"], **rank_state["learner"]["model"]}
    return {**rank_state, "learner": {**rank_state["learner"], "model": model}}


def restore(session: Session, state: Mapping[str, Any]) -> None:
    """Put a session that was just bound back to where `state` was taken."""
    position = Position.load(state["position"])
    index, training = position.experience, position.phase == "training"
    if session.stream is not None and training:
        session.opened = session.stream[index]
        if position.begin is not None:  # the method chooses the same data again, from the state it chose it in
            session.engine.load(position.begin)
            session.opened, _ = session.engine.begin(session.stream[index])
    session.engine.load(state["engine"])
    session.take_settings(max(0, index if training else index - 1))
    session.optimization.load(state["optimization"], session.learner.every_parameter())
    if session.scaler is not None and state.get("scaler"):
        session.scaler.load_state_dict(dict(state["scaler"]))
    if session.phases is not None:
        session.phases.load(state["phases"])
    if session.observations is not None and "observations" in state:
        session.observations.load(state["observations"])
    session.records.window.load(position.right)
    session.position = position


@contextlib.contextmanager
def around(session: Session) -> Iterator[None]:
    """Torch's checks inside, and random numbers of the session's own; as before afterwards."""
    settings, device = session.settings, session.device
    cuda = [device.index or 0] if device.type == "cuda" else []
    with torch_checks(settings.deterministic, settings.detect_anomaly), torch.random.fork_rng(devices=cuda):
        seed_model(settings.seed, session.ranks.rank, device)
        yield


def seed_model(seed: int, rank: int, device: torch.device) -> None:
    """Seed what dropout and the like draw from, and no other device's generator; other numbers on every rank."""
    number = derive_seed(seed, "model" if rank == 0 else f"model on rank {rank}")
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators."""
    cuda = device.type == "cuda"
    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state(device)} if cuda else {})}


def set_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def on_cpu(state: Any) -> Any:
    """`state` with every tensor on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [on_cpu(value) for value in state]
    return state


def from_continual(state: Mapping[str, Any], learner: Learner) -> dict[str, Any]:
    """The state of an endless training as it is now, from one saved by 0.1, which was that of a drop-in."""
    position = Position(phase="training", step=state["steps"], samples=state["samples"])
    position.right = None if state["right"] is None else int(state["right"])
    names = iter(learner.every_parameter())
    groups = [[next(names) for _ in group["params"]] for group in state["optimizer"]["param_groups"]]
    continual = dict(state["continual"])
    return {
        "position": position.state(),
        "engine": continual.pop("engine"),
        "optimization": {"groups": groups, "optimizer": state["optimizer"], "scheduler": None},
        "scaler": None,
        "phases": continual,
        "random": None,
    }
