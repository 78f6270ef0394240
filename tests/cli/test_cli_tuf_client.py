"""The bare TUF client against repositories of others, over HTTP: workflow, attacks, delegations, targets."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf_repositories import LATER, NOW, ROLES, Client, Repository, Served

from edgestill.cli import tuf_client
from edgestill.cli.tuf_client import main
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


TOOL = Path(__file__).resolve().parents[2] / "tools" / "tuf_conformance_client"
TOP = [
    "metadata/2.root.json",
    "metadata/timestamp.json",
    "metadata/1.snapshot.json",
    "metadata/1.targets.json",
]


@pytest.fixture
def repository() -> Repository:
    """With all roles in version 1."""
    return Repository()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """What the client takes for the time."""
    made = FakeClock(NOW.timestamp())
    monkeypatch.setattr(tuf_client, "SystemClock", lambda: made)
    return made


@pytest.fixture
def client(repository: Repository, tmp_path: Path, clock: FakeClock) -> Iterator[Client]:
    """One that trusts the repository's first root; `clock` is there before it."""
    assert clock.now() == NOW.timestamp()
    with Served(repository) as served:
        made = Client(tmp_path, served.url)
        assert made.init(repository.files["metadata/1.root.json"]) == 0
        yield made


def everywhere(version: int, **others: int) -> dict[str, int]:
    """All top-level roles in a version."""
    return dict(sorted((dict.fromkeys(ROLES, version) | others).items()))


# The workflow


def test_a_refresh_asks_in_order_and_keeps_the_newest(client: Client, repository: Repository) -> None:
    """Root as far as there is one, then timestamp, snapshot, targets; nothing again that has not changed."""
    assert client.refresh() == 0
    assert repository.asked == TOP
    assert client.versions() == everywhere(1)
    repository.asked.clear()
    assert client.refresh() == 0
    assert repository.asked == TOP[:2]


def test_a_download_refreshes_first(client: Client, repository: Repository, capsys: Any) -> None:
    """What nobody lists is told, and the metadata is new all the same."""
    assert client.download("nowhere") == 1
    assert repository.asked == TOP
    assert client.versions() == everywhere(1)
    assert "no role lists this target" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["no version", "no signature", "no json"])
def test_a_root_that_does_not_vouch_for_itself_asks_nobody(
    repository: Repository, tmp_path: Path, clock: FakeClock, harm: str
) -> None:
    """It is found before the first request."""
    root: Any = json.loads(repository.files["metadata/1.root.json"])
    if harm == "no version":
        del root["signed"]["version"]
    elif harm == "no signature":
        root["signatures"][0]["sig"] = "00" * 64
    with Served(repository) as served:
        client = Client(tmp_path, served.url)
        client.init(b"{" if harm == "no json" else json.dumps(root).encode())
        assert client.refresh() == 1
    assert repository.asked == []
    assert clock.now() == NOW.timestamp()


def test_without_a_root_nothing_is_trusted(tmp_path: Path, capsys: Any) -> None:
    """`init` was forgotten."""
    assert Client(tmp_path, "http://127.0.0.1:9").refresh() == 1
    assert "root.json" in capsys.readouterr().err


def test_a_repository_without_versions_in_names_is_read_too(tmp_path: Path, clock: FakeClock) -> None:
    """Without consistent snapshots files and targets have bare names."""
    repository = Repository(consistent=False)
    repository.add("a/b.txt", b"content")
    repository.everything()
    with Served(repository) as served:
        client = Client(tmp_path, served.url)
        client.init(repository.files["metadata/1.root.json"])
        assert client.download("a/b.txt") == 0
    assert repository.asked[2:] == ["metadata/snapshot.json", "metadata/targets.json", "targets/a/b.txt"]
    assert client.files() == {"a%2Fb.txt": b"content"}
    assert clock.now() == NOW.timestamp()


def test_a_bucket_that_forbids_what_is_not_there_ends_the_chain_of_roots(
    client: Client, repository: Repository
) -> None:
    """403 for the next root; for anything else it is a failure."""
    repository.absent = 403
    assert client.refresh() == 0
    repository.publish("snapshot", "timestamp")
    del repository.files["metadata/2.snapshot.json"]
    assert client.refresh() == 1


def test_fields_of_a_newer_writer_are_signed_over(client: Client, repository: Repository) -> None:
    """They are part of what is verified."""
    repository.root.unrecognized_fields["custom"] = {"a": [1]}
    repository.publish("root")
    assert client.refresh() == 0
    assert client.versions() == everywhere(1, root=2)


# Attacks


@pytest.mark.parametrize("with_hashes", [False, True])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_attack_rollback(client: Client, repository: Repository, role: str, *, with_hashes: bool) -> None:
    """An older version than was trusted before is refused, however well it is signed."""
    repository.with_hashes = with_hashes
    repository.everything()
    assert client.refresh() == 0
    before = client.versions()
    repository.signed[role].version = 0
    if role == "targets":
        repository.publish("targets", "snapshot", "timestamp")
    elif role == "snapshot":
        repository.publish("snapshot", "timestamp")
    else:
        repository.publish("timestamp")
    assert client.refresh() == 1
    assert client.versions()[role] == before[role]


def test_attack_another_timestamp_of_the_same_version_is_passed_over(
    client: Client, repository: Repository
) -> None:
    """The one that is trusted stays, byte for byte."""
    assert client.refresh() == 0
    before = (client.metadata / "timestamp.json").read_bytes()
    repository.signed["timestamp"].snapshot_meta.version = 100
    repository.write("timestamp")
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == before


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_attack_mix_and_match(client: Client, repository: Repository, role: str) -> None:
    """Metadata of another version, or with another hash, than is named above it."""
    repository.with_hashes = True
    repository.everything()
    assert client.refresh() == 0
    before = client.versions()
    repository.everything()
    repository.signed[role].unrecognized_fields["swapped"] = True
    repository.write(role)
    assert client.refresh() == 1
    assert client.versions()[role] == before[role]


@pytest.mark.parametrize("role", ROLES)
def test_attack_freeze(client: Client, repository: Repository, role: str) -> None:
    """What has expired is not trusted; a root is still kept, for the next one must be reached (TUF 5.3.10)."""
    assert client.refresh() == 0
    repository.signed[role].expires = NOW - timedelta(days=1)
    if role == "root":
        repository.publish("root")
    repository.everything()
    assert client.refresh() == 1
    versions = client.versions()
    assert versions["root"] == (2 if role == "root" else 1)
    kept = ROLES[: ROLES.index(role)]
    for other in ROLES[1:]:
        assert versions[other] == (2 if other in kept and role != "root" else 1)


def test_what_expired_at_home_is_a_bound_for_what_comes(
    client: Client, repository: Repository, clock: FakeClock
) -> None:
    """A device that slept: its timestamp has expired, and a newer one brings it up to date."""
    repository.signed["timestamp"].expires = NOW + timedelta(days=7)
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.signed["timestamp"].expires = NOW + timedelta(days=21)
    repository.everything()
    clock.advance(timedelta(days=18).total_seconds())
    assert client.refresh() == 0
    assert client.versions()["targets"] == 2


@pytest.mark.parametrize("role", ROLES[1:])
def test_a_version_far_ahead_is_recovered_from_by_new_keys(
    client: Client, repository: Repository, role: str
) -> None:
    """Fast-forward: with a new key for the role that vouches, lower versions count again (TUF 5.3.11)."""
    repository.signed[role].version = 1_000
    repository.everything()
    assert client.refresh() == 0
    for above in {
        "timestamp": ["timestamp"],
        "snapshot": ["snapshot", "timestamp"],
        "targets": ["snapshot", "timestamp"],
    }[role]:
        repository.rotate(above)
    repository.publish("root")
    repository.signed[role].version = 1
    repository.everything()
    assert client.refresh() == 0
    assert client.versions()[role] == 2


@pytest.mark.parametrize(
    ("threshold", "keys", "accepted"), [(1, 1, True), (3, 3, True), (3, 2, False), (2, 1, False)]
)
def test_attack_too_few_signatures(
    client: Client, repository: Repository, threshold: int, keys: int, *, accepted: bool
) -> None:
    """As many different keys as the root says, and no fewer."""
    assert client.refresh() == 0
    for _ in range(keys - 1):
        repository.new_key("snapshot")
    repository.root.roles["snapshot"].threshold = threshold
    repository.publish("root")
    repository.everything()
    assert client.refresh() == (0 if accepted else 1)
    assert client.versions()["snapshot"] == (2 if accepted else 1)


def test_attack_one_key_under_many_names_is_one_key(client: Client, repository: Repository) -> None:
    """The threshold counts keys, not their ids."""
    assert client.refresh() == 0
    signer = CryptoSigner.generate_ed25519()
    for number in range(3):
        key = signer.public_key
        copy = type(key)(f"{number:064x}", key.keytype, key.scheme, key.keyval)
        repository.root.add_key(copy, "snapshot")
    repository.signers["snapshot"].append(signer)
    repository.root.roles["snapshot"].threshold = 3
    repository.publish("root")
    repository.everything()
    assert client.refresh() == 1
    assert client.versions()["snapshot"] == 1


@pytest.mark.parametrize(
    ("chain", "reached"),
    [
        ([([1], 1, [1]), ([2], 1, [1, 2]), ([2], 1, [2])], 3),
        ([([1], 1, [1]), ([2], 1, [2])], 1),
        ([([1], 1, [1]), ([2], 1, [1])], 1),
        ([([0, 1, 2], 2, [0, 1]), ([0, 1, 3], 2, [0, 3, 1])], 2),
        ([([0, 1, 2], 2, [0, 1]), ([0, 3, 4], 2, [0, 3])], 1),
        ([([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])], 2),
        ([([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])], 1),
        ([([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [3])], 1),
    ],
)
def test_roots_follow_each_other_by_both_ones_signatures(
    tmp_path: Path, clock: FakeClock, chain: list[tuple[list[int], int, list[int]]], reached: int
) -> None:
    """Each root is signed as the one before and as itself demand: (keys, threshold, who signed)."""
    assert clock.now() == NOW.timestamp()
    repository, signers = Repository(), [CryptoSigner.generate_ed25519() for _ in range(5)]
    root = repository.root
    root.version = 0
    for keys, threshold, signed in chain:
        for key in list(root.roles["root"].keyids):
            root.revoke_key(key, "root")
        for number in keys:
            root.add_key(signers[number].public_key, "root")
        root.roles["root"].threshold = threshold
        repository.signers["root"] = [signers[number] for number in signed]
        repository.publish("root")
    with Served(repository) as served:
        client = Client(tmp_path, served.url)
        client.init(repository.files["metadata/1.root.json"])
        assert client.refresh() == (0 if reached == len(chain) else 1)
    assert (client.metadata / "root.json").read_bytes() == repository.files[f"metadata/{reached}.root.json"]


@pytest.mark.parametrize("scheme", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_usual_kind_are_known(client: Client, repository: Repository, scheme: str) -> None:
    """Others sign with other keys than we do."""
    make = {
        "ed25519": CryptoSigner.generate_ed25519,
        "ecdsa": CryptoSigner.generate_ecdsa,
        "rsa": CryptoSigner.generate_rsa,
    }
    repository.rotate("timestamp")
    repository.new_key("timestamp", make[scheme]())
    repository.root.roles["timestamp"].threshold = 2
    repository.publish("root", "timestamp")
    assert client.refresh() == 0
    assert client.versions()["timestamp"] == 2


# The command line


@pytest.mark.parametrize("left_out", ["--target-base-url", "--target-dir", "--metadata-url"])
def test_what_is_missing_is_named(client: Client, repository: Repository, capsys: Any, left_out: str) -> None:
    """With exit code 1, as every failure."""
    repository.add("a", b"1")
    repository.everything()
    whole = {
        "--metadata-dir": str(client.metadata),
        "--metadata-url": f"{client.url}/metadata",
        "--target-name": "a",
        "--target-base-url": f"{client.url}/targets",
        "--target-dir": str(client.targets),
    }
    given = [part for option, value in whole.items() if option != left_out for part in (option, value)]
    assert main([*given, "download"]) == 1
    assert left_out in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x.example/", "http://x.example/", "nothing"])
def test_an_address_that_may_not_be_asked_is_refused(client: Client, capsys: Any, url: str) -> None:
    """Without TLS only this machine."""
    assert main(["--metadata-dir", str(client.metadata), "--metadata-url", url, "refresh"]) == 1
    assert "[setting-invalid]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "edgestill.cli", "plumbing", "tuf-client"],
        [sys.executable, "-m", "edgestill.cli.tuf_client"],
        [sys.executable, str(TOOL)],
    ],
)
def test_it_is_a_program(tmp_path: Path, command: list[str]) -> None:
    """As a verb, as a module, and as the executable that the suite is given: options before the verb, as it calls it."""
    repository = Repository()
    far = LATER + timedelta(days=36_500)
    _last_until(repository, far)
    with Served(repository) as served:
        root = tmp_path / "root.json"
        root.write_bytes(repository.files["metadata/1.root.json"])
        folder = tmp_path / "metadata"
        first = subprocess.run([*command, "--metadata-dir", str(folder), "init", str(root)], check=False)
        options = ["--metadata-url", f"{served.url}/metadata/", "--metadata-dir", str(folder)]
        then = subprocess.run([*command, *options, "refresh"], check=False)
        bad = [*options, "--target-name", "none", "--target-base-url", f"{served.url}/targets/"]
        last = subprocess.run([*command, *bad, "--target-dir", str(tmp_path), "download"], check=False)
    assert (first.returncode, then.returncode, last.returncode) == (0, 0, 1)


def _last_until(repository: Repository, when: datetime) -> None:
    """The real clock is later than a test's."""
    for signed in repository.signed.values():
        signed.expires = when
    repository.publish("targets", "snapshot", "timestamp", bump=False)
    repository.write("root")


def test_the_tool_is_executable() -> None:
    """The suite runs it by its path."""
    assert TOOL.stat().st_mode & 0o111 == 0o111
