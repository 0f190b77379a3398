"""Writes the pages that follow from the code: methods, operations, and tables between markers in other pages.

python docs/generate.py            write them
python docs/generate.py --check    write nothing; say what is out of date, and exit with 1 if anything is
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from typer.main import get_command

from holdfast.cli import app
from holdfast.config import kinds
from holdfast.config.check import validated
from holdfast.config.compose import load
from holdfast.config.schema import job_model, trainer_parameters
from holdfast.config.show import Description, describe
from holdfast.config.signatures import Parameter, docs, type_name
from holdfast.config.words import shown
from holdfast.core.errors import HoldfastError
from holdfast.core.method import Method
from holdfast.core.needs import NEEDS, WAYS
from holdfast.core.operation import ENTRY_POINTS, Operation
from holdfast.core.services import Services
from holdfast.metrics import METRICS
from holdfast.testing import OPERATION_CHECKS, checking

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py from the code. Change the docstring, then run `python docs/generate.py`. -->"


# Markdown ------------------------------------------------------------------------------------------------


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; upright strokes within cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: object) -> str:
    """Inline code, or nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def argument_table(parameters: Iterable[Parameter]) -> str:
    """Name, default, type and meaning of what a configuration may give."""
    rows = [
        [code(p.name), "required" if p.required else code(shown(p.default)), kind(p.type), p.doc.rstrip(".")]
        for p in parameters
    ]
    return table(["argument", "default", "type", "meaning"], rows) if rows else "None."


def kind(annotation: Any) -> str:
    """An annotation as a configuration's author calls it."""
    return re.sub(r"\bNone\b", "null", type_name(annotation))


def sections(value: Any) -> tuple[str, dict[str, str]]:
    """What a docstring says between its summary and its first section, and each section by its title."""
    text = inspect.cleandoc(inspect.unwrap(value).__doc__ or "")
    body = text.partition("\n\n")[2]
    parts = re.split(r"^([A-Z][a-z]+):[ \n]", f"\n{body}", flags=re.MULTILINE)
    named = {title: inspect.cleandoc(content) for title, content in zip(parts[1::2], parts[2::2])}
    return parts[0].strip(), named


def example_of(value: Any) -> Any:
    """One made with its defaults, or None where it has arguments without a default."""
    try:
        return value()
    except Exception:
        return None


# Pages ---------------------------------------------------------------------------------------------------


def can_i_use(name: str, needs: dict[str, str], operations: Iterable[Operation]) -> str:
    """Each way to train: yes, or no with the sentence that says why."""
    rows = []
    for way in WAYS:
        missing = [f"`{operation}` {NEEDS[need]}" for need, operation in needs.items() if need not in way.offers]
        rows.append([way.name, f"no: {'; '.join(missing)}" if missing else "yes"])
    why = [f"`{operation.name}` {operation.captured}" for operation in operations if operation.captured]
    rows.append(["trainer, [captured steps](../captured_steps.md)", f"as written: {'; '.join(why)}" if why else "yes"])
    return table(["way to train", f"can I use `{name}`?"], rows)


def method_page(name: str) -> str:
    """The page of one published method."""
    value, about = kinds.find("methods", name), describe("methods", name)
    formula, named = sections(value)
    method = example_of(value)
    parts = [f"# `{name}`", NOTE, about.summary, formula, f"Paper: {about.paper}." if about.paper else ""]
    if "Differences" in named:
        parts.append(f"Differences from the paper: {named['Differences']}")
    parts += ["## Arguments", argument_table(about.parameters)]
    if isinstance(method, Method):
        parts += ["## Made of", made_of(method), "## Needs", needs_list(method.needs)]
        parts.append(can_i_use(name, method.needs, method))
    command = command_for(name)
    if command:
        parts += ["## Use", f"```console\n{command}\n```"]
    parts.append(f"From Python: `holdfast.methods.{name}`. All methods: [index](index.md).")
    return "\n\n".join(part for part in parts if part) + "\n"


def command_for(name: str) -> str:
    """The shortest change to the default job that runs a method, or nothing."""
    generated = ["stream.paradigm=task", "model=hypernetwork", "model.backbone=mlp"]
    for more in ([], ["stream.paradigm=task"], ["stream.paradigm=task", "model.head=task"], generated):
        try:
            validated(load(None, [f"method={name}", *more]), together=True)
        except HoldfastError:
            continue
        return " ".join(["holdfast run", f"method={name}", *more])
    return ""


def made_of(method: Method) -> str:
    """The operations of a method with its defaults, one to a line."""
    if not len(method):
        return "No operation at all: the plain training loop."
    lines = []
    for operation in method:
        name = operation.config()["name"]
        summary = describe("operations", name).summary.rstrip(".")
        lines.append(f"* `{operation!r}`: {summary} ([page](../operations/{name}.md))")
    return "With its defaults, in this order:\n\n" + "\n".join(lines)


def needs_list(needs: dict[str, str]) -> str:
    """Every need with the operation that has it."""
    if not needs:
        return "Nothing: it works in every loop."
    return "\n".join(f"* {need}: `{operation}` {NEEDS[need].split(', and')[0]}" for need, operation in needs.items())


def operation_page(name: str) -> str:
    """The page of one operation."""
    value, about = operation_class(name), describe("operations", name)
    body, named = sections(value)
    parts = [f"# `{name}`", NOTE, about.summary, body, "## Arguments", argument_table(about.parameters)]
    facts = {
        "role": about.role,
        "acts at": moments(value),
        "needs": ", ".join(about.needs) or "nothing",
        "remembers": remembers(value) or "nothing more",
        "Python": code(f"holdfast.operations.{value.__name__}"),
    }
    parts.append(table(["", ""], [[key, text] for key, text in facts.items()]))
    for title in ("Source", "Differences"):
        if title in named:
            parts.append(f"{title}: {named[title]}")
    return "\n\n".join(part for part in parts if part) + "\n"


def operation_class(name: str) -> type[Operation]:
    """The class that a configuration's name stands for."""
    return cast("type[Operation]", kinds.find("operations", name))


def moments(value: type[Operation]) -> str:
    """The entry points that an operation overrides."""
    return ", ".join(code(point) for point in ENTRY_POINTS if getattr(value, point) is not getattr(Operation, point))


def remembers(value: type[Operation]) -> str:
    """The extra fields that an operation asks the memory to keep."""
    fields = getattr(value, "remembers", ())
    return ", ".join(fields) if isinstance(fields, tuple) else ""


def own(kind_: str) -> list[str]:
    """The names that Holdfast itself offers, without those of installed plugins."""
    return sorted(name for name, value in kinds.names(kind_).items() if value.__module__.startswith("holdfast."))


def all_of(kind_: str) -> list[Description]:
    """Every name of a kind with what a listing says about it, in alphabetical order."""
    return [describe(kind_, name) for name in own(kind_)]


def methods_table(folder: str) -> str:
    """Every method in one line, linked from a page that lies beside or above `folder`."""
    rows = [
        [f"[`{about.name}`]({folder}{about.name}.md)", about.summary, ", ".join(about.needs) or "nothing"]
        for about in all_of("methods")
    ]
    return table(["method", "what it does", "needs"], rows)


def methods_index() -> str:
    """The list of methods, what needs mean, and which method works where."""
    rows = []
    for about in all_of("methods"):
        held = set(about.needs)
        made = example_of(kinds.find("methods", about.name))
        written = any(operation.captured for operation in made) if isinstance(made, Method) else False
        ways = ["yes" if held <= way.offers else "no" for way in WAYS]
        rows.append([f"[`{about.name}`]({about.name}.md)", *ways, "as written" if written else "yes"])
    words = [[code(need), sentence] for need, sentence in NEEDS.items()]
    parts = [
        "# Methods",
        NOTE,
        "Each is one expression over [operations](../operations/index.md), in one file of `src/holdfast/methods`.",
        methods_table(""),
        "## Can I use?",
        "With its defaults; the page of a method says why not.",
        table(["method", *(way.name for way in WAYS), "[captured steps](../captured_steps.md)"], rows),
        "## What the needs mean",
        "A method that has one of these needs ...",
        table(["need", "a method with it"], words),
    ]
    return "\n\n".join(parts) + "\n"


def operations_index() -> str:
    """The list of operations."""
    rows = []
    for about in all_of("operations"):
        value = operation_class(about.name)
        needs = ", ".join(about.needs) or "nothing"
        link = f"[`{about.name}`]({about.name}.md)"
        rows.append([link, about.summary, about.role, moments(value), needs, remembers(value)])
    parts = [
        "# Operations",
        NOTE,
        "What methods are made of; `needs` are those with default arguments. How one is written: "
        "[adding an operation](../adding_an_operation.md).",
        table(["operation", "what it does", "role", "acts at", "needs", "remembers"], rows),
    ]
    return "\n\n".join(parts) + "\n"


# Tables between markers ----------------------------------------------------------------------------------


def names_table(kind_: str) -> str:
    """Every name of a kind with its call and one line."""
    rows = [
        [code(about.name), ", ".join(code(p.name) for p in about.parameters), about.summary] for about in all_of(kind_)
    ]
    return table(["name", "parameters", "what it is"], rows)


def job_table() -> str:
    """Every top-level key of a configuration."""
    fields = job_model().model_fields
    return table(["key", "meaning"], [[code(name), field.description or ""] for name, field in fields.items()])


def metrics_table() -> str:
    """Every measure in `metrics.json`."""
    better = {"up": "more", "down": "less"}
    rows = [[code(name), better[metric.direction], metric.description] for name, metric in METRICS.items()]
    return table(["key", "better", "what it is"], rows)


def commands() -> str:
    """Every command with its first paragraph, arguments and options."""
    parts = []
    for name, command in vars(get_command(app))["commands"].items():
        if command.hidden:
            continue
        given = [p for p in command.params if "--help" not in p.opts]
        words = " ".join(["holdfast", name, *(metavar(p) for p in given if metavar(p))])
        rows = [[called(p), " ".join((getattr(p, "help", "") or "").split())] for p in given]
        parts += [f"## `{words}`", " ".join(inspect.cleandoc(command.help or "").split())]
        parts += [table(["", "what it is"], rows)] if rows else []
    return "\n\n".join(parts)


def called(parameter: Any) -> str:
    """How an argument or option is written."""
    return code(metavar(parameter)) or ", ".join(code(word) for word in sorted(parameter.opts, key=len))


def metavar(parameter: Any) -> str:
    """What stands for an argument in the usage; nothing for an option."""
    return "" if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name.upper()


def services_table() -> str:
    """What operations may ask: the services' attributes, then their methods, each with its first sentence."""
    attributes = docs((Services.__doc__ or "").partition("Attributes:")[2].join(["Summary.\n\nArgs:", ""]))[1]
    rows = [[code(name), text.rstrip(".")] for name, text in attributes.items()]
    for name, value in vars(Services).items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(value, property):
            rows.append([code(f"{name}"), docs(value.__doc__)[0].rstrip(".")])
        elif inspect.isfunction(value):
            arguments = ", ".join(list(inspect.signature(value).parameters)[1:])
            called = f"learner({arguments})" if name == "__call__" else f"{name}({arguments})"
            rows.append([code(called), docs(value.__doc__)[0].rstrip(".")])
    return table(["of the learner", "what it is"], rows)


def checks_table() -> str:
    """What an operation is checked for, by the name of the check."""
    return table(
        ["check", "what must hold"], [[code(name), checking.about(check)] for name, check in OPERATION_CHECKS.items()]
    )


def overhead_table() -> str:
    """What a step costs beside one written by hand, as `benchmarks/overhead.py` measured it last."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "overhead.json").read_text(encoding="utf-8"))
    return table(
        ["", "`Trainer`", "`Continual` in the loop"],
        [
            [row["case"], *(f"{row[key]['ratio']:.2f}" if key in row else "" for key in ("trainer", "wrapper"))]
            for row in rows
            if "trainer" in row
        ],
    )


BLOCKS = {
    "docs/in_your_own_loop.md": {"overhead": overhead_table},
    "docs/command_line.md": {"commands": commands},
    "docs/entry_points.md": {"services": services_table},
    "docs/extending.md": {"checks": checks_table},
    "README.md": {"methods": lambda: methods_table("docs/methods/")},
    "docs/run_folder.md": {"metrics": metrics_table},
    "docs/configuration.md": {"job": job_table, "trainer": lambda: argument_table(trainer_parameters())},
    "docs/streams.md": {"streams": lambda: names_table("streams"), "datasets": lambda: names_table("datasets")},
}
"""Page -> marker -> what stands between `<!-- marker: generated -->` and `<!-- marker: end -->`."""


def pages() -> dict[Path, str]:
    """Every generated file with its content."""
    found = {ROOT / "docs/methods/index.md": methods_index(), ROOT / "docs/operations/index.md": operations_index()}
    for name in own("methods"):
        found[ROOT / f"docs/methods/{name}.md"] = method_page(name)
    for name in own("operations"):
        found[ROOT / f"docs/operations/{name}.md"] = operation_page(name)
    for page, blocks in BLOCKS.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for marker, make in blocks.items():
            first, last = f"<!-- {marker}: generated -->", f"<!-- {marker}: end -->"
            if first not in text or last not in text:
                raise SystemExit(f"{page} has no lines {first!r} and {last!r}. Put them where the table belongs.")
            before, rest = text.split(first, 1)
            text = f"{before}{first}\n{make()}\n{last}{rest.split(last, 1)[1]}"
        found[ROOT / page] = text
    return found


def main() -> None:
    """Write every page, or check that none would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    wanted = pages()
    stale = [
        path
        for folder in ("methods", "operations")
        for path in (ROOT / "docs" / folder).glob("*.md")
        if path not in wanted
    ]
    changed = {
        path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if check and path.is_file():
            lines = difflib.unified_diff(
                path.read_text(encoding="utf-8").splitlines(), text.splitlines(), "now", "wanted", lineterm="", n=0
            )
            print("\n".join(list(lines)[:6]))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'left over' if check else 'removed'}: {path.relative_to(ROOT)}")
        if not check:
            path.unlink()
    if check and (changed or stale):
        sys.exit("run `python docs/generate.py` and commit what it writes")


if __name__ == "__main__":
    main()
