"""`edgestill bench`: runs a benchmark of the repository, against peers, in one run.

Benchmarks are scripts, `bench/bench_NAME.py`, and no part of the package: they bring an environment of their own for the
peers. So this verb finds them in the checkout that edgestill is installed from, or in the current folder, and runs one.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

import edgestill
from edgestill.core.errors import BenchError, NotFoundError, PathError

_PREFIX: Final = "bench_"

SETTINGS: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
USAGE: Final = 2


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which; without one they are listed.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    """Measure against peers; every further argument is the benchmark's own, `--help` included."""
    scripts = scripts_in(Path(edgestill.__file__).resolve().parents[2], Path.cwd())
    if name is None or name in {"-h", "--help"}:
        _list(scripts, as_json=as_json)
        return
    if name not in scripts:
        raise NotFoundError(
            "no such benchmark",
            where="the folder bench",
            expected=" or ".join(scripts),
            fix="run `edgestill bench` to see them",
            got=repr(name),
        )
    command = [sys.executable, str(scripts[name]), *context.args, *(["--json"] if as_json else [])]
    status = subprocess.run(command, check=False).returncode  # noqa: S603  # a script of the checkout, chosen by name from a list
    if status == USAGE:
        raise typer.Exit(USAGE)
    if status != 0:
        raise BenchError(
            "a benchmark failed",
            where=scripts[name],
            got=f"exit status {status}",
            expected="exit status 0",
            fix="read what it said above this line",
        )


def scripts_in(*folders: Path) -> dict[str, Path]:
    """The benchmarks of the first of these folders that is a checkout, by name.

    Raises:
        PathError: none is.
    """
    for folder in folders:
        found = {
            path.stem.removeprefix(_PREFIX).replace("_", "-"): path
            for path in sorted(folder.glob(f"bench/{_PREFIX}*.py"))
        }
        if found:
            return found
    raise PathError(
        "no benchmarks here",
        where=folders[-1],
        expected=f"bench/{_PREFIX}NAME.py: they are in the repository, not in the package",
        fix="run this in a checkout of the repository",
        got="none of them",
    )


def _list(scripts: dict[str, Path], *, as_json: bool) -> None:
    purposes = {name: _purpose(path) for name, path in scripts.items()}
    if as_json:
        typer.echo(json.dumps({"benches": purposes}))
        return
    for name, purpose in purposes.items():
        typer.echo(f"{name:<10} {purpose}")


def _purpose(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
