"""`edgestill-agent`: join a fleet, run a device, ask where it stands.

    edgestill-agent join --home DIR --hub URL --token T --name N [--label k=v]... [--leaves nothing|features|raw] [--accept-auto] [--bytes-per-day SIZE]
    edgestill-agent rejoin --home DIR --hub URL --token T
    edgestill-agent run --home DIR [--ready FILE] [--health-every 15s] [--health-window 30s] [--idle-after 60s] [--idle-load 50%]
    edgestill-agent update --home DIR --from FOLDER [--health-window 30s] [--json]
    edgestill-agent status --home DIR [--json]
    edgestill-agent settings --home DIR [--accept-auto | --no-accept-auto] [--bytes-per-day SIZE|unlimited] [--keep-samples SIZE|none] [--seal-samples FILE|no] [--train EFFORT|never]
    edgestill-agent neighbours --home DIR [--add NAME=URL [--model M] ...] [--remove NAME] [--hedge-after DURATION]
    edgestill-agent mirrors --home DIR [--add URL] [--remove URL]
    edgestill-agent serve --home DIR [--host 127.0.0.1] [--port 8000] [--name NAME] [--token-file FILE] [--archives] [--ready FILE]

Exit status: 0; 1 with one line on standard error that says what is wrong and what to do; 2 for wrong usage. Arguments
are read by argparse: this program must start on a device that has no more than the `agent` extra. Where not even that is
there, it says which line installs it: everything that needs it is imported after that was looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core import logs
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError, PathError, SettingError
from edgestill.core.extras import look_for, require
from edgestill.core.hardware import ENGINES
from edgestill.core.units import format_size, parse_duration, parse_share, parse_size
from edgestill.device.privacy import LEVELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.device.home import Home

NEEDED: Final = ("tuf", "securesystemslib", "cryptography", "zstandard", "urllib3")
"""What the `agent` extra brings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        for package in NEEDED:  # which are not loaded by that: an agent that runs need not hold all of them
            look_for(package, extra="agent", purpose="to keep a device up to date")
        _VERBS[options.verb](options)
    except EdgestillError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"{PathError('the system refused', where=error.filename, got=error.strerror, expected='a system with room and rights', fix='check its owner, and the room on the disk')}\n"
        )
        return 1
    return 0


def _join(options: argparse.Namespace) -> None:
    from edgestill.device.home import Settings
    from edgestill.device.life import join

    settings = Settings(leaves=options.leaves, labels=_labels(options.label), accept_auto=options.accept_auto)
    home = join(
        options.home,
        hub=options.hub,
        token=options.token,
        name=options.name,
        settings=settings,
        engine=options.engine,
    )
    sys.stdout.write(f"{home.identity.device} belongs to {home.identity.hub}\n")


def _rejoin(options: argparse.Namespace) -> None:
    from edgestill.device.life import rejoin

    home = rejoin(options.home, hub=options.hub, token=options.token)
    sys.stdout.write(f"{home.identity.device} belongs to {home.identity.hub}, with what it had\n")


def _run(options: argparse.Namespace) -> None:
    from edgestill.device.home import Home
    from edgestill.device.life import run
    from edgestill.device.machine import Rules
    from edgestill.device.papers import hub_transport
    from edgestill.device.quiet import Patience
    from edgestill.device.supervisor import Pace

    logs.begin(os.environ.get("EDGESTILL_LOG", "INFO"))
    home = Home.open(options.home)
    window = parse_duration(options.health_window)
    every = parse_duration(options.health_every)
    if every <= 0:
        raise SettingError(
            "an interval must be positive",
            where="--health-every",
            got=options.health_every,
            expected="more than 0 s",
            fix="write a duration such as 30s",
        )
    pace = Pace(poll=home.identity.interval, health=every, watch=max(window / 4, 0.1))
    transport = hub_transport(home, SystemClock())
    rules = Rules(window=window, accept_auto=home.settings.accept_auto)
    patience = Patience(parse_duration(options.idle_after), parse_share(options.idle_load))
    run(home, pace=pace, rules=rules, transport=transport, ready=options.ready, patience=patience)


def _update(options: argparse.Namespace) -> None:
    from edgestill.device.home import Home
    from edgestill.device.life import update
    from edgestill.device.machine import Rules
    from edgestill.device.supervisor import Pace

    logs.begin(os.environ.get("EDGESTILL_LOG", "WARNING"))
    home, window = Home.open(options.home), parse_duration(options.health_window)
    if not options.source.is_dir():
        raise PathError(
            "no folder to update from",
            where=options.source,
            expected="what edgestill release export has made",
            got="a file" if options.source.exists() else "nothing",
            fix="is the stick mounted there?",
        )
    pace = Pace(poll=0.1, health=max(window, 0.1), watch=max(window / 4, 0.1))
    rules = Rules(window=window, accept_auto=home.settings.accept_auto)
    target = update(home, options.source, pace=pace, rules=rules)
    release = None if target is None else target.release
    if options.json:
        sys.stdout.write(json.dumps({"device": home.identity.device, "release": release}) + "\n")
    else:
        said = "nothing is assigned" if release is None else f"serves {release}"
        sys.stdout.write(f"{home.identity.device}: {said}\n")


def _status(options: argparse.Namespace) -> None:
    from edgestill.device.status import read_status

    status = read_status(options.home)
    if options.json:
        sys.stdout.write(json.dumps(status, indent=2, sort_keys=True) + "\n")
        return
    for name, value in status.items():
        shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        sys.stdout.write(f"{name:15} {shown}\n")


def _settings(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from edgestill.device.effort import Effort
    from edgestill.device.home import Home

    home = Home.open(options.home)
    settings = home.settings
    if options.accept_auto is not None:
        settings = replace(settings, accept_auto=options.accept_auto)
    if options.bytes_per_day is not None:
        settings = replace(settings, bytes_per_day=_bytes_per_day(options.bytes_per_day))
    if options.keep_samples is not None:
        kept = 0 if options.keep_samples == "none" else parse_size(options.keep_samples)
        settings = replace(settings, keeps=kept)
        if not kept:
            _forget(home)
    if options.seal_samples is not None:
        seal, anew_on = _sealed(home, options.seal_samples)
        settings = replace(settings, seal=seal, seal_anew_on=anew_on)
    if options.train is not None:
        settings = replace(settings, effort=None if options.train == "never" else Effort.parse(options.train))
    if settings != home.settings:
        home = home.chosen(settings)
    if home.settings.seal is not None:
        _erase_plain(home)
    budget = settings.bytes_per_day
    for name, value in (
        ("leaves", settings.leaves),
        ("labels", json.dumps(settings.labels, sort_keys=True)),
        ("accept_auto", json.dumps(settings.accept_auto)),
        ("bytes_per_day", "unlimited" if budget is None else format_size(budget)),
        ("keeps", format_size(settings.keeps) if settings.keeps else "no samples"),
        ("sealed", _seal_told(home)),
        ("train", "never" if settings.effort is None else json.dumps(settings.effort.as_json())),
    ):
        sys.stdout.write(f"{name:15} {value}\n")


def _sealed(home: Home, given: str) -> tuple[Path | None, Path | None]:
    """The key that is chosen, made where there is none, and where it is made anew (`Settings`); None where samples shall be plain."""
    from edgestill.device.samplekey import make_key, memory_of, read_key

    if given == "no":
        return None, None
    path = Path(given).absolute()
    if path == home.samples.absolute():
        raise SettingError(
            "samples cannot hold their own key",
            where="--seal-samples",
            expected="another file",
            got=path,
            fix="choose a place that the samples are not on",
        )
    is_made = make_key(path)
    read_key(path)
    if is_made:
        return path, memory_of(path.parent)
    return path, home.settings.seal_anew_on if path == home.settings.seal else None


def _seal_told(home: Home) -> str:
    from edgestill.device.samplekey import place_of

    path = home.settings.seal
    if path is None:
        return "no"
    anew = "" if home.settings.seal_anew_on is None else ", made anew when it is missing"
    return f"by {path}, {place_of(path, home.samples)}{anew}"


def _forget(home: Home) -> None:
    """Forgets the samples, and says so where they could not be overwritten."""
    from edgestill.device.samplekey import erase

    if not erase(home.samples):
        home.samples.unlink(missing_ok=True)
        sys.stderr.write(
            "the agent runs: what was kept is removed and not overwritten, like what it keeps until its next start\n"
        )


def _erase_plain(home: Home) -> None:
    """Erases samples that are in the clear though they should not be, and says so where an engine still fills them."""
    from edgestill.device.samplekey import erase, is_plain

    if is_plain(home.samples) and not erase(home.samples):
        sys.stderr.write(
            "the agent runs: what it has kept, and keeps until its next start, is in the clear; it is overwritten then\n"
        )


def _bytes_per_day(given: str | None) -> int | None:
    return None if given in {None, "unlimited"} else parse_size(str(given))


def _serve(options: argparse.Namespace) -> None:
    require("numpy", extra="device", purpose="to run a model")
    require("uvicorn", extra="serve", purpose="to serve a model")
    from edgestill.core.bundle import replace
    from edgestill.device.home import Home
    from edgestill.device.serve.listening import Listening, fleet_tls, tls_of
    from edgestill.device.serve.models import of_agent
    from edgestill.device.serve.running import run
    from edgestill.device.serve.tokens import read_tokens
    from edgestill.infer.serving.limits import Rate
    from edgestill.infer.serving.waiting import Capacity

    logs.begin(os.environ.get("EDGESTILL_LOG", "INFO"), chatty=("uvicorn",))
    clock = SystemClock()
    tls = tls_of(options.tls_certificate, options.tls_key, options.client_ca)
    if options.tls_fleet:
        if tls is not None:
            raise SettingError(
                "two certificates for one server",
                where="--tls-fleet",
                expected="it alone, or --tls-certificate and --tls-key",
                got="both",
                fix="leave one out",
            )
        tls = fleet_tls(Home.open(options.home), clock)
    listening = Listening(
        host=options.host,
        port=options.port,
        tokens=() if options.token_file is None else read_tokens(options.token_file),
        tls=tls,
        is_open=options.open,
    )

    def ready(url: str) -> None:
        sys.stdout.write(f"serves {options.name} at {url}\n")
        sys.stdout.flush()
        if options.ready is not None:
            replace(options.ready, f"{url}\n".encode())

    served = of_agent(options.home, name=options.name, clock=clock)
    run(
        served,
        listening,
        capacity=Capacity(threads=2),
        rate=Rate(1000, 2000),
        clock=clock,
        ready=ready,
        archives=Home.open(options.home).slots if options.archives else None,
    )


def _neighbours(options: argparse.Namespace) -> None:
    require("numpy", extra="device", purpose="to ask a model")
    from edgestill.device.home import Home
    from edgestill.device.neighbours import TEACHER, Neighbours, Upstream, read_token

    told = {name: getattr(options, name) for name in _OF_ONE if getattr(options, name)}
    if told and options.add is None:
        raise SettingError(
            "these options are of a neighbour that is added",
            where=", ".join(f"--{name.replace('_', '-')}" for name in told),
            expected="--add NAME=URL as well",
            got="none",
            fix="remove the neighbour, and add it anew",
        )
    home = Home.open(options.home)
    found = Neighbours.of(home.neighbours)
    if options.remove is not None:
        found = found.without(options.remove)
    if options.add is not None:
        ((name, url),) = _labels([options.add], where="--add").items()
        if "timeout" in told:
            told["timeout"] = parse_duration(told["timeout"])
        if "token_file" in told:
            told["token"] = read_token(told.pop("token_file"))
        found = found.with_one(Upstream(name=name, url=url, **told))
    if options.hedge_after is not None:
        found = found.hedged(None if options.hedge_after == "never" else parse_duration(options.hedge_after))
    if found != Neighbours.of(home.neighbours):
        found.write(home.neighbours)
    for one in found.each:
        sys.stdout.write(f"{one.name:15} {one.url} {one.model or TEACHER}\n")
    sys.stdout.write(f"{TEACHER:15} {home.identity.hub}\n")


def _mirrors(options: argparse.Namespace) -> None:
    from edgestill.device.home import Home
    from edgestill.device.mirrors import Mirrors

    home = Home.open(options.home)
    before = found = Mirrors.of(home.mirrors)
    if options.remove is not None:
        found = found.without(options.remove)
    if options.add is not None:
        found = found.with_one(options.add)
    if found != before:
        found.write(home.mirrors)
    for url in (*found.each, home.identity.hub):
        sys.stdout.write(f"{url}\n")


def _labels(pairs: Sequence[str], where: str = "--label") -> dict[str, str]:
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in labels:
            raise SettingError(
                "cannot read a label",
                where=where,
                expected="NAME=VALUE, each once",
                got=pair,
                fix="write it as NAME=VALUE",
            )
        labels[name] = value
    return labels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill-agent", description="The agent of a device.")
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="join | rejoin | run | update | status | settings | neighbours | mirrors | serve",
    )
    _add_join(verbs.add_parser("join", help="enrol this device with a hub"))
    again = verbs.add_parser("rejoin", help="enrol it anew with a hub that lost it; what it has stays")
    again.add_argument("--home", type=Path, required=True)
    again.add_argument("--hub", required=True, metavar="URL")
    again.add_argument("--token", required=True, help="a join token from the operator")
    _add_run(verbs.add_parser("run", help="run the agent until SIGTERM or SIGINT"))
    _add_update(
        verbs.add_parser("update", help="take a release from a folder or a stick, and end when it serves")
    )
    three = verbs.add_parser("status", help="where this device stands")
    three.add_argument("--home", type=Path, required=True)
    three.add_argument("--json", action="store_true", help="for machines")
    _add_settings(verbs.add_parser("settings", help="what its owner chose; takes effect at the next run"))
    _add_neighbours(
        verbs.add_parser("neighbours", help="who is asked before the hub; takes effect at the next run")
    )
    four = verbs.add_parser(
        "mirrors", help="where bundles are fetched before the hub; takes effect at the next run"
    )
    four.add_argument("--home", type=Path, required=True)
    four.add_argument(
        "--add", metavar="URL", help="a cache, or a device that serves --archives; asked last of them"
    )
    four.add_argument("--remove", metavar="URL", help="asks this one no more")
    _add_serve(verbs.add_parser("serve", help="answer other programs over HTTP (Open Inference Protocol)"))
    return parser


def _add_join(one: argparse.ArgumentParser) -> None:
    one.add_argument("--home", type=Path, required=True, help="the device's folder; made here")
    one.add_argument("--hub", required=True, metavar="URL")
    one.add_argument("--token", required=True, help="a join token from the operator")
    one.add_argument("--name", required=True, help="the device's name in the fleet")
    one.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="for cohorts; repeatable"
    )
    one.add_argument(
        "--leaves",
        choices=LEVELS,
        default="raw",
        help="the most that may leave it (default: as the bundle says)",
    )
    one.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="that runs its models (default: %(default)s)"
    )
    one.add_argument(
        "--accept-auto",
        action="store_true",
        help="take updates that only a role for unattended ones lists (default: none)",
    )
    one.add_argument("--bytes-per-day", metavar="SIZE", help="that it may send and receive (default: any)")


def _add_run(two: argparse.ArgumentParser) -> None:
    two.add_argument("--home", type=Path, required=True)
    two.add_argument("--ready", type=Path, metavar="FILE", help="written once the agent runs")
    two.add_argument(
        "--health-every", default="15s", metavar="DURATION", help="between figures (default 15s)"
    )
    two.add_argument(
        "--health-window",
        default="30s",
        metavar="DURATION",
        help="that a new bundle must serve (default 30s)",
    )
    two.add_argument(
        "--idle-after",
        default="60s",
        metavar="DURATION",
        help="without an answer, before a timing job goes on (default 60s)",
    )
    two.add_argument(
        "--idle-load",
        default="50%",
        metavar="SHARE",
        help="of all processors, above which none begins; 100%% looks at no load (default 50%%)",
    )


def _add_update(offline: argparse.ArgumentParser) -> None:
    offline.add_argument("--home", type=Path, required=True)
    offline.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of edgestill release export",
    )
    offline.add_argument(
        "--health-window", default="30s", metavar="DURATION", help="that it must serve (default 30s)"
    )
    offline.add_argument("--json", action="store_true", help="for machines")


def _add_settings(four: argparse.ArgumentParser) -> None:
    four.add_argument("--home", type=Path, required=True)
    four.add_argument(
        "--accept-auto",
        action=argparse.BooleanOptionalAction,
        help="whether updates are taken that only a role for unattended ones lists",
    )
    four.add_argument(
        "--bytes-per-day",
        metavar="SIZE",
        help="that it may send and receive, updates, questions and evidence together; or: unlimited",
    )
    four.add_argument(
        "--keep-samples",
        metavar="SIZE",
        help="room for inputs with their labels, to train on; or: none, which forgets those that are kept",
    )
    four.add_argument(
        "--seal-samples",
        metavar="FILE",
        help="encrypt them with the key in this file, which is made where there is none; or: no. What was kept before is forgotten",
    )
    four.add_argument(
        "--train",
        metavar="EFFORT",
        help="what training may cost, such as time=30min,idle=60s,core=50%%,mains=yes,hours=1-5; or: never",
    )


def _add_neighbours(four: argparse.ArgumentParser) -> None:
    four.add_argument("--home", type=Path, required=True)
    four.add_argument(
        "--add", metavar="NAME=URL", help="a server of the Open Inference Protocol; asked last of them"
    )
    four.add_argument("--model", help="its name there (default: teacher)")
    four.add_argument("--output", choices=("logits", "probabilities"), help="(default: logits)")
    four.add_argument("--input", help="name of its input (default: input)")
    four.add_argument("--timeout", metavar="DURATION", help="for its answer (default 5s)")
    four.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token that it wants")
    four.add_argument("--plain-http", action="store_true", help="it may be elsewhere and without TLS")
    four.add_argument(
        "--fleet", metavar="DEVICE", help="the device of the fleet that serves there; * for any of them"
    )
    four.add_argument("--remove", metavar="NAME", help="asks this one no more")
    four.add_argument(
        "--hedge-after", metavar="DURATION", help="asks the next as well after so long; or: never"
    )


def _add_serve(four: argparse.ArgumentParser) -> None:
    four.add_argument("--home", type=Path, required=True)
    four.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    four.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    four.add_argument("--name", default="student", help="of the model (default: %(default)s)")
    four.add_argument("--ready", type=Path, metavar="FILE", help="gets the address once it listens")
    four.add_argument("--token-file", type=Path, metavar="FILE", help="one token a line, and when it ends")
    four.add_argument("--open", action="store_true", help="anybody may ask, from anywhere")
    four.add_argument(
        "--archives", action="store_true", help="hand out the bundles of its slots as well, to anybody"
    )
    four.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM chain; needs --tls-key")
    four.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM key of the certificate")
    four.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="PEM authorities of clients' certificates"
    )
    four.add_argument(
        "--tls-fleet",
        action="store_true",
        help="serve with this device's certificate, and only devices of its fleet",
    )


_OF_ONE: Final = ("model", "output", "input", "timeout", "token_file", "plain_http", "fleet")
"""Options of `neighbours --add`."""
_VERBS: Final = {
    "join": _join,
    "rejoin": _rejoin,
    "run": _run,
    "status": _status,
    "update": _update,
    "settings": _settings,
    "neighbours": _neighbours,
    "mirrors": _mirrors,
    "serve": _serve,
}

if __name__ == "__main__":
    sys.exit(main())
