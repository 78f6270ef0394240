"""The hub as one object: what the endpoints share, and what happens by itself.

- `open` checks everything before a port is bound; nothing runs until `start`.
- `step` lets rollouts advance. Calls that come while one is at work share the next one, so that a burst of reports costs
  two steps and not one each.
- `tick` does what time asks for: silent devices, metadata that grows old, ids of reports that need not be kept. It is called
  by a task while the hub runs, and by polls when it is due, so that a hub on a fake clock lives too.
- Heavy work (checking archives, patches, sums) runs in one thread of its own, the teacher in others: neither holds up the
  event loop, nor each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeVar, final

from edgestill.core.errors import EdgestillError
from edgestill.hub import auditing, handover, registry, rollouts, sums, timings, votings
from edgestill.hub.artefacts import Artefacts
from edgestill.hub.bell import Bell
from edgestill.hub.database import Database
from edgestill.hub.home import Home
from edgestill.hub.settings import Settings
from edgestill.hub.teacher import endpoint_of
from edgestill.infer.serving.limits import Rate, RateLimit
from edgestill.store.files import FileBlobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.infer.serving.endpoint import Endpoint

log: Final = logging.getLogger(__name__)

T = TypeVar("T")
BALLOTS: Final = Rate(0.1, 8)
"""Of a device: the longest ballot keeps the one thread for heavy work busy for half a second, and an honest device casts four in a round."""
MOST_TOLD: Final = 50
"""Lines of one step in the audit log: a rollback has one for each device."""


@final
class Hub:
    """A hub on one folder. Made by `open`.

    Attributes:
        home: the folder and its secrets.
        settings: what the operator chose.
        clock: the only source of time.
        chance: uniform numbers in [0, 1), for jitter.
        secret: fresh URL-safe secrets of 256 bits.
        database: the registry.
        artefacts: what devices download.
        endpoint: the teacher and adapters, which answer escalations; without a model where none was given.
        bell: wakes the polls that wait.
        ballots: how often a device may cast one.
        draining: whether the hub is about to end.
        trouble: what keeps the hub from doing its work, for the operator; empty if nothing does.
    """

    def __init__(
        self,
        home: Home,
        *,
        settings: Settings,
        clock: Clock,
        chance: Callable[[], float],
        secret: Callable[[], str],
        database: Database,
        endpoint: Endpoint,
    ) -> None:
        self.home = home
        self.settings = settings
        self.clock = clock
        self.chance = chance
        self.secret = secret
        self.database = database
        self.artefacts = Artefacts(home, FileBlobs.open(home.blobs), settings)
        self.endpoint = endpoint
        self.bell = Bell()
        self.draining = False
        self.trouble = ""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hub-work")
        self._publishing = asyncio.Lock()
        self._stepping = asyncio.Lock()
        # a robust sum is work for minutes
        self.agreeing = asyncio.Lock()
        self.ballots = RateLimit(BALLOTS, clock=clock)
        self._asked = self._done = 0
        self._ticked_at: float | None = None
        self._ticker: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        clock: Clock,
        chance: Callable[[], float],
        secret: Callable[[], str],
        settings: Settings | None = None,
        teacher: bytes | None = None,
        adapters: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Opens the folder that `Home.init` has made, and brings its database forward.

        Args:
            folder: the hub's home.
            clock: the only source of time.
            chance: uniform in [0, 1).
            secret: URL-safe text of 256 random bits, new each time.
            settings: the defaults where None.
            teacher: an ONNX model with an output `logits`.
            adapters: path, or what else names it in errors -> ONNX, of bundles whose policy lets nothing but features leave (`infer.adapter`).

        Raises:
            PathError, StoreError: the folder or the database is not usable.
            ModelError, EngineError: the teacher or an adapter is not.
        """
        settings = settings or Settings()
        home = Home.open(folder)
        hub = cls(
            home,
            settings=settings,
            clock=clock,
            chance=chance,
            secret=secret,
            database=Database.open(home.database),
            endpoint=endpoint_of(teacher, settings, clock=clock, adapters=adapters or {}),
        )
        hub.artefacts.load()
        return hub

    async def start(self) -> None:
        """Lets time work on the hub from now on."""
        await self.tick()
        self._ticker = asyncio.create_task(self._tick_for_ever())

    async def close(self) -> None:
        """Ends what runs and closes what is open."""
        self.drain()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        self._worker.shutdown()
        self.endpoint.close()
        await self.database.close()

    def drain(self) -> None:
        """Answers every poll that waits, and lets no further one wait."""
        self.draining = True
        self.endpoint.drain()
        self.bell.ring_all()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """The result of work that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def step(self) -> None:
        """Lets rollouts advance on what is known now, and wakes the devices that are assigned something else."""
        self._asked += 1
        mine = self._asked
        async with self._stepping:
            if self._done >= mine:
                return
            covered = self._asked
            async with self.database.write() as connection:
                now = self.clock.now()
                moved = await rollouts.advance(connection, now)
                shown = moved.told[:MOST_TOLD]
                if more := len(moved.told) - len(shown):
                    shown.append(f"{more} more of the kind")
                for line in shown:
                    about: JsonObject = {"did": line}
                    await auditing.note(connection, who=auditing.HUB, what="rollout", about=about, now=now)
            self._done = covered
        for line in moved.told:
            log.info("%s", line)
        self.bell.ring(moved.devices)

    async def tick(self) -> None:
        """Does what time asks for."""
        now = self.clock.now()
        is_first = self._ticked_at is None
        self._ticked_at = self.clock.monotonic()
        if is_first:
            await self._mirror()
        if self.artefacts.needs_freshening(now):
            await self._freshen(now)
        async with self.database.write() as connection:
            await registry.forget_reports(connection, now - self.settings.keep_reports)
            await sums.forget(connection, now - self.settings.keep_reports)
        await self._settle()
        await self.step()

    async def tick_if_due(self) -> None:
        """Ticks where the clock says that it is time; for hubs whose clock is not the machine's."""
        at = self._ticked_at
        if at is None or self.clock.monotonic() - at >= self.settings.tick:
            await self.tick()

    async def set_root(self, root: bytes) -> None:
        """Takes in the publisher's root (see `Artefacts.set_root`)."""
        async with self._publishing:
            now = self.clock.now()
            await self.in_thread(lambda: self.artefacts.set_root(root, now))
        await self._freshen(now)

    async def set_roots(self, roots: Sequence[bytes]) -> None:
        """Takes in every root of the publisher (see `Artefacts.set_roots`)."""
        async with self._publishing:
            now = self.clock.now()
            await self.in_thread(lambda: self.artefacts.set_roots(roots, now))
        await self._freshen(now)

    async def publish(self, targets: bytes) -> None:
        """Takes in the publisher's list (see `Artefacts.publish`), and lets rollouts know of it."""
        async with self._publishing:
            now = self.clock.now()
            await self.in_thread(lambda: self.artefacts.publish(targets, now))
            self.trouble = ""
        await self._mirror()
        await self.step()

    async def publish_role(self, role: str, data: bytes) -> None:
        """Takes in the list of a role that the publisher delegates to (see `Artefacts.publish_role`), and lets rollouts know of it."""
        async with self._publishing:
            now = self.clock.now()
            await self.in_thread(lambda: self.artefacts.publish_role(role, data, now))
            self.trouble = ""
        await self._mirror()
        await self.step()

    async def hand_over(self, change: Callable[[], None]) -> handover.Standing:
        """Takes a step of a hand-over between authorities (see `hub.handover`), and goes by what is there then, also where the step failed: it may have taken effect."""
        async with self._publishing:
            try:
                await self.in_thread(change)
            finally:
                standing = handover.standing_of(self.home.folder)
                self.home = replace(self.home, authority=standing.authority, number=standing.number)
                self.bell.ring_all()
        return standing

    async def _freshen(self, now: float) -> None:
        """Renews the hub's own metadata; where only the publisher can help, says so and goes on serving."""
        async with self._publishing:
            try:
                await self.in_thread(lambda: self.artefacts.freshen(now))
                self.trouble = ""
                log.debug("metadata is renewed")
            except EdgestillError as error:
                self.trouble = f"metadata cannot be renewed: {error}"
                log.warning("%s", self.trouble)

    async def _mirror(self) -> None:
        listed = self.artefacts.publication.listed
        async with self.database.read() as connection:
            unread = await registry.unread_targets(connection, listed)
        read = await self.in_thread(
            lambda: {path: self.artefacts.reference(one) for path, one in unread.items()}
        )
        async with self.database.write() as connection:
            await registry.mirror_targets(connection, listed, self.clock.now(), read)
        await self._settle()

    async def _settle(self) -> None:
        """Ends timing jobs and voting rounds that nobody lists any more, or whose time is over."""
        published, now = self.artefacts.publication, self.clock.now()
        async with self.database.write() as connection:
            freed = await timings.settle(connection, published.families, now)
            freed += await votings.settle(connection, published.proxy_sets, now)
        self.bell.ring(freed)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick)
            try:
                await self.tick()
            except Exception:
                log.exception("a tick failed; the next one tries again")
