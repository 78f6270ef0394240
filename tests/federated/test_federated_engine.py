"""A federation on Flower's own engine: a SuperLink, two SuperNodes, and the app of `examples/flower_digits`, on loopback.

They need Flower: `tests/federated/test_federated_environment.py` runs them where it is. Everything that a process asks of
the world beyond this machine would go through the proxy that these tests are; it writes down who is wanted, and hangs up.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip(
    "flwr", reason="Flower is not in this environment; test_federated_environment.py makes one"
)

from federated_worlds import digits, features_of, write_bundle

from edgestill.federated import QUIET, Node
from edgestill.learn.statistics import solve, usual_ridge
from edgestill.testing.outward import Outward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "flower_digits"
LAUNCH = (sys.executable, "-m", "edgestill.federated")
PATIENCE = 240.0


@pytest.fixture
def outward() -> Iterator[Outward]:
    """One for the test."""
    with Outward() as made:
        yield made


def environment(folder: Path, outward: Outward, **variables: str) -> dict[str, str]:
    """Of every process: nothing set that Flower or onnxruntime reads, but where Flower's home is."""
    ours = {"PYTHONPATH": str(ROOT / "src"), "FLWR_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return outward.environment(*QUIET, "ORT_DISABLE_TELEMETRY") | ours | variables


def ports(count: int) -> list[int]:
    """Free ones."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running(command: list[str], log: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process and its children, until the end of the context."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(what: Callable[[], bool], log: Path) -> None:
    """Asks again until it is so."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        time.sleep(0.1)


def listens(port: int) -> bool:
    """Whether somebody answers there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def federation(folder: Path, variables: dict[str, str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """A SuperLink with two SuperNodes; what runs the app on them, and returns what its server wrote."""
    link, *own = ports(3)
    home = Path(variables["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    bundle = write_bundle(folder / "digits.esb", 0)
    at = ["--insecure", "--host", "127.0.0.1", "--port"]
    with ExitStack() as stack:
        log = folder / "link.log"
        stack.enter_context(running([*LAUNCH, "flower-superlink", *at, str(link)], log, variables))
        wait_for(lambda: listens(link), log)
        for client, port in enumerate(own):
            told = f'bundle="{bundle}" client={client} clients=2'
            node = [*LAUNCH, "flower-supernode", *at, str(port), "--superlink", f"127.0.0.1:{link}"]
            log = folder / f"node{client}.log"
            stack.enter_context(running([*node, "--node-config", told], log, variables))

        def run(**settings: Any) -> dict[str, Any]:
            out = folder / "{}.json".format(settings["strategy"])
            told = {"bundle": str(bundle), "out": str(out), **settings}
            text = " ".join(f"{name}={json.dumps(value)}" for name, value in told.items())
            command = [*LAUNCH, "flwr", "run", str(APP), "here", "--run-config", text, "--stream"]
            log = folder / "run.log"
            with running(command, log, variables):
                wait_for(lambda: out.exists() and out.read_text().endswith("}"), log)
            written: dict[str, Any] = json.loads(out.read_text())
            return written | {name: np.load(out.with_suffix(f".{name}.npy")) for name in ("weight", "bias")}

        yield run


def test_two_nodes_on_flowers_engine_learn_together_and_nobody_is_told(
    tmp_path: Path, outward: Outward
) -> None:
    """The closed form is the central solution; distillation beats both clients; no process asks for telemetry or updates."""
    test = digits().test
    with federation(tmp_path, environment(tmp_path, outward)) as run:
        sums = run(strategy="sums")
        node = Node.open(tmp_path / "digits.esb", digits().train)
        whole = node.statistics()
        expected = solve(whole, ridge=usual_ridge(whole))
        assert sums["trained"] == {"1": {"answered": 2, "refused": 0, "num-examples": whole.n}}
        assert np.abs(sums["weight"] - expected.weight).max() <= 1e-6
        assert np.abs(sums["bias"] - expected.bias).max() <= 1e-6
        assert sums["refused"] == []

        distilled = run(strategy="distillation", rounds=2)
        named = (features_of(0, test.inputs) @ distilled["weight"] + distilled["bias"]).argmax(axis=1)
        tried = distilled["tried"]["2"]
        assert tried["num-examples"] == 2 * len(test.targets)
        assert tried["right"] == 2 * (named == test.targets).sum()
        assert tried["right-alone"] / tried["num-examples"] < 0.55
        assert tried["right"] / tried["num-examples"] > 0.8
        assert distilled["refused"] == []
    assert outward.wanted == []


def test_a_superlink_that_is_told_to_report_does(tmp_path: Path, outward: Outward) -> None:
    """The counterpart: with the user's own variables the same program asks for Flower's telemetry, and the proxy sees it."""
    (port,) = ports(1)
    variables = environment(tmp_path, outward, FLWR_TELEMETRY_ENABLED="1", FLWR_DISABLE_UPDATE_CHECK="0")
    command = [*LAUNCH, "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "link.log"
    with running(command, log, variables):
        wait_for(lambda: any(re.search("telemetry", one) for one in outward.wanted), log)
