"""Programs of others over real sockets: Triton's client and a fuzzer ask us, and our cascade asks MLServer.

Each side runs in an environment of its own, made from a registry with the versions that `peers` pins: none of them is a
dependency of ours. tritonclient is BSD-3-Clause, schemathesis MIT, MLServer Apache-2.0.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import venv
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import batches, model, policy_of, tiny_bundle

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import UnreachableError
from edgestill.core.protocols import Request
from edgestill.device.neighbours import Upstream
from edgestill.device.serve.models import of_bundle
from edgestill.link.http import HttpTransport
from edgestill.link.inference import RemoteModel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.installs

PEERS = Path(__file__).resolve().parent / "peers"
TOKEN = "t" * 40

TRITON = """
import sys
import numpy as np
import tritonclient.http as http
url, name, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}
client = http.InferenceServerClient(url)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
metadata = client.get_model_metadata(name)
version = metadata["versions"][0]
assert client.is_model_ready(name, version) and client.get_server_metadata()["name"]
config = client.get_model_config(name, version)
assert config["max_batch_size"] >= 5 and config["input"][0]["dims"] == [4]
assert [one["name"] for one in client.get_model_repository_index()] == [name]
names = [one["name"] for one in metadata["outputs"]]
batch = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

def ask(binary, wanted, compression):
    given = http.InferInput("input", batch.shape, "FP32")
    given.set_data_from_numpy(batch, binary_data=binary)
    outputs = wanted and [http.InferRequestedOutput(one, binary_data=binary) for one in wanted]
    return client.infer(name, [given], model_version=version, outputs=outputs, request_id="q1", headers=dict(headers),
                        request_compression_algorithm=compression, response_compression_algorithm=compression)

first = ask(True, None, None).as_numpy(names[0])
for binary in (True, False):
    for wanted in (None, names):
        for compression in (None, "gzip", "deflate"):
            found = ask(binary, wanted, compression)
            assert found.get_response()["id"] == "q1"
            np.testing.assert_allclose(found.as_numpy(names[0]), first, rtol=1e-5)
            assert wanted is None or all(len(found.as_numpy(one)) == 5 for one in names)
bad = http.InferInput("input", (1, 4), "FP32")
bad.set_data_from_numpy(np.full((1, 4), np.nan, np.float32))
for model, wanted, status in ((name, headers, "400"), ("nobody", headers, "404"), (name, None, "401")):
    try:
        client.infer(model, [bad], headers=wanted)
    except http.InferenceServerException as error:
        assert error.status() == status and error.message().startswith("["), error
    else:
        raise AssertionError(status)
print("all was answered")
"""

LINEAR = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Linear(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        logits = rows[:, :3]
        powers = np.exp(logits)
        values = {"logits": logits, "probabilities": powers / powers.sum(axis=1, keepdims=True)}
        outputs = [NumpyCodec.encode_output(one.name, values[one.name].astype(np.float32)) for one in payload.outputs]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """An environment of others' programs."""

    bin: Path

    def run(self, program: str, *arguments: object, folder: Path, seconds: float) -> tuple[int, str]:
        """A program of theirs, with nothing of this process's environment that concerns Python."""
        command = [str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=clean(), timeout=seconds, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


def clean() -> dict[str, str]:
    """The environment without what concerns Python."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def environment(folder: Path, name: str) -> Peer:
    """What `peers/NAME.txt` pins, installed."""
    venv.create(folder, with_pip=True)
    peer = Peer(folder / "bin")
    wanted = (
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-q",
        "install",
        "--no-deps",
        "-r",
        PEERS / f"{name}.txt",
    )
    code, said = peer.run("python", *wanted, folder=folder, seconds=600)
    assert code == 0, said
    return peer


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """Triton's client and schemathesis."""
    return environment(tmp_path_factory.mktemp("clients"), "clients")


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """MLServer."""
    return environment(tmp_path_factory.mktemp("mlserver"), "mlserver")


@dataclass(frozen=True, slots=True)
class Ours:
    """A server of ours."""

    url: str
    model: str
    token: str


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server as a process, which must end with 0 and no trace once it is told to."""
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)
    assert (child.returncode, "Traceback" in log.read_text()) == (0, False), log.read_text()


@pytest.fixture(scope="module", params=["device", "hub"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    """A device that serves a student, and a hub that serves a teacher."""
    folder = tmp_path_factory.mktemp(request.param)
    python = [sys.executable, "-W", "error", "-m"]
    if request.param == "device":
        (folder / "tiny.esb").write_bytes(tiny_bundle())
        (folder / "tokens").write_text(f"{TOKEN}\n")
        options = ["--port", "0", "--json", "--token-file", str(folder / "tokens")]
        with process(
            [*python, "edgestill.cli", "serve", str(folder / "tiny.esb"), *options], folder / "log"
        ) as child:
            assert child.stdout is not None
            yield Ours(json.loads(child.stdout.readline())["url"], "tiny", TOKEN)
        return
    (folder / "teacher.onnx").write_bytes(model(2))
    options = ["--home", str(folder / "hub"), "--port", "0", "--teacher", str(folder / "teacher.onnx")]
    with process([*python, "edgestill.hub.main", "up", *options], folder / "log") as child:
        url = said_in(folder / "log", child)
        yield Ours(url, "teacher", (folder / "hub" / "operator.token").read_text().strip())


def said_in(log: Path, child: subprocess.Popen[str]) -> str:
    """The address that a hub tells to its log."""
    while child.poll() is None:
        text = log.read_text()
        if "serves at " in text:
            return text.rpartition("serves at ")[2].split()[0]
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.05)
    raise AssertionError(log.read_text())


def test_tritons_own_client_works_unmodified(ours: Ours, clients: Peer, tmp_path: Path) -> None:
    """Health, metadata, configuration, index; raw tensors and JSON, compressed and not; refusals with their status."""
    arguments = (TRITON, ours.url.removeprefix("http://"), ours.model, ours.token)
    code, said = clients.run("python", "-c", *arguments, folder=tmp_path, seconds=120)
    assert (code, "all was answered" in said) == (0, True), said


@pytest.mark.parametrize("kind", ["as it is", "answerable"])
def test_attack_a_fuzzer_finds_nothing(ours: Ours, clients: Peer, tmp_path: Path, kind: str) -> None:
    """No failure, no status or body that the description does not name, no way past the token; and the server lives on.

    No schema can say that numbers and shape agree. So the description is tried once as it is, where valid bodies may be refused,
    and once narrowed to questions of one input, all of which must be answered.
    """
    described = json.loads(get(f"{ours.url}/v2/openapi.json"))
    how: tuple[str, ...] = ("--exclude-checks", "positive_data_acceptance")
    if kind == "answerable":
        narrow(described)
        how = ("--mode", "positive")
    (tmp_path / "openapi.json").write_text(json.dumps(described))
    options = ("--url", ours.url, "-H", f"Authorization: Bearer {ours.token}", *how)
    amount = ("--max-examples", 40, "--seed", 1)
    code, said = clients.run(
        "schemathesis", "run", "openapi.json", *options, *amount, folder=tmp_path, seconds=500
    )
    assert code == 0, said
    assert json.loads(get(f"{ours.url}/v2/health/ready")) == {"ready": True}


def narrow(described: Any) -> None:
    """Questions of one input within the sensor's range, which may wait."""
    for path, operations in described["paths"].items():
        if path.endswith("/infer"):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
            one = schema["inputs"]["items"]["properties"]
            numbers = {"type": "number", "minimum": -1e6, "maximum": 1e6}
            one["shape"] = {"const": [1, 4]}
            one["data"] = {"type": "array", "items": numbers, "minItems": 4, "maxItems": 4}
            schema["parameters"]["properties"]["timeout_ms"] = {"type": "null"}


def get(url: str) -> bytes:
    """A real request."""
    return b"".join(HttpTransport().send(Request("GET", url), timeout=20).chunks())


@pytest.fixture(scope="module")
def theirs(mlserver: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLServer with a model named `teacher`, whose logits are the first three numbers of its input."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.py").write_text(LINEAR)
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "teacher", "implementation": "model.Linear", "parallel_workers": 0})
    )
    ports = free_ports(3)
    named = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0} | named))
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(
            [mlserver.bin / "mlserver", "start", "."], cwd=folder, env=clean(), stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        until_ready(f"{url}/v2/models/teacher/ready", child)
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at; theirs cannot be told to take free ones."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until_ready(url: str, child: subprocess.Popen[bytes]) -> None:
    """Asks until it is."""
    while child.poll() is None:
        try:
            if HttpTransport().send(Request("GET", url), timeout=5).status == 200:
                return
        except UnreachableError:
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
    raise AssertionError("it has ended")


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_mlserver_is_asked_in_json_because_it_takes_no_raw_tensors(theirs: str, output: str) -> None:
    """It refuses them in its own ways, which is noticed once and remembered."""
    batch = batches(4, 1)
    there = RemoteModel(
        HttpTransport(), theirs, model="teacher", clock=SystemClock(), timeout=20, output=output
    )
    powers = np.exp(batch[:, :3])
    for _ in range(2):
        found = there.predict(batch).probabilities
        np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)


def test_our_cascade_works_against_mlserver(theirs: str, tmp_path: Path) -> None:
    """A gateway of ours before it: the larger model decides where the policy asks it."""
    policy = policy_of(threshold=2.0, escalation_share=1.0, audit_share=0.0, alpha=1.0)
    (tmp_path / "tiny.esb").write_bytes(tiny_bundle(policy=policy))
    bundle = Bundle.open(tmp_path / "tiny.esb")
    served = of_bundle(bundle, upstream=Upstream(url=theirs), clock=SystemClock(), random=lambda: 0.5)
    batch = batches(3, 5)
    rows = served.run(batch, None)
    assert rows.told["decided_by"] == ("teacher",) * 3
    np.testing.assert_array_equal(rows.outputs["probabilities"].argmax(axis=1), batch[:, :3].argmax(axis=1))
