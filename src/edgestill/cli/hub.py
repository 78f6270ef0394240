"""`edgestill hub`: the hub as a process, and tokens for devices to join it."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, told
from edgestill.core.extras import require
from edgestill.core.units import parse_duration

app = typer.Typer(help="Run a hub, and let devices join it.", no_args_is_help=True)
AS_THEY_ARE: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=AS_THEY_ARE)
def init(context: typer.Context) -> None:
    """Make the hub's folder; --home DIR. What is there is kept."""
    _run("init", context.args)


@app.command(context_settings=AS_THEY_ARE)
def up(context: typer.Context) -> None:
    """Serve; --home DIR and more, see --help."""
    _run("up", context.args)


@app.command()
def token(
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    uses: Annotated[int, typer.Option(min=1, help="Devices that may join by it.")] = 1,
    expires: Annotated[str, typer.Option(help="For how long.")] = "7 d",
    as_json: AsJson = False,
) -> None:
    """Make a token by which devices may join."""
    found = operator(hub, token_file).join_token(uses=uses, expires_in=parse_duration(expires))
    told({"token": found, "uses": uses}, [found], as_json=as_json)


def _run(verb: str, arguments: list[str]) -> None:
    require("starlette", extra="hub", purpose="to run a hub")
    from edgestill.hub.main import main

    sys.exit(main([verb, *arguments]))
