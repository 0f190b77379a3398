"""The commands about jobs, names and data: `config`, `convert`, `list`, `cache`, `data`, `validate`, `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.common import (
    Folders,
    Job,
    Plugins,
    console,
    empty_table,
    plugged,
    reported,
    split_words,
    validated_job,
)
from holdfast.core.errors import ConfigError


def show_config(
    job: Job = None,
    config_dir: Folders = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole job as JSON, to be kept in a file.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="List the config groups and what can be chosen.")] = False,
    plugin: Plugins = None,
) -> None:
    """Show what a configuration composes to, as a tree with where each value came from; nothing is run."""
    with reported():
        plugged(plugin)
        from holdfast.compat.dialects import DIALECTS
        from holdfast.config.build import resolve
        from holdfast.config.compose import compose
        from holdfast.config.overrides import Library
        from holdfast.config.show import tree

        if groups:
            library = Library(config_dir or [])
            table = empty_table()
            for group in library.groups():
                table.add_row(group, ", ".join(library.choices(group)))
            console().print(table)
            return
        path, changes = split_words(list(job or []))
        composition = compose(path, changes, config_dir or [], DIALECTS)
        resolved = resolve(composition.config, path or "")
        if as_json:
            typer.echo(json.dumps(resolved, indent=2))
            return
        console().print(tree(composition, resolved, path or "the default job" if not changes else path or "job"))
        for note in composition.notes:
            typer.echo(note, err=True)


def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CLMixer JSON file.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes, by CLMixer's keys or ours: data.data_path=images", show_default=False
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Print the job that a CLMixer file stands for; what is done differently is told on standard error."""
    with reported():
        plugged(plugin)
        from holdfast.compat import clmixer
        from holdfast.compat.dialects import DIALECTS
        from holdfast.config.build import resolve
        from holdfast.config.compose import compose
        from holdfast.config.read import read

        if not clmixer.recognised(read(file)):
            raise ConfigError(f"{file} is no CLMixer file: it has none of {', '.join(clmixer.OWN)}. Run it as it is.")
        composition = compose(file, changes or [], dialects=DIALECTS)
        typer.echo(json.dumps(resolve(composition.config, file), indent=2))
        for note in composition.notes:
            typer.echo(note, err=True)


def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, operations, streams, datasets, models, heads, optimizers, schedulers, criteria, sources, "
            "boundaries, metrics, transforms, loggers or experiments.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="One of them, for its parameters.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a mapping of names to what is said of each.")] = False,
    plugin: Plugins = None,
) -> None:
    """List what a configuration can name, or the parameters of one of them."""
    with reported():
        plugged(plugin)
        from holdfast.config import kinds
        from holdfast.config.show import describe

        if name is not None and not as_json:
            _details(kind, name)
            return
        rows = [describe(kind, key) for key in (kinds.names(kind) if name is None else [name])]
        if as_json:
            typer.echo(json.dumps({row.name: row.plain() for row in rows}, indent=2))
            return
        table = empty_table()
        for row in rows:
            needs = f"needs {', '.join(row.needs)}" if row.needs else ""
            table.add_row(row.name, row.summary, needs, row.role)
        console().print(table)
        for problem, reason in kinds.problems(kind).items():
            typer.echo(f"{problem}: not for configurations, since {reason}", err=True)


def cache(
    action: Annotated[str, typer.Argument(help="list or clear.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(help="Of the cache; $HOLDFAST_CACHE, or `holdfast` among your caches.", show_default=False),
    ] = None,
) -> None:
    """Show what features of frozen backbones are kept on disk, or remove them all."""
    with reported():
        from holdfast.core.errors import unknown
        from holdfast.streams.feature_files import clear, default_folder, entries

        if action not in ("list", "clear"):
            raise ConfigError(unknown("action", action, ["list", "clear"]))
        where = folder or default_folder()
        cached = entries(where)
        if action == "list":
            table = empty_table()
            for entry in cached:
                of, size = entry["of"], f"{entry['bytes'] / 1e6:.1f} MB"
                shape = f"{entry['rows']} x {entry['width']} {entry['precision']}"
                table.add_row(entry["key"][:12], of.get("backbone", ""), of.get("stream", ""), shape, size)
            console().print(table)
            typer.echo(f"{len(cached)} in {where}, {sum(entry['bytes'] for entry in cached) / 1e6:.1f} MB")
        else:
            typer.echo(f"{clear(where) / 1e6:.1f} MB freed in {where}")


def data(
    job: Job = None,
    config_dir: Folders = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, counts of each class too.")] = False,
    plugin: Plugins = None,
) -> None:
    """Say what the data of a job are like: the classes of each experience, and how hard they are to tell apart.

    Of a frozen backbone with a cache, its features are measured.
    """
    with reported():
        plugged(plugin)
        todo = validated_job(job, config_dir)
        from holdfast.discovery.protocols import MEASURES, described

        todo.check_weights()
        about = described(todo)
        if as_json:
            typer.echo(json.dumps(about, indent=2))
            return
        table = empty_table()
        table.add_row("experience", "train", "test", "classes: training samples")
        for one in about["experiences"]:
            train, test = one["train"], one["test"]
            told = ", ".join(f"{about['classes'][int(label)]}: {count}" for label, count in train.items())
            table.add_row(one["name"], str(sum(train.values())), str(sum(test.values())), told)
        console().print(table)
        typer.echo(f"measured on the {about['measured_on']} of at most 1,000 training samples:")
        for name, text in MEASURES.items():
            if name in about["measures"]:
                typer.echo(f"{name:<14}{about['measures'][name]:<12.5g}{text}")


def validate(job: Job = None, config_dir: Folders = None, plugin: Plugins = None) -> None:
    """Check a configuration without loading data, and show what it stands for.

    Stream, model and method are put together over stand-ins for the data, so that what is valid can be run.
    """
    with reported():
        plugged(plugin)
        from holdfast.config.show import summary

        todo = validated_job(job, config_dir, together=True)
        table = empty_table()
        for key, text in summary(todo.config).items():
            table.add_row(key, text)
        console().print(table)
        typer.echo("valid")


def schema(plugin: Plugins = None) -> None:
    """Print the JSON Schema of configurations, for completion in editors."""
    with reported():
        plugged(plugin)
        from holdfast.config.show import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))


def _details(kind: str, name: str) -> None:
    """Everything about one name, and its parameters one to a line."""
    from holdfast.config.show import describe
    from holdfast.config.signatures import type_name
    from holdfast.config.words import shown

    about = describe(kind, name)
    typer.echo(f"{about.name}: {about.summary}")
    facts = {"paper": about.paper, "role": about.role, "needs": ", ".join(about.needs)}
    for key, text in facts.items():
        if text:
            typer.echo(f"{key}: {text}")
    table = empty_table()
    for parameter in about.parameters:
        default = "required" if parameter.required else f"= {shown(parameter.default)}"
        table.add_row(f"  {parameter.name}", default, type_name(parameter.type), parameter.doc.split(". ")[0])
    console().print(table)
