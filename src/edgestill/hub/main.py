"""`python -m edgestill.hub.main init|up|backup|restore`: the hub as a process, and copies of its folder.

- `up` opens everything first, then binds its port, then says that it is ready, by writing its address to a file.
- SIGTERM and SIGINT drain: polls that wait are answered, what is under way ends, and the process ends with 0.
- Secrets travel over this port. Without TLS it listens on the loopback only, unless told that a proxy stands before it.
- With TLS it asks devices for their certificates. Its own is the operator's, or with `--tls` one of the fleet's authority.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import random
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgestill.core import logs
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, PathError, SettingError
from edgestill.core.extras import require
from edgestill.core.files import read_plain, refuse_special
from edgestill.core.jsonio import canonical
from edgestill.core.listening import bound, check_port, is_loopback, url_of
from edgestill.core.units import format_size, parse_duration
from edgestill.hub.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgestill.core.jsonio import JsonObject

NEEDED: Final = ("cryptography", "sqlalchemy", "aiosqlite", "alembic", "starlette", "uvicorn", "numpy")
"""Of what the `hub` extra brings; what needs it is imported after it was looked for."""
DRAIN_SECONDS: Final = 20
MAX_TEACHER_BYTES: Final = 2**31


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 after an error told in one line. Usage errors end with 2."""
    options = _parser().parse_args(arguments)
    try:
        for module in NEEDED:
            require(module, extra="hub", purpose="to run a hub")
        logs.begin(os.environ.get("EDGESTILL_LOG", "INFO"), chatty=("alembic", "uvicorn"))
        verbs = {"init": _init, "up": _up, "backup": _backup, "restore": _restore}
        return verbs[options.verb](options)
    except EdgestillError as error:
        print(error, file=sys.stderr)  # noqa: T201  # a command line tells its failure
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill-hub", description="The hub of a fleet.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    init = verbs.add_parser("init", help="make the hub's folder; keeps what is there")
    up = verbs.add_parser("up", help="serve")
    backup = verbs.add_parser("backup", help="copy the hub's folder, also while it serves")
    restore = verbs.add_parser("restore", help="make a hub's folder of such a copy")
    backup.add_argument("folder", type=Path, metavar="FOLDER", help="gets the copy; made here")
    restore.add_argument("folder", type=Path, metavar="BACKUP", help="that edgestill hub backup has made")
    restore.add_argument("--to", type=Path, required=True, metavar="DIR", help="the hub's folder; made here")
    for one in (backup, restore):
        one.add_argument("--json", action="store_true", help="one JSON object")
    for one in (init, up, backup):
        one.add_argument("--home", type=Path, required=True, metavar="DIR", help="the hub's folder")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    up.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: %(default)s)")
    up.add_argument("--ready", type=Path, metavar="FILE", help="gets the address once the hub listens")
    up.add_argument("--teacher", type=Path, metavar="FILE", help="ONNX model that answers escalations")
    up.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="answers from features; may be repeated",
    )
    up.add_argument("--poll-interval", type=float, metavar="SECONDS", help="between two polls of a device")
    up.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM chain; needs --tls-key")
    up.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM key of the certificate")
    up.add_argument("--tls", action="store_true", help="serve with a certificate of the fleet's authority")
    up.add_argument(
        "--tls-name",
        action="append",
        default=[],
        metavar="HOST",
        help="by which devices reach the hub, for --tls; may be repeated (default: the --host)",
    )
    up.add_argument("--behind-proxy", action="store_true", help="a proxy before this port speaks TLS")
    up.add_argument(
        "--public-url",
        default="",
        metavar="URL",
        help="by which devices reach the hub: what links for hawkBit's clients begin with",
    )
    up.add_argument(
        "--certificate-lifetime", metavar="DURATION", help="of devices' certificates (default: 7 d)"
    )
    up.add_argument(
        "--require-certificates",
        action="store_true",
        help="devices must show a certificate; a credential alone only renews one. Shuts out SWUpdate, and devices that joined without",
    )
    return parser


def _init(options: argparse.Namespace) -> int:
    from edgestill.hub.home import Home

    home = Home.init(options.home)
    print(canonical({"online_key": home.key.public.as_json()}).decode())  # noqa: T201  # the verb's answer
    return 0


def _backup(options: argparse.Namespace) -> int:
    from edgestill.hub.backup import back_up

    made = back_up(options.home, options.folder, clock=SystemClock())
    said: JsonObject = {
        "folder": os.fspath(options.folder),
        "files": len(made.files),
        "size": made.size,
        "fleet": made.fleet,
    }
    lines = [f"{options.folder}: {len(made.files)} files, {format_size(made.size)}, read back"]
    return _told(
        said, [*lines, "it holds the key of the fleet's authority: keep it as safe as the hub"], options
    )


def _restore(options: argparse.Namespace) -> int:
    from edgestill.hub.backup import restore

    home = restore(options.folder, options.to)
    said: JsonObject = {"home": os.fspath(options.to), "online_key": home.key.public.as_json()}
    steps = (
        f"{options.to}: restored, with a new key and a new operator.token",
        f"next: edgestill hub up --home {options.to} ..., as before",
        "then, on the publisher's machine: edgestill release root --new-hub-key; devices follow from there on",
        "what was published after the backup: edgestill release republish BUNDLE...",
    )
    return _told(said, steps, options)


def _told(said: JsonObject, lines: Iterable[str], options: argparse.Namespace) -> int:
    print(canonical(said).decode() if options.json else "\n".join(lines))  # noqa: T201  # the verb's answer
    return 0


def _up(options: argparse.Namespace) -> int:
    from edgestill.hub.home import Home

    _check_exposure(options)
    check_port(options.port)
    if options.ready is not None:
        _check_writable(options.ready)
    settings = _settings(options)
    with Home.init(options.home).locked():
        _serve(options, settings)
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        "require_certificates": options.require_certificates,
        "public_url": options.public_url,
        "behind_proxy": options.behind_proxy,
    }
    if options.poll_interval is not None:
        given["poll_interval"] = options.poll_interval
    if options.certificate_lifetime is not None:
        given["certificate_lifetime"] = parse_duration(options.certificate_lifetime)
    return Settings(**given)


def _serve(options: argparse.Namespace, settings: Settings) -> None:
    import uvicorn

    from edgestill.hub.app import create_app
    from edgestill.hub.server import Server
    from edgestill.hub.service import Hub
    from edgestill.hub.tls import OwnCertificate, TlsHttp, context_of, load_given

    clock = SystemClock()
    hub = Hub.open(
        options.home,
        clock=clock,
        chance=random.random,  # noqa: S311  # it spreads polls; nothing is guarded by it
        secret=lambda: secrets.token_urlsafe(32),
        settings=settings,
        teacher=None if options.teacher is None else _read(options.teacher, "the teacher"),
        adapters={str(path): _read(path, "an adapter") for path in options.adapter},
    )
    context, own = (context_of(hub.home) if _speaks_tls(options) else None), None
    if context is not None and options.tls_certificate is not None:
        load_given(context, options.tls_certificate, options.tls_key)
    elif context is not None:
        own = OwnCertificate(hub.home, context, options.tls_name or [options.host], clock)
        own.renew_if_due()
    with bound(options.host, options.port) as listener:
        config = uvicorn.Config(
            create_app(hub),
            http="auto" if context is None else TlsHttp,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        config.load()
        config.ssl = context
        host = options.tls_name[0] if options.tls_name else options.host
        url = url_of(host, listener, tls=context is not None)
        server = Server(config, hub, url=url, ready=options.ready, own=own, context=context)
        asyncio.run(server.serve([listener]))


def _speaks_tls(options: argparse.Namespace) -> bool:
    return bool(options.tls) or options.tls_certificate is not None


def _check_exposure(options: argparse.Namespace) -> None:
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise SettingError(
            "half of what TLS needs",
            where="--tls-certificate" if options.tls_key is None else "--tls-key",
            expected="--tls-certificate and --tls-key, or neither",
            fix="give the other one too",
            got="one of them",
        )
    _check_certificates(options)
    if not _speaks_tls(options) and not options.behind_proxy and not is_loopback(options.host):
        raise SettingError(
            "secrets would travel in the clear",
            where=f"--host {options.host}",
            expected="a loopback address, or TLS",
            fix="give --tls, or --tls-certificate and --tls-key, or --behind-proxy where a proxy speaks TLS",
            got="another address, without TLS",
        )


def _check_certificates(options: argparse.Namespace) -> None:
    """Refuses what nobody can mean: two certificates, names for none, and certificates where none can be shown."""
    if options.tls and options.tls_certificate is not None:
        raise SettingError(
            "two certificates for one hub",
            where="--tls",
            expected="--tls, or --tls-certificate and --tls-key",
            got="both",
            fix="leave one out",
        )
    if options.tls_name and not options.tls:
        raise SettingError(
            "names without a certificate that could hold them",
            where="--tls-name",
            expected="--tls as well",
            got="no --tls",
            fix="give --tls, or leave the names out",
        )
    if options.tls and not options.tls_name and _is_any(options.host):
        raise SettingError(
            "a certificate needs the names by which the hub is reached",
            where=f"--host {options.host}",
            expected="--tls-name HOST",
            got="an address that stands for all",
            fix="name the host as devices write it in the hub's address",
        )
    if options.require_certificates and (options.behind_proxy or not _speaks_tls(options)):
        raise SettingError(
            "no device could show a certificate",
            where="--require-certificates",
            expected="TLS up to this port: --tls, or --tls-certificate and --tls-key",
            got="--behind-proxy" if options.behind_proxy else "no TLS",
            fix="let devices reach the hub itself, or leave it out",
        )


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_writable(path: Path) -> None:
    """Tries to write beside the file: what is found now need not be found once everything runs."""
    try:
        refuse_special(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PathError(
            "cannot say that the hub is ready",
            where=f"--ready {path}",
            expected="a file in a folder that can be written",
            got=error.strerror or error,
            fix="choose another path",
        ) from error


def _read(path: Path, what: str) -> bytes:
    return read_plain(path, what=what, at_most=MAX_TEACHER_BYTES)


if __name__ == "__main__":
    sys.exit(main())
