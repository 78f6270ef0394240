"""`edgestill fleet`: which devices there are, and what they say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, label_of, operator, table, told
from edgestill.core.clock import SystemClock
from edgestill.core.errors import DeadlineError, NotFoundError, UnreachableError
from edgestill.core.units import format_duration
from edgestill.core.wire import Enrol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.wire import Enrolled
    from edgestill.link.control import ControlClient

ENROL_SECONDS: Final = 300.0
"""For which the join token holds that is used at once, all tries included."""
ENROL_TRIES: Final = 3

app = typer.Typer(help="Look at the fleet.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Of the device.")]


@app.command("list")
def list_(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """List the devices: what each runs, what it shall run, and when it was last heard."""
    said = operator(hub, token_file).fleet()
    devices: Any = said["devices"]
    now = SystemClock().now()
    rows = (
        (one["device"], one["class"], one["release"], one["state"], _ago(one["last_seen"], now), _labels(one))
        for one in devices
    )
    told(said, table(("DEVICE", "CLASS", "RELEASE", "STATE", "SEEN", "LABELS"), rows), as_json=as_json)


@app.command()
def show(device: Name, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show one device, with its figures."""
    devices: Any = operator(hub, token_file).fleet()["devices"]
    found = next((one for one in devices if one["device"] == device), None)
    if found is None:
        raise NotFoundError(
            "no such device",
            where="fleet",
            expected="a device that has enrolled",
            got=device[:80],
            fix="run: edgestill fleet list",
        )
    told(found, _lines(found), as_json=as_json)


@app.command()
def add(
    device: Name,
    *,
    hardware_class: Annotated[str, typer.Option(help="The device's, as bundles name it.")],
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For cohorts; may be repeated.")
    ] = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a device in that cannot enrol by itself, such as one with SWUpdate; prints its token, this once."""
    client = operator(hub, token_file)
    from edgestill.link.control import ControlClient
    from edgestill.link.http import HttpTransport

    message = Enrol(
        join_token=client.join_token(uses=1, expires_in=ENROL_SECONDS),
        device=device,
        hardware_class=hardware_class,
        labels=dict(label_of(one) for one in label or ()),
    )
    enrolled = _enrolled(ControlClient(HttpTransport(), hub), message)
    told({"device": enrolled.device, "token": enrolled.credential}, [enrolled.credential], as_json=as_json)


@app.command()
def revoke(device: Name, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Take a device's credential back, for ever."""
    said = operator(hub, token_file).revoke(device)
    told(said, [f"{said['device']} may not come back"], as_json=as_json)


def _enrolled(control: ControlClient, message: Enrol) -> Enrolled:
    """Asks again by the same join token where an answer is lost: with another, the name would be taken already."""
    for _ in range(ENROL_TRIES - 1):
        try:
            return control.enrol(message)
        except (UnreachableError, DeadlineError):
            continue
    return control.enrol(message)


def _lines(one: Any) -> Iterator[str]:
    for name in ("device", "class", "release", "assigned", "state", "reason"):
        yield f"{name}: {one[name] or '-'}"
    for name, value in sorted(one["attributes"].items()):
        yield f"{name} (as it says): {value}"
    yield f"labels: {_labels(one) or '-'}"
    now = SystemClock().now()
    yield f"last seen: {_ago(one['last_seen'], now)}; enrolled: {_ago(one['enrolled_at'], now)}"
    yield f"certificate: {_end(one.get('certified_until'), now)}"
    if one["revoked_at"]:
        yield f"revoked: {_ago(one['revoked_at'], now)}"
    for name, value in sorted((one["health"] or {}).items()):
        yield f"{name}: {value:g}" if isinstance(value, int | float) else f"{name}: {value}"


def _labels(one: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(one["labels"].items()))


def _end(until: float | None, now: float) -> str:
    """When a certificate ends, or has ended."""
    if until is None:
        return "-"
    return f"ends in {format_duration(until - now)}" if until > now else f"ended {_ago(until, now)}"


def _ago(then: float | None, now: float) -> str:
    """Empty for never."""
    if then is None:
        return ""
    return "now" if now - then < 1 else f"{format_duration(now - then)} ago"
