"""Randomness by name: one generator for each purpose from one seed; and digests of modules and tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import torch
from torch import Tensor, nn

from holdfast.core.errors import ConfigError

EACH_RANK = ("augment", "draw", "remember", "replace")
"""Beginnings of the names of random choices that every rank makes for itself; all others are alike on every rank."""


def derive_seed(seed: int, name: str) -> int:
    """A seed for the random numbers called `name`, independent of every other name's.

    Example:
        >>> derive_seed(0, "order") == derive_seed(0, "order"), derive_seed(0, "order") == derive_seed(0, "replay")
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


class Generators:
    """CPU generators by name, made when they are first asked for.

    Args:
        seed: of every one of them.
        rank: of this process: what `EACH_RANK` names is drawn from other seeds on other ranks.

    Example:
        >>> generators = Generators(seed=0)
        >>> generators("draw") is generators("draw"), generators("draw") is generators("order")
        (True, False)
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank
        self._made: dict[str, torch.Generator] = {}
        self._loaded: dict[str, Tensor] = {}  # states of generators that nobody has asked for yet

    def __call__(self, name: str) -> torch.Generator:
        """The generator called `name`."""
        made = self._made.get(name)
        if made is None:
            apart = self.rank > 0 and name.startswith(EACH_RANK)
            made = self._made[name] = torch.Generator()
            made.manual_seed(derive_seed(self.seed, f"{name} on rank {self.rank}" if apart else name))
            if name in self._loaded:
                made.set_state(self._loaded.pop(name))
        return made

    def __contains__(self, generator: object) -> bool:
        return any(made is generator for made in self._made.values())

    def state(self) -> dict[str, Tensor]:
        """The state of each generator by name."""
        return {**self._loaded, **{name: generator.get_state() for name, generator in self._made.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken, also for generators that are asked for later."""
        self._loaded = dict(state)
        for name, generator in self._made.items():
            if name in self._loaded:
                generator.set_state(self._loaded.pop(name))


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """`generator`, if it is a CPU generator: decisions are made on the host, equal on every device.

    Raises:
        ConfigError: it is not a generator, or lies on another device.
    """
    if not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"generator is {generator!r}, and randomness only comes from an explicit generator. "
            "Pass torch.Generator().manual_seed(0)."
        )
    if generator.device.type != "cpu":
        raise ConfigError(
            f"the generator lies on {generator.device}, and the memory decides on the host. "
            "Pass torch.Generator().manual_seed(0), which lies on the CPU."
        )
    return generator


def module_digest(module: nn.Module) -> str:
    """The sha256 of a module's structure, parameters and buffers, and of the versions of the libraries behind it.

    Args:
        module: what its forward depends on besides must be in its `repr`.

    Example:
        >>> module_digest(nn.ReLU()) == module_digest(nn.ReLU()), module_digest(nn.ReLU()) == module_digest(nn.GELU())
        (True, False)
    """
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module)).encode())
    packages = {"torch", *(type(part).__module__.split(".")[0] for part in module.modules())}
    digest.update(repr([(package, _version(package)) for package in sorted(packages)]).encode())
    values = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, value in sorted(values, key=lambda pair: pair[0]):
        digest.update(name.encode())
        add_tensor(digest, value)
    return digest.hexdigest()


class Digest(Protocol):
    """A hash of `hashlib` that takes one part after another."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""


def add_tensor(digest: Digest, value: Tensor) -> None:
    """Add type, shape of a row and values of a tensor to a digest of hashlib."""
    value = value.detach()
    digest.update(f"{value.dtype} {tuple(value.shape[1:])}".encode() if value.dim() else b"scalar")
    if value.is_meta:  # a shape without values
        return
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
