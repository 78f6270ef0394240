"""`edgestill bundle`: make one of a finished model, look into it, check it, make and apply patches, hand it to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from edgestill.cli.build import build
from edgestill.cli.export import export
from edgestill.cli.terminal import plain
from edgestill.core.bundle import PUBLIC, Bundle, replace
from edgestill.core.digest import Digest
from edgestill.core.errors import within
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.units import format_size

MAX_NEW_BYTES: Final = 2**30
"""Of what a patch may yield: nobody signed the size it names."""

app = typer.Typer(help="Build, inspect, verify, diff, patch and export bundles.", no_args_is_help=True)

Esb = Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")]
app.command()(build)
app.command()(export)

Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def inspect(bundle: Esb, *, as_json: Json = False) -> None:
    """Show what a bundle is made of."""
    opened = Bundle.open(bundle)
    head = opened.manifest
    card = opened.read("card.md").decode(errors="replace")
    if as_json:
        typer.echo(json.dumps({"digest": str(head.digest)} | json.loads(head.to_bytes()) | {"card": card}))
        return
    typer.echo(f"{head.name} {head.version} for {head.hardware_class}, {format_size(head.size)}")
    typer.echo(str(head.digest))
    for name, ref in head.blobs.items():
        typer.echo(f"  {name:<16} {format_size(ref.size):>8}  {ref.digest}")
    typer.echo("\n" + plain(card))


@app.command()
def verify(bundle: Esb, *, as_json: Json = False) -> None:
    """Check every byte of a bundle against its manifest."""
    opened = Bundle.open(bundle)
    opened.verify()
    said = {"digest": str(opened.manifest.digest), "blobs": len(opened.manifest.blobs), "verified": True}
    typer.echo(json.dumps(said) if as_json else f"every byte is as the manifest says: {said['digest']}")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="The bundle a device has (.esb).")],
    new: Annotated[Path, typer.Argument(help="The bundle it shall get (.esb).")],
    patch: Annotated[Path, typer.Argument(help="Where the patch goes.")],
) -> None:
    """Make the patch from one bundle to another; both are checked first."""
    require("zstandard", extra="agent", purpose="to make patches")
    from edgestill.delta.codec import diff as make

    for one in (old, new):
        Bundle.open(one).verify()
    target = _read(new, "the new bundle")
    made = make(_read(old, "the old bundle"), target)
    replace(patch, made, mode=PUBLIC)
    typer.echo(f"{format_size(len(made))}, {len(made) / max(1, len(target)):.1%} of the new file")


@app.command()
def apply(
    old: Annotated[Path, typer.Argument(help="The bundle a device has (.esb).")],
    patch: Annotated[Path, typer.Argument(help="The patch.")],
    new: Annotated[Path, typer.Argument(help="Where the new bundle goes.")],
) -> None:
    """Apply a patch; the result is checked before it gets its name."""
    require("zstandard", extra="agent", purpose="to apply patches")
    import io

    from edgestill.delta.codec import Header
    from edgestill.delta.codec import apply as make

    given, out = io.BytesIO(_read(patch, "the patch")), io.BytesIO()
    base = io.BytesIO(_read(old, "the old bundle"))
    with within(f"{patch}, applied to {old}"):
        head = Header.read(given)
        given.seek(0)
        make(base, given, out, expected=head.new, max_size=MAX_NEW_BYTES)
    replace(new, out.getvalue(), mode=PUBLIC)
    typer.echo(str(Digest.of(out.getvalue())))


def _read(path: Path, what: str) -> bytes:
    return read_plain(path, what=what, at_most=MAX_NEW_BYTES)
