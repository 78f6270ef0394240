"""`edgestill timing`: let devices time a family of models in idle hours, and fetch what a search needs of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, label_of, operator, table, told
from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import SettingError
from edgestill.core.release import TIMING

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="Let devices time models in idle hours, for a search.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the timing job.")]


@app.command()
def start(
    target: Annotated[
        str, typer.Argument(metavar="timing/NAME/VERSION/CLASS.est", help="That the publisher lists.")
    ],
    *,
    devices: Annotated[int, typer.Option(min=1, max=1000, help="How many, at most.")] = 3,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only devices that carry it.")
    ] = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a family of models to devices of its class, those that called last first."""
    if re.fullmatch(TIMING, target) is None:
        raise SettingError(
            "not a name of a family of models",
            where="TARGET",
            expected="timing/NAME/1.2.3/CLASS.est",
            got=target[:200],
            fix="name it as edgestill release publish has told it",
        )
    said = operator(hub, token_file).start_timing(
        target, devices=devices, labels=dict(label_of(one) for one in label or ())
    )
    chosen: Any = said["devices"]
    line = f"timing job {said['id']} is given to {', '.join(chosen)}; edgestill timing status {said['id']}"
    told(said, [line], as_json=as_json)


@app.command()
def status(
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Default: the newest ones.")] = "",  # noqa: A002  # the wire's own word
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest timing jobs, or one with its devices."""
    client = operator(hub, token_file)
    said = client.timing(id) if id else client.timings()
    told(said, _lines(said) if id else _rows(said), as_json=as_json)


@app.command()
def cancel(id: Id, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """End one; its devices throw away what they have of it."""
    said = operator(hub, token_file).cancel_timing(id)
    told(said, [f"timing job {said['id']} of {said['target']} is {said['state']}"], as_json=as_json)


@app.command()
def fetch(
    id: Id,  # noqa: A002
    *,
    out: Annotated[Path, typer.Option(help="File for the latencies.")] = Path("profile.json"),
    device: Annotated[str, typer.Option(help="Of this device alone; default the median over all.")] = "",
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Write what its devices measured, for `edgestill search --profile`."""
    data = operator(hub, token_file).profile(id, device=device or None)
    profile: Any = json.loads(data)
    write_whole(out, data, mode=PUBLIC)
    about = profile["timing"] | {
        "hardware_class": profile["hardware_class"],
        "models": len(profile["models"]),
    }
    told(about | {"file": str(out)}, _told(about, out), as_json=as_json)


def _told(about: Any, out: Path) -> Iterator[str]:
    names = ", ".join(about["devices"])
    yield f"{out}: {about['models']} models on {about['hardware_class']}, measured by {names}"
    if "apart" in about:
        most, middle = about["apart"]["most"], about["apart"]["median"]
        yield f"medians over the devices; of a model, the slowest took {middle:.2f} times as long as the fastest (median), {most:.2f} times at most"
    if about["left_out"]:
        yield f"left out, because not all of them timed it: {', '.join(f'{at}.onnx' for at in about['left_out'])}"


def _rows(said: Any) -> Iterator[str]:
    rows = (
        (
            one["id"],
            one["target"],
            one["state"],
            ", ".join(f"{count} {state}" for state, count in sorted(one["devices"].items())),
            one["reason"],
        )
        for one in said["timings"]
    )
    yield from table(("ID", "TARGET", "STATE", "DEVICES", "WHY"), rows)


def _lines(said: Any) -> Iterator[str]:
    yield f"{said['target']}: {said['state']}"
    if said["reason"]:
        yield f"why: {said['reason']}"
    rows = (
        (name, one["state"], one["models"] or "", one["reason"])
        for name, one in sorted(said["devices"].items())
    )
    yield from table(("DEVICE", "STATE", "MODELS", "WHY"), rows)
