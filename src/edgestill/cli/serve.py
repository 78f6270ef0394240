"""`edgestill serve`: a bundle's student behind the Open Inference Protocol, or a gateway of it and a larger model elsewhere."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import SettingError
from edgestill.core.extras import require
from edgestill.core.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.digest import Digest
    from edgestill.device.memory import Memory
    from edgestill.device.neighbours import Neighbours, Upstream
    from edgestill.infer.serving.served import Served

File = Path | None


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option(help="Of the model; default the bundle's.")] = "",
    engine: Annotated[str, typer.Option(help="onnxruntime, openvino or litert; default the bundle's.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=256, help="That share one operator.")] = 1,
    workers: Annotated[
        int,
        typer.Option(min=0, max=64, help="Batches that run side by side; default 1, and 4 for a gateway."),
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Inputs that are answered together.")] = 64,
    linger: Annotated[str, typer.Option(help="How long a question waits for others to join it.")] = "0 ms",
    rate: Annotated[float, typer.Option(help="Questions a second of one caller, on average.")] = 1000.0,
    token_file: Annotated[File, typer.Option(help="One token a line, and behind it when it ends.")] = None,
    is_open: Annotated[bool, typer.Option("--open", help="Anybody may ask, from anywhere.")] = False,
    tls_certificate: Annotated[File, typer.Option(help="PEM chain; needs --tls-key.")] = None,
    tls_key: Annotated[File, typer.Option(help="PEM key of the certificate.")] = None,
    client_ca: Annotated[File, typer.Option(help="PEM authorities of clients' certificates.")] = None,
    behind_proxy: Annotated[bool, typer.Option(help="A proxy before this port speaks TLS.")] = False,
    teacher: Annotated[str, typer.Option(metavar="URL", help="Server of a larger model to ask.")] = "",
    teacher_model: Annotated[
        str, typer.Option(help="Its name there; default teacher, or the policy's adapter.")
    ] = "",
    teacher_output: Annotated[str, typer.Option(help="logits or probabilities.")] = "logits",
    teacher_input: Annotated[
        str, typer.Option(help="Name of its input; default the student's, or features.")
    ] = "",
    teacher_token_file: Annotated[File, typer.Option(help="Holds the token that it wants.")] = None,
    teacher_timeout: Annotated[str, typer.Option(help="For its answer.")] = "5 s",
    teacher_plain_http: Annotated[bool, typer.Option(help="It may be elsewhere and without TLS.")] = False,
    neighbours: Annotated[
        File, typer.Option(help="neighbours.json: who is asked before the teacher.")
    ] = None,
    state: Annotated[File, typer.Option(help="Folder that keeps how a gateway's budget stands.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object once it listens.")] = False,
) -> None:
    """Serve a bundle by the Open Inference Protocol v2, until SIGTERM or Ctrl-C."""
    require("onnxruntime", extra="device", purpose="to run a model")
    require("uvicorn", extra="serve", purpose="to serve a model")
    from edgestill.core import logs
    from edgestill.device.serve.listening import Listening, tls_of
    from edgestill.device.serve.models import of_bundle
    from edgestill.device.serve.running import run
    from edgestill.device.serve.tokens import read_tokens
    from edgestill.infer.serving.limits import Rate
    from edgestill.infer.serving.waiting import Capacity

    logs.begin(os.environ.get("EDGESTILL_LOG", "INFO"), chatty=("uvicorn",))
    listening = Listening(
        host=host,
        port=port,
        tokens=() if token_file is None else read_tokens(token_file),
        tls=tls_of(tls_certificate, tls_key, client_ca),
        is_open=is_open,
        behind_proxy=behind_proxy,
    )
    capacity = Capacity(
        most_rows=batch, linger=parse_duration(linger), threads=workers or (4 if teacher else 1)
    )
    opened, clock = Bundle.open(bundle), SystemClock()
    opened.verify()
    upstream = _upstream(
        teacher,
        teacher_model,
        output=teacher_output,
        taken=teacher_input,
        token=teacher_token_file,
        timeout=teacher_timeout,
        plain_http=teacher_plain_http,
    )
    served = of_bundle(
        opened,
        name=name,
        engine=engine,
        threads=threads,
        upstream=upstream,
        neighbours=_near(neighbours, upstream),
        memory=_memory(state, upstream, opened.manifest.digest),
        clock=clock,
        random=random.random,  # noqa: S311  # it chooses audits; nothing is guarded by it
    )
    often, ready = Rate(rate, max(1, int(2 * rate))), _teller(served, as_json=as_json)
    run(served, listening, capacity=capacity, rate=often, clock=clock, ready=ready)


def _teller(served: Served, *, as_json: bool) -> Callable[[str], None]:
    """Says where it listens."""

    def tell(url: str) -> None:
        told = {"url": url, "model": served.name, "version": served.version}
        typer.echo(json.dumps(told) if as_json else f"serves {served.name} at {url}/v2/models/{served.name}")

    return tell


def _upstream(
    url: str,
    model: str,
    *,
    output: str,
    taken: str,
    token: Path | None,
    timeout: str,
    plain_http: bool,
) -> Upstream | None:
    if not url:
        return None
    from edgestill.device.neighbours import Upstream, read_token
    from edgestill.link.http import check_url

    check_url(url, plain_http=plain_http)
    shown = None if token is None else read_token(token)
    return Upstream(
        url=url,
        model=model,
        output=output,
        input=taken,
        timeout=parse_duration(timeout),
        token=shown,
        plain_http=plain_http,
    )


def _memory(folder: Path | None, upstream: Upstream | None, bundle: Digest) -> Memory | None:
    """What keeps a gateway's budget."""
    if folder is None:
        return None
    from edgestill.device.memory import Memory

    _require_teacher(upstream, "--state")
    return Memory(folder, bundle)


def _require_teacher(upstream: Upstream | None, option: str) -> None:
    if upstream is None:
        raise SettingError(
            "this is for a gateway",
            where=option,
            expected="--teacher URL as well",
            got="none",
            fix="name the server that is asked last as --teacher",
        )


def _near(path: Path | None, upstream: Upstream | None) -> Neighbours | None:
    """Who is asked before the teacher, off a file that must be there."""
    if path is None:
        return None
    from edgestill.core.files import read_plain
    from edgestill.device.neighbours import MAX_BYTES, Neighbours

    _require_teacher(upstream, "--neighbours")
    return Neighbours.from_bytes(read_plain(path, what="the neighbours", at_most=MAX_BYTES), str(path))
