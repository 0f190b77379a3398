"""What a listing says about one name: its first sentence, its parameters, its paper, role and needs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from holdfast.config.kinds import KINDS, configurable, find
from holdfast.config.signatures import Parameter, docs


@dataclass(frozen=True)
class Description:
    """What a listing says about one name.

    Attributes:
        name: in JSON.
        summary: first sentence of the docstring.
        parameters: what a configuration may give.
        paper: where it was published, if it was.
        role: what it is for; of a method, the roles of its operations.
        needs: what it cannot do without.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    paper: str = ""
    role: str = ""
    needs: tuple[str, ...] = ()


def describe(kind: str, name: str) -> Description:
    """Everything a listing shows about the `name` of `kind`.

    Raises:
        ConfigError: where there is none of that name.
    """
    value = find(kind, name)
    if not KINDS[kind].made and hasattr(value, "direction"):
        better = {"up": "more is better", "down": "less is better"}[value.direction]
        return Description(name, value.description, (), role=better)
    summary, _ = docs(inspect.unwrap(value).__doc__)
    paper, role, needs = getattr(value, "paper", ""), getattr(value, "role", ""), getattr(value, "needs", ())
    if kind in ("methods", "operations"):
        try:
            example = value()
        except Exception:  # it has parameters without a default: the class says what it can
            example = None
        if example is not None:
            needs = example.needs
            if kind == "methods":
                role = ", ".join(dict.fromkeys(operation.role for operation in example))
    return Description(
        name,
        summary,
        tuple(configurable(kind, value)),
        str(paper or ""),
        role if isinstance(role, str) else "",
        tuple(sorted(needs)) if isinstance(needs, (dict, frozenset, set, tuple)) else (),
    )
