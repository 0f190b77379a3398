"""How the code is cut: no circles of imports, no long files, no wide classes, nothing private read from elsewhere.

What does not hold yet stands here as a ceiling that may only fall: whoever lowers a number lowers its ceiling too.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "holdfast"
FILES = sorted(SOURCE.rglob("*.py"))
TEXTS = [
    *FILES,
    *chain.from_iterable(ROOT.glob(pattern) for pattern in ("*.md", "*.py", "*.toml", ".ci/*", "docs/**/*.md")),
    *chain.from_iterable(ROOT.glob(f"{folder}/**/*.py") for folder in ("tests", "benchmarks", "examples", "docs")),
]

MOST_LINES, MOST_METHODS = 350, 15
MEAN_LINES = 200
"""Of a file that is no method and no operation, at least: few medium files rather than many tiny ones."""

FILES_TODAY = 406
"""Outside `compat/`; docs/decisions/files.md says how many there can be, and why."""

SHORT = {
    "__main__.py": "what `python -m holdfast` runs",
    "lightning.py": "the import path of an extra",
    "core/attributes.py": "a descriptor that belongs to the learner and its services, both of which are near the limit",
    "core/memory.py": "a Protocol that the core asks for and `memory/` meets",
}
"""Files under 60 lines beside methods, operations and `__init__.py`, and why they stand alone."""

LONG_TODAY: set[str] = set()
WIDE_TODAY: dict[str, int] = {}
PRIVATE_TODAY = 0
WORDS_TODAY = {"weighed": 0, "Errors:": 0, "ids": 0}
"""What is above its limit today; an entry goes when it is no longer needed."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


MODULES = {module_of(path): path for path in FILES}


# Imports ---------------------------------------------------------------------------------------------------


def for_types_only(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(path: Path, inside_functions: bool) -> set[str]:
    """The modules of ours that a file imports."""

    def statements(nodes: list[ast.stmt]) -> list[ast.stmt]:
        found = []
        for node in nodes:
            found.append(node)
            if for_types_only(node):
                continue
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
                continue
            for part in ("body", "orelse", "finalbody", "handlers"):
                found += statements(getattr(node, part, []))
        return found

    names = set()
    for node in statements(tree_of(path).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in MODULES else node.module)
    return {name for name in names if name in MODULES} - {module_of(path)}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles({module_of(path): imported(path, inside_functions=False) for path in FILES}) == []


def within_packages() -> list[list[str]]:
    """Circles inside one package that imports within functions hide."""
    every = {module_of(path): imported(path, inside_functions=True) for path in FILES}
    packages = {name.split(".")[1] for name in every if name.count(".")}
    found = []
    for package in sorted(packages):
        inside = {name for name in every if name.startswith(f"holdfast.{package}.")}
        found += circles({name: every[name] & inside for name in inside})
    return found


def test_no_circle_is_hidden_by_an_import_within_a_function() -> None:
    assert within_packages() == []


# Sizes -----------------------------------------------------------------------------------------------------


def test_files_are_few_and_neither_tiny_nor_without_a_reason() -> None:
    counted = [path for path in FILES if "compat" not in path.relative_to(SOURCE).parts]
    assert len(counted) <= FILES_TODAY
    sizes = {name_of(path): len(lines_of(path)) for path in counted if not one_each(path)}
    assert sum(sizes.values()) / len(sizes) >= MEAN_LINES
    short = {name for name, lines in sizes.items() if lines < 60 and not name.endswith("__init__.py")}
    assert short == set(SHORT)


def one_each(path: Path) -> bool:
    """Whether a file is a method or an operation, which are small and stay one file each."""
    return path.parent.name in ("methods", "operations")


def test_no_file_is_long_and_each_says_what_it_holds() -> None:
    assert {name_of(path) for path in FILES if len(lines_of(path)) > MOST_LINES} <= LONG_TODAY
    assert [name_of(path) for path in FILES if not ast.get_docstring(tree_of(path))] == [], "a sentence at the top"


def public_methods(node: ast.ClassDef) -> list[str]:
    """What a class offers; a property that can be set counts once."""
    return sorted(
        {
            child.name
            for child in node.body
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_")
        }
    )


def test_no_class_of_the_core_has_many_public_methods() -> None:
    core = [path for path in FILES if name_of(path).startswith("core/")]
    classes = [node for path in core for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    counts = {node.name: len(public_methods(node)) for node in classes}
    assert {name: n for name, n in counts.items() if n > WIDE_TODAY.get(name, MOST_METHODS)} == {}


# Private names ---------------------------------------------------------------------------------------------

FOREIGN = {
    r"_asdict|_replace|_fields": "public methods of named tuples, whose names begin so on purpose",
    r"_apply": "how torch moves a module, which an operation's state must follow",
    r"_foreach_\w+": "one kernel for all parameters",
    r"_(parameters|buffers|non_persistent_buffers_set)": "values of a module are exchanged without registering anew",
    r"_forward_(pre_)?hooks": "hooks of others must run, or must not, where a module is copied or called apart",
    r"_optimizer_step_(pre|post)_hooks": "an optimiser with hooks cannot be moved by its bare function",
    r"_(Batch)?Norm(Base)?": "the base class of all batch normalisation",
    r"_version": "tells whether a value was changed in place",
    r"_orig_mod": "the module behind a compiled one",
    r"_schema": "which arguments a call of torch writes to, that a recorded step must know",
    r"_cdata": "tells whether two tensors share their memory, whatever their addresses",
    r"_getframe": "the user's line that a step cannot be recorded for",
}
"""Private names of other libraries that are read on purpose, and why."""


def own_private_names(tree: ast.Module) -> set[str]:
    """The private names that a module defines: in its classes, and at its top."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            if isinstance(node.ctx, ast.Store):
                names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if name.startswith("_")}


def read_from_elsewhere(path: Path) -> list[str]:
    """The private attributes that a file reads of something that is not its own."""
    tree, found = tree_of(path), []
    own = own_private_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            continue
        if node.attr in own or any(re.fullmatch(pattern, node.attr) for pattern in FOREIGN):
            continue
        found.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_private_is_read_of_another_modules_class() -> None:
    found = [line for path in FILES for line in read_from_elsewhere(path)]
    assert len(found) <= PRIVATE_TODAY, "\n".join(found)


def test_every_private_name_of_another_library_is_one_that_is_read() -> None:
    read = {node.attr for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert [pattern for pattern in FOREIGN if not any(re.fullmatch(pattern, name) for name in read)] == []


# Types -----------------------------------------------------------------------------------------------------

ANY_TODAY = 48
"""How often `Any` stands in the core: it belongs only where a user's value, or JSON, passes through."""


def uses_of_any(path: Path) -> int:
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree_of(path)))


def test_any_stands_in_the_core_only_where_a_users_value_passes_through() -> None:
    counts = {name_of(path): uses_of_any(path) for path in FILES if name_of(path).startswith("core/")}
    assert sum(counts.values()) <= ANY_TODAY, counts


# Words -----------------------------------------------------------------------------------------------------


@cache
def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """Where a pattern stands in texts of the project, except in this file."""
    here = Path(__file__).resolve()
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if path.resolve() != here
        for number, line in enumerate(lines_of(path), start=1)
        if re.search(pattern, line)
    ]


def test_losses_are_weighted_and_not_weighed() -> None:
    found = lines_with(r"\b[Ww]eighed\b", TEXTS)
    assert len(found) <= WORDS_TODAY["weighed"], found


def test_docstrings_say_raises() -> None:
    found = lines_with(r"^\s+Errors:$", TEXTS)
    assert len(found) <= WORDS_TODAY["Errors:"], found


def test_no_text_names_a_path_of_a_machine_a_registry_or_a_document_that_is_not_here() -> None:
    assert lines_with(r"/(work|root)/|/(home|Users)/\w|/tmp/[a-z]*env\b", TEXTS) == []
    assert lines_with(r"pypi\.|index-url|artifactory|\bhttps?://[^ ]*(mirror|proxy)", TEXTS) == []
    assert lines_with(r"(frame|design|known_bugs|published_results)\.md", TEXTS) == []
    found = lines_with(r"\b(CM|CA|SY)-\d\d", TEXTS)
    assert len(found) <= WORDS_TODAY["ids"], found


# The checks themselves -------------------------------------------------------------------------------------


def test_a_circle_of_imports_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_private_attribute_of_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n"
        "    def __init__(self, other):\n"
        "        self._kept = other\n"
        "    def same(self, another):\n"
        "        return another._kept is self._kept and another.__class__ is self.__class__ and self._base\n"
        "def look(at):\n"
        "    return at._hidden\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert read_from_elsewhere(path) == ["mine.py:7: at._hidden"]


# Benchmarks and examples -----------------------------------------------------------------------------------


SCRIPTS = sorted((*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/**/*.py")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_imports_nothing_of_ours_that_is_gone(script: Path) -> None:
    gone = []
    for node in ast.walk(tree_of(script)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "holdfast":
            path = MODULES.get(str(node.module))
            if path is None:
                gone.append(str(node.module))
                continue
            text = path.read_text(encoding="utf-8")
            wanted = {alias.name for alias in node.names}
            gone += [
                f"{node.module}.{name}"
                for name in wanted
                if f"{node.module}.{name}" not in MODULES and not re.search(rf"\b{name}\b", text)
            ]
    assert gone == []
