"""`edgestill release`: the publisher's keys, and what may be installed at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli import delegating, naming, republishing
from edgestill.cli.carrying import carry
from edgestill.cli.delegating import (
    Auto,
    DelegateFolder,
    HardwareClass,
    Names,
    PublicKeys,
    Role,
    Threshold,
)
from edgestill.cli.delivering import deliver, let_speak
from edgestill.cli.naming import Publics, Uris
from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, table, told
from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import NotFoundError, SettingError
from edgestill.core.extras import require
from edgestill.core.family import SUFFIX, Family
from edgestill.core.files import read_plain
from edgestill.core.proxyset import SUFFIX as PROXY_SUFFIX
from edgestill.core.proxyset import ProxySet
from edgestill.core.release import target_name
from edgestill.core.swu import Image
from edgestill.core.units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.link.operator import OperatorClient
    from edgestill.trust.delegate import Delegate
    from edgestill.trust.publisher import Publisher

app = typer.Typer(help="Publish bundles, and retire them.", no_args_is_help=True)
keys = typer.Typer(
    help="The publisher's keys, in a folder that stays with the publisher.", no_args_is_help=True
)
app.add_typer(keys, name="keys")

MAX_PASSPHRASE_BYTES: Final = 2000
MAX_ARCHIVE_BYTES: Final = 2**31
VARIABLE: Final = "EDGESTILL_PUBLISHER"

Folder = Annotated[
    Path, typer.Option("--publisher", envvar=VARIABLE, metavar="DIR", help="The publisher's folder.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        envvar="EDGESTILL_PASSPHRASE_FILE", help="Holds the keys' passphrase; default: it is asked for."
    ),
]
Open = Annotated[bool, typer.Option("--no-passphrase", help="The keys are not locked.")]
Archives = Annotated[
    list[Path],
    typer.Argument(
        metavar="BUNDLE...",
        help="NAME.esb of one version, one for each class; NAME.est, to be timed; or NAME.esp, to be voted on.",
    ),
]
NewHubKey = Annotated[
    bool, typer.Option("--new-hub-key", help="The hub's key is another than before, and that is right.")
]
_HERE: Final = Path("publisher")
_DAY: Final = 86_400.0


@keys.command("init")
def init(
    *,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    root_keys: Annotated[int, typer.Option(min=1, max=9, help="Most of them must sign the next root.")] = 1,
    root_uri: Uris = None,
    root_public: Publics = None,
    targets_uri: Uris = None,
    targets_public: Publics = None,
    as_json: AsJson = False,
) -> None:
    """Make the publisher's folder and its keys. Keep it off the hub, and keep a copy."""
    require("tuf", extra="agent", purpose="to sign what is published")
    from edgestill.trust.publisher import Publisher

    secret = None if no_passphrase else _passphrase(passphrase_file, twice=True)
    named = {"root": naming.read(root_uri, root_public), "targets": naming.read(targets_uri, targets_public)}
    made = Publisher.init(publisher, secret, root_keys=root_keys, named=named)
    _tell_keys(made, as_json=as_json)


@keys.command("list")
def list_keys(
    *,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """List the keys, and which of them count now."""
    _tell_keys(_opened(publisher, passphrase_file, is_open=no_passphrase), as_json=as_json)


@keys.command()
def rotate(
    role: Annotated[str, typer.Argument(help="root or targets.")],
    *,
    uri: Uris = None,
    public: Publics = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Replace a role's keys: the hub gets a root that says so, signed by the old ones too, and a list that both have signed."""
    named, client = naming.read(uri, public), operator(hub, token_file)
    signer = _opened(publisher, passphrase_file, is_open=no_passphrase)
    deliver(signer, client)  # what is pending would be another step of the same
    signer.rotate(role, served=client.targets(), now=SystemClock().now(), named=named)
    deliver(signer, client)
    _tell_keys(signer, as_json=as_json)


@keys.command()
def new(
    *,
    delegate: DelegateFolder = delegating.HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Make a key for a role, on the machine that shall sign with it. Its public half goes to the publisher."""
    delegating.make_key(
        delegate, lambda: None if no_passphrase else _passphrase(passphrase_file, twice=True), as_json=as_json
    )


@keys.command()
def delegate(
    hardware_class: HardwareClass,
    *,
    key: PublicKeys,
    auto: Auto = False,
    name: Names = None,
    threshold: Threshold = 1,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Let somebody else's key list bundles of a hardware class, in place of those that could until now."""
    signer, client = _opened(publisher, passphrase_file, is_open=no_passphrase), operator(hub, token_file)
    from edgestill.trust.roles import AUTO, Delegation

    one = Delegation(
        role=f"{AUTO if auto else ''}{hardware_class}",
        keys=delegating.read_keys(key),
        threshold=threshold,
        names=tuple(name or ()),
    )
    let_speak(signer, client)
    signer.sign_targets(served=client.targets(), delegate=[one], now=SystemClock().now())
    deliver(signer, client)
    said: dict[str, Any] = {
        "role": one.role,
        "paths": list(one.paths),
        "keys": [known.keyid for known in one.keys],
    }
    told(said, [f"{one.role} may list {', '.join(one.paths)}"], as_json=as_json)


@keys.command()
def undelegate(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="CLASS or auto/CLASS.")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Take a role away: nothing that it lists is installed from then on."""
    signer, client = _opened(publisher, passphrase_file, is_open=no_passphrase), operator(hub, token_file)
    signer.sign_targets(served=client.targets(), undelegate=[role], now=SystemClock().now())
    deliver(signer, client)
    told({"undelegated": role}, [f"{role} lists nothing any more"], as_json=as_json)


@keys.command()
def roles(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """List whom the publisher delegates to."""
    delegating.tell_roles(operator(hub, token_file), as_json=as_json)


@app.command()
def root(
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    new_hub_key: NewHubKey = False,
    as_json: AsJson = False,
) -> None:
    """Let a hub speak for this publisher: it gets root metadata that names its key. Devices may join from then on."""
    signer, client = _opened(publisher, passphrase_file, is_open=no_passphrase), operator(hub, token_file)
    let_speak(signer, client, may_change=new_hub_key)
    version = signer.version
    told({"version": version}, [f"the hub has {version}.root.json"], as_json=as_json)


@app.command()
def renew(
    *,
    role: Role = "",
    delegate: DelegateFolder = delegating.HERE,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Sign root and list again as they are, for as long again: devices install nothing once they have passed. With --role that role's list."""
    if role:
        other = _delegate(delegate, passphrase_file, is_open=no_passphrase)
        delegating.sign_and_deliver(operator(hub, token_file), other, role)
        told({"role": role}, [f"the list of {role} is signed again"], as_json=as_json)
        return
    signer, client = _opened(publisher, passphrase_file, is_open=no_passphrase), operator(hub, token_file)
    let_speak(signer, client)
    online, now = signer.online, SystemClock().now()
    assert online is not None
    if signer.targets is not None or client.targets() is not None:
        signer.sign_targets(served=client.targets(), now=now)
        deliver(signer, client)
    signer.check_root_keys()  # they may lie in a safe: the list is renewed all the same
    signer.sign_root(online, now=now)
    deliver(signer, client)
    _tell_keys(signer, as_json=as_json)


@app.command()
def publish(
    bundles: Archives,
    *,
    role: Role = "",
    delegate: DelegateFolder = delegating.HERE,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Hand bundles to the hub, and sign that they may be installed; with --role as one to whom the publisher delegates."""
    require("tuf", extra="agent", purpose="to sign what is published")
    from edgestill.trust.metadata import TargetInfo

    client, now = operator(hub, token_file), SystemClock().now()
    archives = _archives(bundles)
    added = {name: TargetInfo(len(archive), Digest.of(archive)) for name, archive in archives.items()}
    if role:
        other = _delegate(delegate, passphrase_file, is_open=no_passphrase)
        _upload(client, archives)
        delegating.sign_and_deliver(client, other, role, add=added)
    else:
        signer = _opened(publisher, passphrase_file, is_open=no_passphrase)
        let_speak(signer, client)
        _upload(client, archives)
        signer.sign_targets(served=client.targets(), add=added, now=now)
        deliver(signer, client)
    releases = sorted({name.rpartition("/")[0] for name in added})
    told(
        {"published": sorted(added), "releases": releases},
        (f"published {name}, {format_size(added[name].size)}" for name in sorted(added)),
        as_json=as_json,
    )


@app.command()
def republish(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="NAME.esb that the list names.")
    ] = None,
    *,
    new_hub_key: NewHubKey = False,
    without_missing: Annotated[
        bool,
        typer.Option("--without-missing", help="Retire what is listed and neither given nor at the hub."),
    ] = False,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Bring a hub that was rebuilt or restored what was published: every root, the archives that are given, and the newest list."""
    signer, client = _opened(publisher, passphrase_file, is_open=no_passphrase), operator(hub, token_file)
    archives = _archives(bundles or [])
    missing = republishing.bring(
        signer, client, archives, may_change=new_hub_key, without_missing=without_missing
    )
    said = {"republished": sorted(archives), "retired": missing}
    told(
        said,
        [*(f"republished {name}" for name in sorted(archives)), *(f"retired {name}" for name in missing)],
        as_json=as_json,
    )


@app.command()
def image(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="NAME.swu of bundles that are published.")
    ],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Hand images (`bundle export --to swu`) to the hub, for devices that are updated by SWUpdate or another client of hawkBit's."""
    client = operator(hub, token_file)
    for path in images:
        Image.read(path)
    kept = [
        client.upload_image(read_plain(path, what="the image", at_most=MAX_ARCHIVE_BYTES)) for path in images
    ]
    told(
        {"images": kept},
        (f"{path}: the hub has it" for path in images),
        as_json=as_json,
    )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="On a stick or a share; new, or filled before.")],
    *,
    device: Annotated[list[str], typer.Option(metavar="NAME", help="That it is for; may be repeated.")],
    expires: Annotated[str, typer.Option(help="How long the assignments hold, at most 30d.")] = "7d",
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Write what devices without a network need of what is assigned to them; for `edgestill-agent update --from`."""
    require("tuf", extra="agent", purpose="to verify what a hub serves")
    from edgestill.link.http import HttpTransport

    client, clock = operator(hub, token_file), SystemClock()
    carried = carry(
        folder,
        device,
        client=client,
        transport=HttpTransport(),
        hub=hub,
        expires_in=parse_duration(expires),
        clock=clock,
    )
    end = carried.good_until
    assigned = {name: one.target for name, one in carried.assigned.items()}
    told(
        {"folder": os.fspath(folder), "assigned": assigned, "good_until": end},
        [
            *(f"{name}: {target}" for name, target in sorted(assigned.items())),
            f"good for another {format_duration(end - clock.now())}",
        ],
        as_json=as_json,
    )


@app.command()
def retire(
    release: Annotated[
        str, typer.Argument(metavar="NAME/VERSION", help="That no device shall install any more.")
    ],
    *,
    role: Role = "",
    delegate: DelegateFolder = delegating.HERE,
    hub: Hub = "",
    token_file: TokenFile = None,
    publisher: Folder = _HERE,
    passphrase_file: PassphraseFile = None,
    no_passphrase: Open = False,
    as_json: AsJson = False,
) -> None:
    """Take a release off the list: nothing installs it from then on, and no hub can make a device go back to it."""
    client = operator(hub, token_file)
    if role:
        other = _delegate(delegate, passphrase_file, is_open=no_passphrase)
        gone = delegating.sign_and_deliver(client, other, role, remove=lambda newest: _of(release, newest))
    else:
        signer = _opened(publisher, passphrase_file, is_open=no_passphrase)
        served = client.targets()
        gone = _of(release, signer.newest(served))
        signer.sign_targets(served=served, remove=gone, now=SystemClock().now())
        deliver(signer, client)
    told({"retired": gone}, (f"retired {name}" for name in gone), as_json=as_json)


def _of(release: str, newest: bytes | None) -> list[str]:
    """The names of a release in a list."""
    from edgestill.trust.repository import listed_in

    found = [name for name in ({} if newest is None else listed_in(newest)) if name.startswith(f"{release}/")]
    if not found:
        raise NotFoundError(
            "no such release is listed",
            where="targets.json",
            expected="NAME/VERSION of the list",
            got=release[:80],
            fix="run: edgestill release list",
        )
    return found


@app.command("list")
def list_(*, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """List the releases, the newest first."""
    said = operator(hub, token_file).releases()
    releases: Any = said["releases"]
    rows = (
        (one["release"], "listed" if one["listed"] else "retired", ", ".join(sorted(one["bundles"])))
        for one in releases
    )
    told(said, table(("RELEASE", "STATE", "HARDWARE CLASSES"), rows), as_json=as_json)


@app.command()
def show(
    release: Annotated[str, typer.Argument(metavar="NAME/VERSION")],
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a release's bundles."""
    releases: Any = operator(hub, token_file).releases()["releases"]
    found = next((one for one in releases if one["release"] == release), None)
    if found is None:
        raise NotFoundError(
            "no such release",
            where="releases",
            expected="NAME/VERSION",
            got=release[:80],
            fix="run: edgestill release list",
        )
    rows = (
        (
            name,
            format_size(one["size"]),
            "listed" if one["listed"] else "retired",
            one.get("role") or "",
            one["digest"],
        )
        for name, one in sorted(found["bundles"].items())
    )
    told(found, table(("HARDWARE CLASS", "SIZE", "STATE", "LISTED BY", "DIGEST"), rows), as_json=as_json)


def _upload(client: OperatorClient, archives: dict[str, bytes]) -> None:
    for archive in archives.values():
        client.upload_bundle(archive)


def _archives(bundles: list[Path]) -> dict[str, bytes]:
    """Each bundle's archive under its target's name; every one is sound."""
    found: dict[str, bytes] = {}
    for path in bundles:
        if path.is_dir():
            raise SettingError(
                "an archive is published, not a folder",
                where=path,
                expected="NAME.esb",
                got="a folder",
                fix="publish the archive that it was made with",
            )
        name = _checked(path)
        if name in found:
            raise SettingError(
                "two bundles of one name, version and hardware class",
                where=path,
                expected="each once",
                got=name,
                fix="give one of them another version",
            )
        found[name] = read_plain(path, what="the bundle", at_most=MAX_ARCHIVE_BYTES)
    return found


def _checked(path: Path) -> str:
    """The name under which an archive may be listed: of a bundle, of a family of models that devices time, or of samples that they vote on."""
    if path.suffix == SUFFIX:
        family = Family.open(path)
        family.verify()
        return family.head.target
    if path.suffix == PROXY_SUFFIX:
        proxy = ProxySet.open(path)
        proxy.read()
        return proxy.head.target
    opened = Bundle.open(path)
    opened.verify()
    head = opened.manifest
    return target_name(head.name, head.version, head.hardware_class)


def _opened(folder: Path, passphrase_file: Path | None, *, is_open: bool) -> Publisher:
    require("tuf", extra="agent", purpose="to sign what is published")
    from edgestill.trust.publisher import Publisher

    if not folder.is_dir():
        raise NotFoundError(
            "no publisher's folder",
            where=folder,
            expected="a folder with keys",
            got="nothing",
            fix="make one: edgestill release keys init, or name it with --publisher",
        )
    secret = None if is_open else _passphrase(passphrase_file, twice=False)
    return Publisher(folder, secret, ask=naming.ask)


def _delegate(folder: Path, passphrase_file: Path | None, *, is_open: bool) -> Delegate:
    require("tuf", extra="agent", purpose="to sign what is published")
    from edgestill.trust.delegate import Delegate

    return Delegate(folder, None if is_open else _passphrase(passphrase_file, twice=False))


def _passphrase(path: Path | None, *, twice: bool) -> bytes:
    """Off a file, or asked for."""
    if path is not None:
        return read_plain(path, what="the passphrase", at_most=MAX_PASSPHRASE_BYTES).rstrip(b"\r\n")
    if not sys.stdin.isatty():
        raise SettingError(
            "nobody to ask for the passphrase",
            where="--passphrase-file",
            expected="a file, or a terminal",
            got="neither",
            fix="give --passphrase-file, or --no-passphrase where the keys are not locked",
        )
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice)).encode()


def _tell_keys(signer: Publisher, *, as_json: bool) -> None:
    public, counting = signer.keys(), signer.counting()
    now = {name for names in counting.values() for name in names}
    said = {
        "folder": os.fspath(signer.folder),
        "keys": {name: {"keyid": key.keyid, "counts": name in now} for name, key in public.items()},
        "expires": signer.expires(),
    }
    told(said, _key_lines(said), as_json=as_json)


def _key_lines(said: Any) -> Iterator[str]:
    yield f"{said['folder']}: keep it off the hub, and keep a copy"
    rows = (
        (name, "counts" if one["counts"] else "retired", one["keyid"]) for name, one in said["keys"].items()
    )
    yield from table(("FILE", "STATE", "KEY"), rows)
    left = {name: at - SystemClock().now() for name, at in said["expires"].items()}
    for name, seconds in left.items():
        yield f"{name} holds for another {seconds / _DAY:.0f} days"
