"""`edgestill device`: what models of a family take on a device, so that a search elsewhere can count on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgestill.cli.terminal import plain
from edgestill.cli.watching import watched
from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.extras import require

app = typer.Typer(help="Time a family of models on the device that they are for.", no_args_is_help=True)


@app.command()
def shapes(
    job: Annotated[Path, typer.Argument(help="TOML file of the search.")],
    folder: Annotated[Path, typer.Argument(help="Folder for the models; copy it to the device.")],
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
    typer.echo(
        f"{count} models; copy {folder} to the device and run there: edgestill device profile {folder}"
    )


@app.command()
def profile(
    folder: Annotated[Path, typer.Argument(help="That `edgestill device shapes` made.")],
    *,
    out: Annotated[Path, typer.Option(help="File for the latencies.")] = Path("profile.json"),
) -> None:
    """Time the models on this device; needs an engine and no torch."""
    require("onnxruntime", extra="device", purpose="to run models")
    from edgestill.core.hardware import HardwareClass
    from edgestill.infer.profiling import time_shapes

    found, refused = time_shapes(folder, SystemClock())
    write_whole(out, found, mode=PUBLIC)
    for one in refused:
        typer.echo(plain(one), err=True)
    typer.echo(f"timed on {HardwareClass.here()}: {out}; give it to `edgestill search JOB --profile`")
