"""`edgestill rollout`: bring a release to the fleet in stages, and see where it stands and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, label_of, operator, table, told
from edgestill.core.errors import NotFoundError
from edgestill.core.release import Gates
from edgestill.core.units import parse_duration, parse_share

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="Bring a release to the fleet.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the rollout.")]


@app.command()
def start(
    release: Annotated[str, typer.Argument(metavar="NAME/VERSION", help="That the publisher lists.")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    stages: Annotated[
        str, typer.Option(help="Shares of the devices, one after the other.")
    ] = "5%, 25%, 100%",
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only devices that carry it.")
    ] = None,
    max_failed: Annotated[str, typer.Option(help="Share that may fall back, be silent or be slow.")] = "0%",
    min_agreement: Annotated[str, typer.Option(help="With the teacher, on audits; default any.")] = "",
    min_audits: Annotated[
        int, typer.Option(min=1, help="Before a stage is complete, with --min-agreement.")
    ] = 20,
    max_errors: Annotated[
        str, typer.Option(help="Of inputs, on which the engine may fail; default any.")
    ] = "",
    max_escalated: Annotated[str, typer.Option(help="Of answers, with a larger model; default any.")] = "",
    max_latency: Annotated[str, typer.Option(help="Of 95 of 100 answers; default any.")] = "",
    min_answers: Annotated[
        int,
        typer.Option(
            min=1, help="Before a stage is complete, with the three above; of one device for its latency."
        ),
    ] = 20,
    silent_after: Annotated[str, typer.Option(help="Without a report, before it is done.")] = "1 h",
    as_json: AsJson = False,
) -> None:
    """Start one."""
    gates = Gates(
        max_failed=parse_share(max_failed),
        min_agreement=parse_share(min_agreement) if min_agreement else None,
        min_audits=min_audits,
        min_answers=min_answers,
        silent_after=parse_duration(silent_after),
        max_errors=parse_share(max_errors) if max_errors else None,
        max_escalated=parse_share(max_escalated) if max_escalated else None,
        max_latency=parse_duration(max_latency) if max_latency else None,
    )
    shares = [parse_share(one) for one in stages.split(",")]
    name = operator(hub, token_file).start_rollout(
        release, stages=shares, gates=gates, labels=dict(label_of(one) for one in label or ())
    )
    told({"id": int(name)}, [f"rollout {name} is started; edgestill rollout status {name}"], as_json=as_json)


@app.command()
def status(
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Default: the newest ones.")] = "",  # noqa: A002  # the wire's own word
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest rollouts, or one with its devices."""
    client = operator(hub, token_file)
    if not id:
        said = client.rollouts()
        rollouts: Any = said["rollouts"]
        rows = ((one["id"], one["release"], one["state"], _stage(one), one["reason"]) for one in rollouts)
        told(said, table(("ID", "RELEASE", "STATE", "STAGE", "WHY"), rows), as_json=as_json)
        return
    said = client.rollout(id)
    told(said, _lines(said), as_json=as_json)


@app.command()
def pause(id: Id, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Stop one where it is."""
    _after(operator(hub, token_file).pause(id), as_json=as_json)


@app.command()
def resume(id: Id, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Run a paused one on; what has failed so far is accepted."""
    _after(operator(hub, token_file).resume(id), as_json=as_json)


@app.command()
def advance(id: Id, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Let one go on at its stage without waiting for more reports; what is surely bad still pauses it."""
    client = operator(hub, token_file)
    stage: Any = client.rollout(id)["stage"]
    _after(client.advance(id, stage=stage), as_json=as_json)


@app.command()
def rollback(id: Id, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Send its devices back to what they had."""
    _after(operator(hub, token_file).rollback(id), as_json=as_json)


@app.command()
def why(
    device: Annotated[str, typer.Argument(help="Of the fleet.")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell why a device runs what it runs: each rollout that has to do with it, the newest first."""
    client = operator(hub, token_file)
    newest: Any = client.rollouts()["rollouts"]
    found = []
    for one in newest:
        devices: Any = (said := client.rollout(str(one["id"])))["devices"]
        if device in devices:
            rollout = {name: said[name] for name in ("id", "release", "state", "reason")}
            found.append({"rollout": rollout, "device": devices[device]})
    if not found:
        raise NotFoundError(
            "no rollout has to do with this device",
            where="rollouts",
            expected="a device that one is for",
            got=device[:80],
            fix="is it of the fleet, and is there a bundle for its hardware class?",
        )
    told({"device": device, "rollouts": found}, _reasons(device, found), as_json=as_json)


def _after(said: Any, *, as_json: bool) -> None:
    told(said, [f"rollout {said['id']} of {said['release']} is {said['state']}"], as_json=as_json)


def _reasons(device: str, found: list[Any]) -> Iterator[str]:
    yield f"{device} runs {found[0]['device']['release'] or 'nothing yet'}"
    for one in found:
        rollout, here = one["rollout"], one["device"]
        why = f" ({rollout['reason']})" if rollout["reason"] else ""
        reason = f": {here['reason']}" if here["reason"] else ""
        yield f"rollout {rollout['id']} of {rollout['release']} is {rollout['state']}{why}; here it is {here['state']}{reason}"


def _lines(said: Any) -> Iterator[str]:
    yield f"{said['release']}: {said['state']}, stage {_stage(said)}"
    if said["reason"]:
        yield f"why: {said['reason']}"
    yield from said["health"]
    rows = (
        (name, one["state"], one["release"], one["reason"]) for name, one in sorted(said["devices"].items())
    )
    yield from table(("DEVICE", "STATE", "RUNS", "WHY"), rows)


def _stage(one: Any) -> str:
    """`1 of 3 (5%)`."""
    place = min(one["stage"], len(one["stages"]) - 1)
    return f"{place + 1} of {len(one['stages'])} ({one['stages'][place]:.0%})"
