"""What a trainer needs to go on where it was: tensors and plain values only, with the part of every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError
from holdfast.core.learner import derive_seed
from holdfast.training.ranks import Ranks

if TYPE_CHECKING:
    from holdfast.training.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything needed to go on.

    What is alike on every rank is kept once, from rank 0; under `ranks` stands what the others have of their own:
    their parts of the memory, their random numbers, their buffers. Every rank must call this; the whole is rank 0's.
    """
    names = {id(p): name for name, p in trainer.learner.every_parameter().items()}
    state: dict[str, Any] = {
        "position": dict(trainer.position),
        "engine": trainer.engine.state(),
        "optimization": trainer.optimization.state(names),
        "random": random_state(trainer.device),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
    }
    if trainer.ranks.count > 1:
        own = {} if trainer.ranks.rank == 0 else _own(state, names.values())
        state["ranks"] = trainer.ranks.collect(on_cpu(own))[1:]
    return state


def _own(state: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """What this rank's state has that rank 0's has not."""
    own = {"engine": _lighter(state["engine"], set(parameters)), "random": state["random"]}
    if "begin" in state["position"]:
        own["begin"] = _lighter(state["position"]["begin"], set(parameters))
    return own


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
    own = state["ranks"][ranks.rank - 1]
    position = dict(state["position"])
    if "begin" in own:
        position["begin"] = _heavier(own["begin"], position["begin"])
    return {**state, **own, "engine": _heavier(own["engine"], state["engine"]), "position": position}


def _heavier(own: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    model = {**first["learner"]["model"], **own["learner"]["model"]}
    return {**own, "learner": {**own["learner"], "model": model}}


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Put a trainer that is bound back to where `state` was taken."""
    position = dict(state["position"])
    index = position["experience"]
    if position["phase"] == "training":
        trainer.experience = trainer.stream[index]
        if "begin" in position:
            trainer.engine.load(position["begin"])
            trainer.experience, _ = trainer.engine.begin(trainer.stream[index])
    trainer.engine.load(state["engine"])
    trainer.take_settings(max(0, index if position["phase"] == "training" else index - 1))
    trainer.optimization.load(state["optimization"], trainer.learner.every_parameter())
    if trainer.scaler is not None and state.get("scaler"):
        trainer.scaler.load_state_dict(dict(state["scaler"]))
    trainer.position = position


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
