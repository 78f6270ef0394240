"""The verbs of `edgestill release` for lists of other people: whom a publisher delegates to, and what they list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.operating import table, told
from edgestill.core.clock import SystemClock
from edgestill.core.errors import NotFoundError, TrustError
from edgestill.core.extras import require
from edgestill.core.files import read_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from edgestill.link.operator import OperatorClient
    from edgestill.trust.delegate import Delegate
    from edgestill.trust.keys import PublicKey
    from edgestill.trust.metadata import TargetInfo

HERE: Final = Path("delegate")

DelegateFolder = Annotated[
    Path, typer.Option("--delegate", envvar="EDGESTILL_DELEGATE", metavar="DIR", help="A delegate's folder.")
]
Role = Annotated[
    str, typer.Option(metavar="ROLE", help="That the publisher has delegated: CLASS or auto/CLASS.")
]
HardwareClass = Annotated[str, typer.Argument(metavar="CLASS", help="Hardware class of the bundles.")]
PublicKeys = Annotated[
    list[Path], typer.Option("--key", metavar="PUBLIC.pem", help="Public half of a key; repeatable.")
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name", help="Of bundles that the role may list, repeatable; default: any, with --auto none."
    ),
]
Auto = Annotated[
    bool, typer.Option("--auto", help="For unattended updates, on devices that have opted in only.")
]
Threshold = Annotated[int, typer.Option(min=1, max=9, help="How many of the keys must sign.")]


def make_key(folder: Path, secret: Callable[[], bytes | None], *, as_json: bool) -> None:
    """Makes a delegate's folder, and says which half of its key goes to the publisher."""
    require("tuf", extra="agent", purpose="to sign what is published")
    from edgestill.trust.delegate import Delegate

    made = Delegate.init(folder, secret())
    ((name, key),) = made.keys().items()
    public = made.folder / f"{name.removesuffix('.pem')}.pub.pem"
    said = {"folder": os.fspath(folder), "public": os.fspath(public), "keyid": key.keyid}
    lines = (f"{folder}: stays on this machine", f"{public}: hand this to the publisher; key {key.keyid}")
    told(said, lines, as_json=as_json)


def read_keys(paths: Iterable[Path]) -> tuple[PublicKey, ...]:
    """The public keys in these files."""
    from edgestill.trust.keys import MAX_PEM_BYTES, PublicKey

    return tuple(
        PublicKey.from_pem(read_plain(path, what="the public key", at_most=MAX_PEM_BYTES)) for path in paths
    )


def tell_roles(client: OperatorClient, *, as_json: bool) -> None:
    """Whom the publisher of a hub delegates to."""
    said = client.roles()
    roles: Any = said["roles"]
    rows = (
        (
            one["role"],
            "none" if one["listed"] is None else f"{one['version']}, of {len(one['listed'])} bundles",
            f"{one['threshold']} of {', '.join(keyid[:16] for keyid in one['keys'])}",
            ", ".join(one["paths"]),
        )
        for one in roles
    )
    told(said, table(("ROLE", "LIST", "KEYS", "MAY LIST"), rows), as_json=as_json)


def sign_and_deliver(
    client: OperatorClient,
    signer: Delegate,
    role: str,
    *,
    add: Mapping[str, TargetInfo] | None = None,
    remove: Callable[[bytes | None], list[str]] | None = None,
) -> list[str]:
    """Signs a role's next list and hands it over.

    Args:
        client: of the hub.
        signer: whose key the publisher has named.
        role: of the list.
        add: target name -> size and digest; their archives are at the hub.
        remove: the names to retire, given the list until now.

    Returns:
        What was retired.

    Raises:
        NotFoundError: the publisher delegates nothing to this role.
        TrustError: none of the keys here counts for it, or a name is not its to list: what is refused anyway is not signed.
    """
    from edgestill.trust.roles import may_list

    roles: Any = client.roles()["roles"]
    found = next((one for one in roles if one["role"] == role), None)
    if found is None:
        raise NotFoundError(
            "the publisher delegates nothing to this role",
            where="roles",
            expected=", ".join(one["role"] for one in roles) or "a role",
            got=role[:80],
            fix="hand the public half of your key to the publisher: edgestill release keys delegate",
        )
    here = {key.keyid for key in signer.keys().values()}
    if not here & set(found["keys"]):
        raise TrustError(
            "the publisher has named other keys for this role",
            where=role,
            expected=", ".join(str(keyid)[:16] for keyid in found["keys"]),
            got=", ".join(keyid[:16] for keyid in sorted(here)),
            fix="hand the public half of your key to the publisher: edgestill release keys delegate",
        )
    for name in add or {}:
        if not may_list(found["paths"], name):
            raise TrustError(
                "a name that this role may not list",
                where=role,
                expected=", ".join(found["paths"]),
                got=name,
                fix="publish it under another role, or ask the publisher",
            )
    served = client.role_list(role)
    gone = [] if remove is None else remove(signer.newest(role, served))
    now, said = SystemClock().now(), int(found["version"])
    client.upload_role(role, signer.sign(role, served=served, said=said, add=add, remove=gone, now=now))
    return gone
