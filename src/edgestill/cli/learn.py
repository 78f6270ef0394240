"""`edgestill learn`: what devices learned, and one head from all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli import voting
from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, table, told
from edgestill.cli.rounding import round_
from edgestill.cli.solving import Prior, Ridge, Solving, Within
from edgestill.core.bundle import PUBLIC, Bundle, replace
from edgestill.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN: Final = 19

app = typer.Typer(help="Learn from what devices have learned.", no_args_is_help=True)
app.command("round")(round_)
app.add_typer(voting.app, name="vote")


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
    within: Within = None,
    ridge: Ridge = 1e-3,
    prior: Prior = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Solve the head of all devices' sums."""
    require("numpy", extra="device", purpose="to solve a head")
    from edgestill.learn.together import head_file

    solving = Solving(robust=robust, within=within, ridge=ridge, prior=prior)
    head, _, said = solving.head(operator(hub, token_file), Bundle.open(bundle))
    replace(output, head_file(head), mode=PUBLIC)
    said |= {"file": str(output)}
    told(said, [f"{name}: {value}" for name, value in said.items() if name != "weights"], as_json=as_json)


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
