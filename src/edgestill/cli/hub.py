"""`edgestill hub`: the hub as a process, and tokens for devices to join it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, table, told
from edgestill.core.clock import SystemClock
from edgestill.core.errors import MessageError
from edgestill.core.extras import require
from edgestill.core.jsonio import canonical
from edgestill.core.units import parse_duration

if TYPE_CHECKING:
    from edgestill.core.auditing import Entry

app = typer.Typer(help="Run a hub, let devices join it, and say who may do what.", no_args_is_help=True)
people = typer.Typer(help="Who may do what at the hub.", no_args_is_help=True)
app.add_typer(people, name="operators")
authority = typer.Typer(
    help="The fleet's authority, which says who belongs to it: hand over to the next one.",
    no_args_is_help=True,
)
app.add_typer(authority, name="authority")
tokens = typer.Typer(help="The tokens by which devices may join.", no_args_is_help=True)
app.add_typer(tokens, name="tokens")
AS_THEY_ARE: Final = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=AS_THEY_ARE)
def init(context: typer.Context) -> None:
    """Make the hub's folder; --home DIR. What is there is kept."""
    _run("init", context.args)


@app.command(context_settings=AS_THEY_ARE)
def up(context: typer.Context) -> None:
    """Serve; --home DIR and more, see --help."""
    _run("up", context.args)


@app.command(context_settings=AS_THEY_ARE)
def backup(context: typer.Context) -> None:
    """Copy the hub's folder, also while it serves; FOLDER --home DIR."""
    _run("backup", context.args)


@app.command(context_settings=AS_THEY_ARE)
def restore(context: typer.Context) -> None:
    """Make a hub's folder of such a copy; BACKUP --to DIR."""
    _run("restore", context.args)


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


@tokens.command("list")
def list_tokens(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """List the join tokens there are and were: what still holds, then the newest."""
    said = operator(hub, token_file).join_tokens()
    found: Any = said["tokens"]
    rows = ((one["id"], _time(one["created_at"]), str(one["devices"]), _left(one)) for one in found)
    lines = table(("ID", "MADE (UTC)", "DEVICES", "STATE"), rows)
    told(said, [*lines, *(["and older ones"] if said["more"] else [])], as_json=as_json)


@tokens.command("revoke")
def revoke_token(
    token: Annotated[str, typer.Argument(help="Its id, as the list has it, or the token itself.")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End a join token. Devices that came by it stay: `fleet revoke` ends them one by one."""
    said = operator(hub, token_file).revoke_join_token(token)
    came: Any = said["devices"]
    others = " and others" if said["more"] else ""
    lines = [f"{said['id']} lets nobody in any more", f"by it came: {', '.join(came) or 'nobody'}{others}"]
    told(said, lines, as_json=as_json)


Force = Annotated[
    bool, typer.Option("--force", help="Also where devices have not followed; they do when they are back.")
]


@authority.command("begin")
def begin(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Make the next authority and let devices know of it; the one before still issues."""
    _tell_authority(operator(hub, token_file).hand_over("begin"), as_json=as_json)


@authority.command("status")
def status(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show where the hand-over stands, and which devices have not followed yet."""
    _tell_authority(operator(hub, token_file).authority(), as_json=as_json)


@authority.command("switch")
def switch(
    *,
    back: Annotated[bool, typer.Option("--back", help="Let the one before issue again.")] = False,
    force: Force = False,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Let the next authority issue; devices get a certificate of it with their next poll."""
    step = "back" if back else "switch"
    _tell_authority(operator(hub, token_file).hand_over(step, force=force), as_json=as_json)


@authority.command("finish")
def finish(
    *, force: Force = False, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Drop the authority before: nobody believes its certificates any more, and its key is removed."""
    _tell_authority(operator(hub, token_file).hand_over("finish", force=force), as_json=as_json)


@authority.command("abandon")
def abandon(
    *, force: Force = False, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Drop the next authority, which does not issue."""
    _tell_authority(operator(hub, token_file).hand_over("abandon", force=force), as_json=as_json)


def _tell_authority(said: Any, *, as_json: bool) -> None:
    issuing, *others = said["authorities"]
    lines = [
        f"hand-over: {said['phase']}",
        f"issues:    {issuing['digest']}, until {_time(issuing['until'])}",
        *(f"believed:  {one['digest']}, until {_time(one['until'])}" for one in others),
        f"followed:  {said['devices'] - said['behind']} of {said['devices']} devices with a certificate",
    ]
    if said["names"]:
        more = " and others" if said["behind"] > len(said["names"]) else ""
        lines.append(f"behind:    {', '.join(said['names'])}{more}")
    told(said, [*lines, *([said["warning"]] if said["warning"] else [])], as_json=as_json)


@people.command("add")
def add_operator(
    name: Annotated[str, typer.Argument(help="Given once: the audit log means one person by it.")],
    role: Annotated[str, typer.Argument(help="viewer, operator, publisher or admin.")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    expires: Annotated[str, typer.Option(help="For how long; default without an end.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make an operator; the token is shown this once."""
    lifetime = parse_duration(expires) if expires else None
    found = operator(hub, token_file).add_operator(name, role, expires_in=lifetime)
    told({"name": name, "role": role, "token": found}, [found], as_json=as_json)


@people.command("list")
def list_operators(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """List the operators there are and were."""
    said = operator(hub, token_file).operators()
    found: Any = said["operators"]
    now = SystemClock().now()
    rows = ((one["name"], one["role"], _standing(one, now)) for one in found)
    told(said, table(("NAME", "ROLE", "STATE"), rows), as_json=as_json)


@people.command("revoke")
def revoke_operator(
    name: Annotated[str, typer.Argument()],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End an operator's token, for ever."""
    said = operator(hub, token_file).revoke_operator(name)
    told(said, [f"{said['name']} may not call any more"], as_json=as_json)


@app.command()
def log(
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    seal: Annotated[str, typer.Option(help="Of an earlier look: is everything before it as it was?")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the audit log, and look whether it was changed."""
    from edgestill.core.auditing import BEGIN, check_chain

    client, last, found = operator(hub, token_file), BEGIN, 0
    seals = {BEGIN}
    while some := client.audit_log(after=found):
        last = check_chain(some, last, first=found + 1)
        found += len(some)
        seals.update(one.seal for one in some)
        for one in some:
            told(one.as_json(), [_line(one)], as_json=as_json)
    if seal and seal not in seals:
        raise MessageError(
            "the audit log was changed",
            where="--seal",
            expected="a seal of this log",
            got=seal[:64],
            fix="compare it with a copy; somebody had the database in hand",
        )
    if not as_json:
        typer.echo(f"{found} entries, none changed; seal {last}")


def _line(entry: Entry) -> str:
    return f"{entry.id}  {_time(entry.at)}  {entry.who}  {entry.what}  {canonical(entry.about).decode()}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _left(one: Any) -> str:
    if one["state"] != "holds":
        return str(one["state"])
    return f"{one['uses_left']} left until {_time(one['expires_at'])}"


def _standing(one: Any, now: float) -> str:
    if one["revoked_at"]:
        return "revoked"
    return "ended" if one["expires_at"] and now >= one["expires_at"] else "may call"


def _run(verb: str, arguments: list[str]) -> None:
    require("starlette", extra="hub", purpose="to run a hub")
    from edgestill.hub.main import main

    sys.exit(main([verb, *arguments]))
