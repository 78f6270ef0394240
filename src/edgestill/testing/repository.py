"""A publisher and a hub in memory: the artefact plane for tests, made with the product's own `trust.repository`.

Every file it serves lies open in `files`, so that a test can be the attacker: withhold, replace, mix, or sign with keys
it should not have. `fetch` is a `trust.client.Fetch` and hands out whatever lies there, however long it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from edgestill.core.digest import Digest
from edgestill.core.errors import NotFoundError
from edgestill.trust import repository
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo, file_of, target_path
from edgestill.trust.roles import version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgestill.core.protocols import Clock
    from edgestill.trust.roles import Delegation

DAY = 86_400.0


@final
class RepositorySimulator:
    """One repository with one online key. It starts with a root and nothing else.

    Args:
        clock: what publisher and hub go by.
        root_keys: how many root keys there are.
        threshold: how many of them must sign.
        lifetime: seconds that timestamps hold.

    Attributes:
        files: path -> bytes, as served.
        fetched: path and longest answer wanted, of every fetch.
        root: the newest root.
        delegated: role -> its newest list, of roles that the publisher delegates to.
    """

    def __init__(
        self, clock: Clock, *, root_keys: int = 1, threshold: int = 1, lifetime: float = DAY
    ) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.threshold = threshold
        self.root_keys = [SigningKey.generate() for _ in range(root_keys)]
        self.targets_key = SigningKey.generate()
        self.online = SigningKey.generate()
        self.epoch = 0
        self.files: dict[str, bytes] = {}
        self.fetched: list[tuple[str, int]] = []
        self.targets: bytes | None = None
        self.fresh: repository.Fresh | None = None
        self.delegated: dict[str, bytes] = {}
        self.root = self._new_root(1)
        self._serve(self.root)

    def fetch(self, path: str, at_most: int) -> bytes:
        """What lies there; NotFoundError where nothing does."""
        self.fetched.append((path, at_most))
        if path not in self.files:
            raise NotFoundError(
                "no such file",
                where=path,
                expected="a file of the repository",
                got=repr(path),
                fix="publish it first",
            )
        return self.files[path]

    def publish(self, bundles: Mapping[str, bytes], *, retire: Iterable[str] = ()) -> None:
        """Lists and serves bundles, retires others, and freshens."""
        added = {name: TargetInfo(len(data), Digest.of(data)) for name, data in bundles.items()}
        self.targets = repository.sign_targets(
            previous=self.targets,
            add=added,
            remove=retire,
            keys=[self.targets_key],
            expires=self.clock.now() + 90 * DAY,
        )
        for name, data in bundles.items():
            self.files[target_path(name, added[name].digest)] = data
        self._serve(self.targets)
        self.freshen()

    def delegate(self, *roles: Delegation, revoke: Iterable[str] = ()) -> None:
        """Lets others list bundles from now on, takes roles away, and freshens."""
        self.targets = repository.sign_targets(
            previous=self.targets,
            add={},
            keys=[self.targets_key],
            expires=self.clock.now() + 90 * DAY,
            delegate=roles,
            undelegate=revoke,
        )
        self._serve(self.targets)
        self.freshen()

    def publish_role(
        self,
        role: str,
        bundles: Mapping[str, bytes],
        key: SigningKey,
        *,
        least: int = 1,
        anew: bool = False,
    ) -> bytes:
        """Lists and serves bundles under a role, signed by this key, and freshens; the list.

        Args:
            role: that lists them.
            bundles: target name -> archive.
            key: signs.
            least: a version that the list has at least.
            anew: begins a list, whatever there was before; else the list until now goes on.
        """
        added = {name: TargetInfo(len(data), Digest.of(data)) for name, data in bundles.items()}
        made = repository.sign_targets(
            previous=None if anew else self.delegated.get(role),
            add=added,
            keys=[key],
            expires=self.clock.now() + 30 * DAY,
            least=least,
        )
        for name, data in bundles.items():
            self.files[target_path(name, added[name].digest)] = data
        self.serve_role(role, made)
        return made

    def serve_role(self, role: str, data: bytes) -> None:
        """Serves a role's list, whoever has signed it, and freshens."""
        self.delegated[role] = data
        self.files[f"metadata/{file_of(role, version_of(data))}"] = data
        self.freshen()

    def freshen(self) -> None:
        """Signs a new timestamp, and a new snapshot where one is needed."""
        assert self.targets is not None, "publish something first"
        self.fresh = repository.freshen(
            root=self.root,
            targets=self.targets,
            previous_snapshot=None if self.fresh is None else self.fresh.snapshot,
            previous_timestamp=None if self.fresh is None else self.fresh.timestamp,
            online=self.online,
            now=self.clock.now(),
            lifetime=self.lifetime,
            delegated=self.delegated,
        )
        self._serve(self.fresh.snapshot)
        self._serve(self.fresh.timestamp)

    def rotate(self, *, root: bool = False, targets: bool = False, online: bool = False) -> None:
        """Serves the next root, with new keys for the roles named; call `publish` or `freshen` after it."""
        retiring = self.root_keys
        if root:
            self.root_keys = [SigningKey.generate() for _ in retiring]
        if online:
            self.online = SigningKey.generate()
            self.epoch += 1
        if targets:
            self.targets_key = SigningKey.generate()
            self.targets = None if self.targets is None else self._renew(self.targets)
        version = int(repository.file_name(self.root).partition(".")[0]) + 1
        self.root = repository.countersign(self._new_root(version), keys=retiring)
        self._serve(self.root)

    def _new_root(self, version: int) -> bytes:
        return repository.create_root(
            root=self.root_keys,
            targets=[self.targets_key.public],
            online=self.online.public,
            expires=self.clock.now() + 365 * DAY,
            version=version,
            threshold=self.threshold,
            epoch=self.epoch,
        )

    def _renew(self, targets: bytes) -> bytes:
        listed = repository.countersign(targets, keys=[self.targets_key])
        renewed = repository.sign_targets(
            previous=listed, add={}, keys=[self.targets_key], expires=self.clock.now() + 90 * DAY
        )
        self._serve(renewed)
        return renewed

    def _serve(self, metadata: bytes) -> None:
        self.files[f"metadata/{repository.file_name(metadata)}"] = metadata
