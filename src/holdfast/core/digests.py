"""Digests of modules and tensors: by which what was computed once is known again."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn


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


def add_tensor(digest: Any, value: Tensor) -> None:
    """Add type, shape of a row and values of a tensor to a digest of hashlib."""
    value = value.detach()
    digest.update(f"{value.dtype} {tuple(value.shape[1:])}".encode() if value.dim() else b"scalar")
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
