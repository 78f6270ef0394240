"""The verbs, put together; how errors end a program."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from typing import Final

import typer

from edgestill import __version__
from edgestill.cli import (
    bench,
    bundle,
    demo,
    device,
    distill,
    fleet,
    hub,
    plumbing,
    predict,
    release,
    rollout,
    search,
    serve,
    timing,
)
from edgestill.core.errors import EdgestillError

INTERRUPTED: Final = 130

app = typer.Typer(
    name="edgestill",
    help="Distil a large model, deliver it to a fleet, let both answer together, learn from what devices see.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("bench", context_settings=bench.SETTINGS)(bench.bench)
app.command("demo")(demo.demo)
app.command("distill")(distill.distill)
app.command("predict")(predict.predict)
app.command("search")(search.search)
app.command("serve")(serve.serve)
app.add_typer(bundle.app, name="bundle")
app.add_typer(device.app, name="device")
app.add_typer(fleet.app, name="fleet")
app.add_typer(hub.app, name="hub")
app.add_typer(plumbing.app, name="plumbing")
app.add_typer(release.app, name="release")
app.add_typer(rollout.app, name="rollout")
app.add_typer(timing.app, name="timing")


@app.callback(invoke_without_command=True)
def _version(*, version: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Runs the command line on `sys.argv`; a closed terminal or SIGTERM ends it as Ctrl-C does, in order."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        app()
    except EdgestillError as error:
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": error.as_json()}) + "\n")
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer has made this of a KeyboardInterrupt
            # An interrupt can come between opening a socket and keeping it: the collector closes that one.
            warnings.simplefilter("ignore", ResourceWarning)
            sys.stderr.write("interrupted; every process that was started has ended\n")
        raise


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
