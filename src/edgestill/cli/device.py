"""`edgestill device`: what models of a family take on a device, so that a search elsewhere can count on it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from edgestill.cli.terminal import plain
from edgestill.cli.watching import watched
from edgestill.core.bundle import PUBLIC, Bundle
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.extras import require
from edgestill.core.family import SUFFIX
from edgestill.core.manifest import GOLDEN, MODEL
from edgestill.core.units import format_duration

app = typer.Typer(
    help="Join a fleet and run the agent; time models on the device that they are for.", no_args_is_help=True
)
AS_THEY_ARE: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=AS_THEY_ARE)
def join(context: typer.Context) -> None:
    """Enrol this device at a hub; as `edgestill-agent join`, see --help."""
    _agent("join", context.args)


@app.command(context_settings=AS_THEY_ARE)
def rejoin(context: typer.Context) -> None:
    """Enrol it anew with a hub that lost it, with what it has; as `edgestill-agent rejoin`, see --help."""
    _agent("rejoin", context.args)


@app.command(context_settings=AS_THEY_ARE)
def run(context: typer.Context) -> None:
    """Run the agent; as `edgestill-agent run`, see --help."""
    _agent("run", context.args)


@app.command(context_settings=AS_THEY_ARE)
def update(context: typer.Context) -> None:
    """Take a release from a folder or a stick; as `edgestill-agent update`, see --help."""
    _agent("update", context.args)


@app.command(context_settings=AS_THEY_ARE)
def status(context: typer.Context) -> None:
    """Tell what serves and what is known of it; as `edgestill-agent status`, see --help."""
    _agent("status", context.args)


def _agent(verb: str, arguments: list[str]) -> None:
    from edgestill.device.main import main

    sys.exit(main([verb, *arguments]))


@app.command()
def shapes(
    job: Annotated[Path, typer.Argument(help="TOML file of the search.")],
    folder: Annotated[
        Path,
        typer.Argument(help="Folder for the models, to copy to the device; or NAME.est, to publish."),
    ],
    *,
    hardware_class: Annotated[
        str, typer.Option(help="The device's, as `edgestill device profile` tells; default this machine's.")
    ] = "",
) -> None:
    """Make the models that a device shall time."""
    for module in ("torch", "lightning_fabric"):
        require(module, extra="lab", purpose="to make models")
    from edgestill.lab.job import Job
    from edgestill.lab.jobsearch import write_family

    read = Job.read(job)
    if hardware_class:
        read = replace(read, bundle=replace(read.bundle, hardware_class=hardware_class))
    with watched() as show:
        count = write_family(read, folder, progress=show)
    if folder.suffix == SUFFIX:
        typer.echo(f"{count} models; publish them: edgestill release publish {folder}")
        return
    typer.echo(
        f"{count} models; copy {folder} to the device and run there: edgestill device profile {folder}"
    )


@app.command()
def profile(
    folder: Annotated[Path, typer.Argument(help="That `edgestill device shapes` made.")],
    *,
    out: Annotated[Path, typer.Option(help="File for the latencies.")] = Path("profile.json"),
    engine: Annotated[
        str, typer.Option(help="That runs them: onnxruntime, openvino or litert.")
    ] = "onnxruntime",
) -> None:
    """Time the models on this device; needs an engine and no torch."""
    require("onnxruntime", extra="device", purpose="to run models")
    from edgestill.core.hardware import HardwareClass
    from edgestill.infer.engines import engine_name
    from edgestill.infer.profiling import time_shapes

    found, refused = time_shapes(folder, SystemClock(), engine=engine)
    write_whole(out, found, mode=PUBLIC)
    for one in refused:
        typer.echo(plain(one), err=True)
    typer.echo(
        f"timed on {HardwareClass.here(engine_name(engine))}: {out}; give it to `edgestill search JOB --profile`"
    )


@app.command()
def engines(
    bundle: Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")],
    *,
    threads: Annotated[int, typer.Option(min=1, max=256, help="That share one operator.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run a bundle's model on every engine that is installed here: which agree with it, and how fast they are."""
    require("onnxruntime", extra="device", purpose="to run models")
    from edgestill.infer.golden import read_golden
    from edgestill.infer.parity import compared

    opened = Bundle.open(bundle)
    opened.verify()
    ran = compared(opened.read(MODEL), read_golden(opened.read(GOLDEN)), SystemClock(), threads=threads)
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle), "engines": [one.as_json() for one in ran]}))
        return
    for one in ran:
        if one.refused or one.latency is None:
            typer.echo(plain(f"{one.name}: {one.refused}"))
            continue
        typer.echo(
            f"{one.name}: p50 {format_duration(one.latency.p50.value)}, p95 {format_duration(one.latency.p95.value)}; "
            f"{'agrees' if one.agrees else 'DIFFERS'}: {one.difference:.3g} of {one.tolerance:g} allowed"
        )
