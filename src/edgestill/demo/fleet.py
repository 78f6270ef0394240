"""A hub and devices on this machine: real processes, real HTTP on the loopback address, real files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.bundle import archive_bytes
from edgestill.core.digest import Digest
from edgestill.core.errors import DemoError
from edgestill.core.jsonio import Fields
from edgestill.core.oip import NUMPY_NAMES
from edgestill.core.protocols import Request
from edgestill.core.release import Gates, target_name
from edgestill.device.client import LocalClient
from edgestill.lab.redistil import Evidence
from edgestill.learn.statistics import Statistics
from edgestill.link.exchange import exchange
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.repository import TargetInfo, create_root, sign_targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.oip import Tensor
    from edgestill.core.protocols import Clock
    from edgestill.demo.processes import Processes
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.assemble import Packed

PATIENCE: Final = 60.0
_YEAR: Final = 365 * 86_400.0
_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Said:
    """What a device answered to N inputs.

    Attributes:
        answers: int64 `[N]`: the class of the answer given.
        alone: int64 `[N]`: the class the student alone would have named.
        asked: bool `[N]`: whether the teacher was heard.
        seconds: float64 `[N]`: time per answer, as the application saw it.
    """

    answers: NDArray[np.int64]
    alone: NDArray[np.int64]
    asked: NDArray[np.bool_]
    seconds: NDArray[np.float64]


@final
class Publisher:
    """Who owns root and targets keys; they never reach the hub.

    Args:
        clock: for the lifetimes of metadata.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._root, self._targets, self._clock = SigningKey.generate(), SigningKey.generate(), clock
        self._list: bytes | None = None

    def root(self, online: PublicKey) -> bytes:
        """Root metadata that trusts the hub's online key for freshness and assignments only."""
        return create_root(
            root=[self._root],
            targets=[self._targets.public],
            online=online,
            expires=self._clock.now() + _YEAR,
        )

    def listed(self, name: str, archive: bytes) -> bytes:
        """The signed list with one bundle more."""
        self._list = sign_targets(
            previous=self._list,
            add={name: TargetInfo(size=len(archive), digest=Digest.of(archive))},
            keys=[self._targets],
            expires=self._clock.now() + _YEAR / 4,
        )
        return self._list


@final
class Fleet:
    """The hub, its devices, and a line to each.

    Args:
        folder: for hub and devices.
        processes: started and ended by the caller.
        clock: for waiting.
    """

    def __init__(self, folder: Path, processes: Processes, *, clock: Clock) -> None:
        self._folder, self._processes, self._clock = folder, processes, clock
        self._publisher = Publisher(clock=clock)
        self._transport = HttpTransport()
        self._clients: dict[str, LocalClient] = {}
        self._archives: dict[str, Digest] = {}
        self.url = ""

    @property
    def operator(self) -> OperatorClient:
        """The operator's line to the hub."""
        token = (self._folder / "hub" / "operator.token").read_text().strip()
        return OperatorClient(self._transport, self.url, token=token)

    @classmethod
    def found(cls, folder: Path, teacher: bytes, processes: Processes, *, clock: Clock) -> Self:
        """Makes a hub with this teacher, starts it, and hands it the publisher's root."""
        fleet = cls(folder, processes, clock=clock)
        home, model, ready = str(folder / "hub"), folder / "teacher.onnx", folder / "hub.ready"
        model.write_bytes(teacher)
        processes.run("the hub", "edgestill.hub.main", ["init", "--home", home])
        options = ["up", "--home", home, "--port", "0", "--ready", str(ready), "--teacher", str(model)]
        processes.start("hub", "edgestill.hub.main", [*options, "--poll-interval", "0.3"], ready=ready)
        processes.wait_for("the hub", ready.exists, within=PATIENCE)
        fleet.url = ready.read_text().strip()
        fleet.operator.upload_root(
            fleet._publisher.root(PublicKey.from_json(fleet.operator.online_key()))
        )  # its own
        return fleet

    def publish(self, packed: Packed) -> str:
        """Signs a bundle into a release and hands both to the hub; `NAME/VERSION`."""
        head, archive = packed.manifest, archive_bytes(packed.manifest, packed.blobs)
        name = target_name(head.name, head.version, head.hardware_class)
        self.operator.upload_bundle(archive)
        self.operator.upload_targets(self._publisher.listed(name, archive))
        release = f"{head.name}/{head.version}"
        self._archives[release] = Digest.of(archive)
        return release

    def join(self, device: str, *, shares: bool) -> None:
        """Enrols a device and starts its agent."""
        home, ready = str(self._folder / device), self._folder / f"{device}.ready"
        arguments = ["join", "--home", home, "--hub", self.url, "--token", self.operator.join_token()]
        leaves = "raw" if shares else "nothing"
        self._processes.run(
            device, "edgestill.device.main", [*arguments, "--name", device, "--leaves", leaves]
        )
        run = ["run", "--home", home, "--ready", str(ready), "--health-every", "1s", "--health-window", "1s"]
        self._processes.start(device, "edgestill.device.main", run, ready=ready)
        self._processes.wait_for(device, ready.exists, within=PATIENCE)

    def roll_out(self, release: str, *, heard: Callable[[JsonObject], None] | None = None) -> JsonObject:
        """Brings a release to all devices, a fifth of them first; the rollout when it is done.

        Raises:
            DemoError: it was paused, or did not end in time.
        """
        operator, last = self.operator, {}
        name = operator.start_rollout(release, stages=(0.2, 1.0), gates=Gates(max_failed=0.0))

        def done() -> bool:
            last.update(operator.rollout(name))
            if heard is not None:
                heard(last)
            if last["state"] in {"paused", "rolled-back"}:
                raise DemoError(
                    "the rollout was stopped",
                    where=release,
                    got=last["reason"],
                    fix="look into the logs of the devices",
                    expected="a rollout that ends",
                )
            return last["state"] == "done"

        self._processes.wait_for(f"the rollout of {release}", done, within=2 * PATIENCE)
        return last

    def feed(self, device: str, samples: Samples) -> Said:
        """Gives a device its samples one by one, as its application would."""
        client = self._clients.get(device) or LocalClient.open(self._folder / device)
        self._clients[device] = client
        said: list[tuple[int, int, bool, float]] = []
        for one in samples.inputs:
            start = self._clock.monotonic()
            answer = client.predict(one[None])
            said.append((*_classes(answer), self._clock.monotonic() - start))
        answers, alone, asked, seconds = zip(*said, strict=True)
        return Said(
            answers=np.array(answers), alone=np.array(alone), asked=np.array(asked), seconds=np.array(seconds)
        )

    def status(self, device: str) -> JsonObject:
        """What the device says of itself."""
        return self._clients[device].status()

    def health(self) -> dict[str, Fields]:
        """The health figures of each device's running release, as the hub has summed them."""
        devices = Fields(self.operator.fleet(), "fleet").objects("devices", at_most=1000)
        return {one.text("device"): one.inner("health") for one in devices if one.has("health")}

    def wait_for(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits for something a device or the hub will do by itself."""
        self._processes.wait_for(what, holds, within=PATIENCE)

    def evidence(self) -> Evidence:
        """All escalated inputs with the teacher's answers that the hub has kept.

        Raises:
            DemoError: there are none.
        """
        parts, names, after = [], [], 0
        while True:
            page = self.operator.samples(after=after, limit=_PAGE)
            arrays = {tensor.name: _array(tensor) for tensor in page.outputs}
            if not arrays or len(arrays["id"]) == 0:
                break
            parameters = Fields(page.parameters, "samples")
            names += [str(name) for name in parameters.items("devices", at_most=_PAGE)]
            after = parameters.integer("last")
            parts.append(arrays)
        if not parts:
            raise DemoError(
                "no evidence came in",
                where="hub",
                expected="escalated answers",
                got="none",
                fix="look into the logs of the hub and the devices",
            )
        joined = {
            name: np.concatenate([part[name] for part in parts]) for name in ("input", "teacher", "audit")
        }
        return Evidence(
            inputs=joined["input"],
            teacher=joined["teacher"].astype(np.float32),
            audit=joined["audit"].astype(np.bool_),
            devices=tuple(names),
        )

    def statistics(self, backbone: Digest) -> Statistics:
        """The sum of what the devices sent about features of this backbone."""
        return Statistics.from_bytes(self.operator.statistics(backbone), backbone=backbone)

    def patch_size(self, base: str, new: str) -> int | None:
        """Bytes of the patch from one release to another; None where the hub made none."""
        path = f"{self.url}/patches/{self._archives[base].hex}/{self._archives[new].hex}"
        reply = exchange(self._transport, Request("GET", path), timeout=PATIENCE, max_bytes=2**26)
        return len(reply.body) if reply.status == 200 else None

    def close(self) -> None:
        """Hangs up."""
        for client in self._clients.values():
            client.close()
        self._transport.close()


def _classes(answer: Answer) -> tuple[int, int, bool]:
    """The class answered, the class of the student alone, and whether the teacher was heard."""
    alone = answer.probabilities if answer.student is None else answer.student
    asked = answer.teacher is not None and bool(np.isfinite(answer.teacher[0, 0]))
    return int(answer.probabilities[0].argmax()), int(alone[0].argmax()), asked


def _array(tensor: Tensor) -> NDArray[np.generic]:
    return np.frombuffer(tensor.data, dtype=NUMPY_NAMES[tensor.datatype]).reshape(tensor.shape)
