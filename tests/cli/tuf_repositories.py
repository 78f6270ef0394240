"""A repository of TUF as others may make it (any keys, delegations, thresholds), served over HTTP and recorded; and our client."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf.api.metadata import (  # type: ignore[attr-defined]  # as above
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgestill.cli.tuf_client import main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROLES = ("root", "timestamp", "snapshot", "targets")
NOW = datetime(2027, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=30)


class Repository:
    """Metadata that a test changes as it likes, and `publish`es.

    Attributes:
        signed: role -> what is signed next.
        signers: role -> who signs it.
        files: path below the server -> bytes.
        asked: paths, in the order in which they were asked for.
        absent: status of what is not there.
        then: what lies there once a file was asked for.
    """

    def __init__(self, *, consistent: bool = True) -> None:
        self.signed: dict[str, Any] = {
            "root": Root(expires=LATER, consistent_snapshot=consistent),
            "timestamp": Timestamp(expires=LATER),
            "snapshot": Snapshot(expires=LATER),
            "targets": Targets(expires=LATER),
        }
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.with_hashes = False
        self.absent = 404
        self.then: dict[str, bytes] = {}
        for role in ROLES:
            self.new_key(role)
        self.publish(*ROLES, bump=False)

    @property
    def root(self) -> Root:
        """What is signed next."""
        found = self.signed["root"]
        assert isinstance(found, Root)
        return found

    def new_key(self, role: str, signer: CryptoSigner | None = None) -> CryptoSigner:
        """One more key of a top-level role."""
        made = signer or CryptoSigner.generate_ed25519()
        self.root.add_key(made.public_key, role)
        self.signers.setdefault(role, []).append(made)
        return made

    def rotate(self, role: str) -> None:
        """Another key in the place of all."""
        for key in list(self.root.roles[role].keyids):
            self.root.revoke_key(key, role)
        self.signers[role] = []
        self.new_key(role)

    def delegate(
        self,
        to: str,
        *,
        by: str = "targets",
        paths: Sequence[str] = ("*",),
        terminating: bool = False,
        expires: datetime = LATER,
    ) -> Targets:
        """A role to which another delegates; the same name twice is one role."""
        delegator = self.signed[by]
        assert isinstance(delegator, Targets)
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, roles={})
        assert delegator.delegations.roles is not None
        if to not in self.signed:
            self.signed[to] = Targets(expires=expires)
            self.signers[to] = [CryptoSigner.generate_ed25519()]
        delegator.delegations.roles[to] = DelegatedRole(to, [], 1, terminating, list(paths))
        delegator.add_key(self.signers[to][0].public_key, to)
        made = self.signed[to]
        assert isinstance(made, Targets)
        return made

    def add(self, name: str, data: bytes, *, role: str = "targets") -> None:
        """A target that a role lists, and its file."""
        entry = TargetFile.from_data(name, data, ["sha256"])
        self.signed[role].targets[name] = entry
        folder, slash, file = name.rpartition("/")
        prefix = f"{entry.hashes['sha256']}." if self.root.consistent_snapshot else ""
        self.files[f"targets/{folder}{slash}{prefix}{file}"] = data

    def publish(self, *roles: str, bump: bool = True) -> None:
        """Signs these, each in a version more; snapshot and timestamp say what they find then."""
        for role in roles:
            signed = self.signed[role]
            signed.version += 1 if bump else 0
            if role == "snapshot":
                for other in self.signed:
                    if other not in {"root", "timestamp", "snapshot"}:
                        signed.meta[f"{other}.json"] = self._named(other)
            if role == "timestamp":
                signed.snapshot_meta = self._named("snapshot")
            self.write(role)

    def everything(self) -> None:
        """Signs all but the root, in the order in which they name each other."""
        others = [role for role in self.signed if role not in ROLES]
        self.publish(*others, "targets", "snapshot", "timestamp")

    def write(self, role: str) -> None:
        """Signs a role as it is, and lays it where it is asked for."""
        metadata = Metadata(self.signed[role])
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        self.files[self._path(role)] = metadata.to_bytes()

    def _path(self, role: str) -> str:
        versioned = role == "root" or (self.root.consistent_snapshot and role != "timestamp")
        return f"metadata/{self.signed[role].version}.{role}.json" if versioned else f"metadata/{role}.json"

    def _named(self, role: str) -> MetaFile:
        version = self.signed[role].version
        if not self.with_hashes:
            return MetaFile(version)
        return MetaFile.from_data(version, self.files[self._path(role)], ["sha256"])


class Served:
    """The repository on a port of the loopback."""

    def __init__(self, repository: Repository) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # its name there
                path = self.path.lstrip("/")
                repository.asked.append(path)
                data = repository.files.get(unquote(path))
                if unquote(path) in repository.then:
                    repository.files[unquote(path)] = repository.then.pop(unquote(path))
                if data is None:
                    self.send_error(repository.absent)
                    return
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Client:
    """The client with a folder of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.metadata, self.targets, self.url = folder / "metadata", folder / "targets", url

    def init(self, root: bytes) -> int:
        """Trusts a root."""
        self.metadata.mkdir(parents=True, exist_ok=True)
        path = self.metadata.parent / "initial.json"
        path.write_bytes(root)
        return main(["--metadata-dir", str(self.metadata), "init", str(path)])

    def refresh(self) -> int:
        """Updates its metadata."""
        return main([*self._options(), "refresh"])

    def download(self, *names: str) -> int:
        """Brings targets."""
        named = [part for name in names for part in ("--target-name", name)]
        where = ["--target-base-url", f"{self.url}/targets/", "--target-dir", str(self.targets)]
        return main([*self._options(), *named, *where, "download"])

    def versions(self) -> dict[str, int]:
        """Role -> version, of all that it keeps."""
        kept = {path.stem: json.loads(path.read_bytes()) for path in self.metadata.glob("*.json")}
        return {role: one["signed"]["version"] for role, one in sorted(kept.items())}

    def files(self) -> dict[str, bytes]:
        """Name -> bytes, of the targets it has."""
        return {path.name: path.read_bytes() for path in sorted(self.targets.glob("*"))}

    def _options(self) -> list[str]:
        return ["--metadata-url", f"{self.url}/metadata/", "--metadata-dir", str(self.metadata)]
