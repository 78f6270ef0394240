"""A real hub and real agents, each a process: published to, asked by applications, killed and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self, cast

from device_bundles import batches, release_name

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError
from edgestill.device.client import LocalClient
from edgestill.device.main import main
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import create_root, sign_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY: Final = 86_400.0
PATIENCE: Final = 30.0
BATCH: Final = 20


class Publisher:
    """Signs and uploads bundles."""

    def __init__(self, operator: OperatorClient) -> None:
        self.operator = operator
        self.root_key, self.targets_key = SigningKey.generate(), SigningKey.generate()
        online = PublicKey.from_json(operator.online_key(), where="online")
        root = create_root(
            root=[self.root_key],
            targets=[self.targets_key.public],
            online=online,
            expires=SystemClock().now() + 30 * DAY,
        )
        operator.upload_root(root)

    def publish(self, version: str, archive: bytes) -> None:
        """Uploads a bundle and lists it."""
        self.publish_as(release_name(version), archive)

    def publish_as(self, name: str, archive: bytes) -> None:
        """Uploads an archive and lists it under this name."""
        self.operator.upload_bundle(archive)
        info = TargetInfo(len(archive), Digest.of(archive))
        signed = sign_targets(
            previous=self.operator.targets(),
            add={name: info},
            keys=[self.targets_key],
            expires=SystemClock().now() + 10 * DAY,
        )
        self.operator.upload_targets(signed)


def until(what: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
    """What it gives as soon as it gives something; there is nothing to wait on but the hub's answers."""
    pause, clock = threading.Event(), SystemClock()
    end = clock.monotonic() + seconds
    while not (found := what()):
        assert clock.monotonic() < end, "it did not come true in time"
        pause.wait(0.05)
    return found


class Fleet:
    """A hub and the devices that joined it.

    Args:
        folder: for all of them.
        teacher: the hub's, as ONNX.

    Attributes:
        url: of the hub.
        operator: the line to it.
        agents: the process of each device that runs.
        kills: how often a device was killed.
    """

    def __init__(self, folder: Path, teacher: bytes) -> None:
        self._folder = folder
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = 0
        model = folder / "teacher.onnx"
        model.write_bytes(teacher)
        home = folder / "hub"
        options = [
            "up",
            "--home",
            str(home),
            "--port",
            "0",
            "--poll-interval",
            "0.1",
            "--teacher",
            str(model),
        ]
        self._hub = self._started("hub", "hub.main", options)
        try:
            self.url = self._ready("hub")
        except BaseException:
            self._end()
            raise
        token = (home / "operator.token").read_text(encoding="utf-8").strip()
        self.operator = OperatorClient(HttpTransport(), self.url, token=token)
        self.publisher = Publisher(self.operator)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        processes = [*self.agents.values(), self._hub]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def home(self, device: str) -> Path:
        """The device's folder."""
        return self._folder / device

    def join(self, device: str, *more: str) -> None:
        """Enrols a device and starts its agent, with further options."""
        options = ["--home", str(self.home(device)), "--hub", self.url, "--token", self.operator.join_token()]
        assert main(["join", *options, "--name", device]) == 0
        self.start(device, *more)

    def start(self, device: str, *more: str) -> None:
        """Starts the agent of a device that has joined, with further options."""
        options = [
            "run",
            "--home",
            str(self.home(device)),
            "--health-every",
            "100ms",
            "--health-window",
            "300ms",
            *more,
        ]
        self.agents[device] = self._started(device, "device.main", options)
        self._ready(device)

    def kill(self, device: str) -> None:
        """The power fails."""
        process = self.agents.pop(device)
        process.kill()
        process.wait(PATIENCE)
        self.kills += 1

    def roll_out(self, version: str, **options: Any) -> str:
        """Begins; the rollout's id."""
        return self.operator.start_rollout(f"tiny/{version}", **options)

    def state(self, rollout: str) -> str:
        """Of a rollout."""
        return str(self.operator.rollout(rollout)["state"])

    def ends(self, rollout: str, *, seconds: float) -> str:
        """Waits until a rollout is done or paused; which, and why."""
        found = until(
            lambda: (told := self.operator.rollout(rollout))["state"] in {"done", "paused"} and told,
            seconds=seconds,
        )
        return f"{found['state']}: {found['reason']}"

    def members(self, rollout: str) -> dict[str, str]:
        """Device -> its state in a rollout."""
        devices = cast("dict[str, dict[str, Any]]", self.operator.rollout(rollout)["devices"])
        return {name: str(one["state"]) for name, one in devices.items()}

    def serving(self, device: str) -> str | None:
        """What the device itself says that it serves; None where it does not answer."""
        with suppress(EdgestillError), LocalClient.open(self.home(device)) as client:
            return str(client.status()["release"])
        return None

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Meanwhile an application on each device asks, and goes on asking where its agent is gone for a while."""
        over = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(one, over)) for one in list(self.agents)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    @contextmanager
    def disturbed(self, seed: int, *, every: float) -> Iterator[None]:
        """Meanwhile agents are killed, one after another, chosen at random, and started again."""
        over, trouble = threading.Event(), list[BaseException]()

        def disturb() -> None:
            draw = random.Random(seed)
            try:
                while not over.wait(draw.uniform(0, 2 * every)):
                    device = draw.choice(sorted(self.agents))
                    self.kill(device)
                    self.start(device)
            except BaseException as error:
                trouble.append(error)
                raise

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert trouble == []

    def _ask(self, device: str, over: threading.Event) -> None:
        turn = 0
        while not over.wait(0.02):
            with suppress(EdgestillError), LocalClient.open(self.home(device), timeout=5) as client:
                while not over.wait(0.05):
                    turn += 1
                    client.predict(batches(BATCH, turn))

    def _started(self, name: str, module: str, options: list[str]) -> subprocess.Popen[bytes]:
        ready = self._folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"edgestill.{module}", *options, "--ready", str(ready)]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stderr=log, env=os.environ | {"EDGESTILL_LOG": "INFO", "OMP_NUM_THREADS": "1"}
            )

    def _ready(self, name: str) -> str:
        ready = self._folder / f"{name}.ready"
        until(ready.exists)
        return ready.read_text(encoding="utf-8").strip()
