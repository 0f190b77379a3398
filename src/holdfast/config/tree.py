"""A composed configuration as a tree, with where each of its values came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast.config.compose import Composition, origin
from holdfast.config.words import shown

if TYPE_CHECKING:
    from rich.tree import Tree


def tree(composition: Composition, resolved: Mapping[str, Any], title: str = "job") -> Tree:
    """The tree that `holdfast config` prints.

    Args:
        composition: what was composed.
        resolved: the same, checked and with every default.
        title: at its root.
    """
    from rich.text import Text
    from rich.tree import Tree

    def grow(branch: Tree, value: Any, path: tuple[str, ...]) -> None:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            here = (*path, str(key))
            label = f"{key}"
            if isinstance(part, Mapping) or (isinstance(part, list) and any(isinstance(one, Mapping) for one in part)):
                grow(branch.add(Text(label, "bold")), part, here)
            else:
                source = _source(composition, resolved, here)
                branch.add(Text.assemble((f"{label}: ", "bold"), shown(part, 200), (f"  {source}", "dim")))

    root = Tree(Text(title, "bold"), guide_style="dim")
    grow(root, resolved, ())
    return root


def lines(composition: Composition, resolved: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The same flat: dotted path -> value and source."""
    found: dict[str, tuple[Any, str]] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(one, Mapping) for one in value)):
            for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
                walk(part, (*path, str(key)))
        else:
            found[".".join(path)] = (value, _source(composition, resolved, path))

    walk(resolved, ())
    return found


def _source(composition: Composition, resolved: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """The source of a value, of a list's elements the last that was said."""
    below = [source for known, source in composition.origins.items() if known[: len(path)] == path]
    return below[-1] if below else origin(composition, resolved, path)
