"""`edgestill learn`: what devices learned, and one head from all of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, table, told
from edgestill.core.bundle import PUBLIC, Bundle, replace
from edgestill.core.errors import MessageError, NotFoundError, SettingError
from edgestill.core.extras import require
from edgestill.core.manifest import POLICY, REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.statistics import Head, Statistics
    from edgestill.link.operator import OperatorClient

_SHOWN: Final = 19

app = typer.Typer(help="Learn from what devices have learned.", no_args_is_help=True)


@app.command()
def status(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show which sums the hub has, of how many devices, and what it refused."""
    said = operator(hub, token_file).evidence()
    told(said, _lines(said), as_json=as_json)


@app.command()
def solve(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose devices sent the sums.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the head goes: an .npz file.")],
    robust: Annotated[bool, typer.Option("--robust", help="Let no single device decide.")] = False,
    within: Annotated[
        float | None,
        typer.Option(
            help="With --robust: how far the scores may move from the bundle's own, root mean square."
        ),
    ] = None,
    ridge: Annotated[float, typer.Option(help="As a share of the mean square of a feature.")] = 1e-3,
    prior: Annotated[
        float | None,
        typer.Option(
            help="What the bundle's own statistics count for: 0 for nothing; with --robust 1 by default."
        ),
    ] = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Solve the head of all devices' sums."""
    require("numpy", extra="device", purpose="to solve a head")
    from edgestill.learn.together import head_file

    if within is not None and not robust:
        raise SettingError(
            "a radius without --robust", where="--within", expected="--robust", got=within, fix="add --robust"
        )
    reference, kept = _read(bundle)
    client = operator(hub, token_file)
    if robust:
        head, said = _robust(client, reference, kept, within=within, ridge=ridge, prior=prior)
    else:
        head, said = _plain(client, reference, kept, ridge=ridge, prior=prior)
    replace(output, head_file(head), mode=PUBLIC)
    said |= {"file": str(output)}
    told(said, [f"{name}: {value}" for name, value in said.items() if name != "weights"], as_json=as_json)


def _read(path: Path) -> tuple[Statistics, int]:
    """The bundle's own statistics, and in how many of their coordinates its devices send."""
    from edgestill.infer.policy import Policy
    from edgestill.learn.statistics import Statistics

    opened = Bundle.open(path)
    if REFERENCE not in opened.manifest.blobs:
        raise NotFoundError(
            "a bundle that nothing is learned beside",
            where=path,
            expected=f"a blob {REFERENCE}",
            got="none",
            fix="build the bundle from a model with features",
        )
    policy = Policy.from_bytes(opened.read(POLICY))
    return Statistics.from_bytes(opened.read(REFERENCE)), policy.statistics.kept


def _plain(
    client: OperatorClient, reference: Statistics, kept: int, *, ridge: float, prior: float | None
) -> tuple[Head, JsonObject]:
    from edgestill.learn.robust import with_prior
    from edgestill.learn.together import gathered, head_of

    total = gathered(reference, kept, client.statistics)
    both = with_prior(total, reference, prior) if prior else total
    return head_of(both, ridge=ridge), {"samples": total.n, "window": total.window}


def _robust(
    client: OperatorClient,
    reference: Statistics,
    kept: int,
    *,
    within: float | None,
    ridge: float,
    prior: float | None,
) -> tuple[Head, JsonObject]:
    """The weighed sum is made by the hub, which has every device's; what is believed goes there."""
    from edgestill.learn import robust
    from edgestill.learn.statistics import Statistics
    from edgestill.learn.together import head_of, in_coordinates, lifted

    rule = robust.Rule(ridge=ridge) if prior is None else robust.Rule(ridge=ridge, prior=prior)
    believed = in_coordinates(reference, kept)
    said = client.agreed_statistics(believed.to_bytes("float64"), ridge=rule.ridge, prior=rule.prior)
    total = lifted(
        Statistics.from_bytes(_decoded(said.pop("statistics", None)), backbone=believed.backbone),
        reference,
        kept,
    )
    both = robust.with_prior(total, reference, rule.prior)
    head = (
        head_of(both, ridge=ridge) if within is None else robust.within(both, reference, within, ridge=ridge)
    )
    said |= {
        "samples": total.n,
        "window": total.window,
        "moved": robust.distance(head, reference, ridge=ridge),
    }
    return head, said


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except ValueError as error:
        raise MessageError(
            "an answer without a sum", where="statistics", expected="base64", got=str(text)[:40]
        ) from error


def _lines(said: Any) -> Iterator[str]:
    sums, refused = said["statistics"], said.get("refused", {})
    head = ("BACKBONE", "DEVICES", "MESSAGES", "SAMPLES", "CLASSES", "FEATURES", "OF ANOTHER KIND")
    names = ("devices", "messages", "n", "classes", "features", "apart")
    yield from table(
        head, ((backbone[:_SHOWN], *(one[name] for name in names)) for backbone, one in sorted(sums.items()))
    )
    yield f"samples kept: {said['samples']['total']}"
    for reason, one in sorted(refused.items()):
        most = ", ".join(f"{device} {number}" for device, number in one["most"].items())
        yield f"not taken: {reason}: {one['messages']} messages of {one['devices']} devices ({most})"
