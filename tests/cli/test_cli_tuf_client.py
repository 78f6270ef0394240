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
from tuf_repositories import LATER, NOW, ROLES, Repository, Served

from edgestill.cli import tuf_client
from edgestill.cli.tuf_client import main
from edgestill.testing.clock import FakeClock
from edgestill.trust.delegation import MAX_ROLES

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


# Delegations

GRAPHS: dict[str, tuple[list[tuple[str, str, dict[str, Any]]], str]] = {
    "one": ([("targets", "A", {})], "A"),
    "in order": ([("targets", "A", {}), ("targets", "B", {})], "AB"),
    "depth first": ([("targets", "A", {}), ("targets", "B", {}), ("A", "C", {}), ("A", "D", {})], "ACDB"),
    "deeper": ([("targets", "A", {}), ("targets", "B", {}), ("A", "C", {}), ("C", "D", {})], "ACDB"),
    "terminating": (
        [("targets", "A", {}), ("targets", "B", {}), ("A", "C", {"terminating": True}), ("A", "D", {})],
        "AC",
    ),
    "below a terminating one": (
        [("targets", "A", {}), ("targets", "B", {}), ("A", "C", {"terminating": True}), ("C", "D", {})],
        "ACD",
    ),
    "other paths": ([("targets", "A", {"paths": ["*.py"]}), ("targets", "B", {}), ("A", "C", {})], "B"),
    "a circle": (
        [("targets", "A", {}), ("targets", "B", {}), ("B", "C", {}), ("C", "D", {}), ("D", "B", {})],
        "ABCD",
    ),
    "one role of two": ([("targets", "A", {}), ("targets", "B", {}), ("B", "C", {}), ("A", "C", {})], "ACB"),
    "one role of two, by its path": (
        [("targets", "A", {}), ("targets", "B", {}), ("B", "C", {}), ("A", "C", {"paths": ["*.py"]})],
        "ABC",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_roles_are_asked_in_the_order_of_the_standard(
    client: Client, repository: Repository, name: str
) -> None:
    """Pre-order, depth first, each once (TUF 5.6.7)."""
    edges, order = GRAPHS[name]
    for by, to, how in edges:
        repository.delegate(to, by=by, **how)
    repository.everything()
    assert client.download("missing") == 1
    assert [path.split(".")[1] for path in repository.asked[4:]] == list(order)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("file", ""),
        ("README.md", "A"),
        ("releases/x/x_v1", "BC"),
        ("releases/y/y_v1.zip", "BD"),
        ("releases/z/z_v1.zip", "B"),
    ],
)
def test_a_target_is_found_where_it_is_delegated_to(
    client: Client, repository: Repository, target: str, asked: str
) -> None:
    """And nowhere else: a role that lists what it was not given lists nothing."""
    repository.delegate("A", paths=["*.doc", "*.md"])
    repository.delegate("B", paths=["releases/*/*"])
    repository.delegate("C", by="B", paths=["releases/x/*"])
    repository.delegate("D", by="B", paths=["releases/y/*.zip"])
    for role, name in (
        ("targets", "file"),
        ("A", "README.md"),
        ("C", "releases/x/x_v1"),
        ("D", "releases/y/y_v1.zip"),
        ("D", "releases/z/z_v1.zip"),
    ):
        repository.add(name, f"{name} by {role}".encode(), role=role)
    repository.everything()
    found = asked != "B"
    assert client.download(target) == (0 if found else 1)
    assert [path.split(".")[1] for path in repository.asked[4:] if path.startswith("metadata")] == list(asked)
    assert bool(client.files()) == found


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", "ü", "a b"])
def test_attack_a_role_with_an_unusual_name_stays_in_its_place(
    client: Client, repository: Repository, role: str
) -> None:
    """It is part of an address and of a file's name: both are quoted."""
    repository.delegate(role)
    repository.everything()
    assert client.download("missing") == 1
    assert repository.asked[-1].startswith("metadata/2.")
    assert "/" not in repository.asked[-1].removeprefix("metadata/")
    assert len(client.versions()) == 5
    assert sorted(one.name for one in client.metadata.parent.iterdir()) == ["initial.json", "metadata"]


def test_attack_a_role_whose_name_fills_the_disk_is_refused(
    client: Client, repository: Repository, capsys: Any
) -> None:
    """No file system has names of a kilobyte."""
    repository.delegate("x" * 1000)
    repository.everything()
    assert client.download("missing") == 1
    assert "a role's name is too long" in capsys.readouterr().err


def test_attack_a_chain_of_delegations_ends(client: Client, repository: Repository, capsys: Any) -> None:
    """Each role is a download that somebody else decides on."""
    before = "targets"
    for number in range(MAX_ROLES + 5):
        repository.delegate(f"r{number}", by=before)
        before = f"r{number}"
    repository.everything()
    assert client.download("missing") == 1
    assert "too many delegations" in capsys.readouterr().err
    assert len(repository.asked) == 4 + MAX_ROLES - 1


def test_a_delegated_role_is_kept_and_asked_for_once(client: Client, repository: Repository) -> None:
    """Until its version changes."""
    repository.delegate("A")
    repository.add("one", b"1", role="A")
    repository.everything()
    assert client.download("one") == 0
    repository.asked.clear()
    assert client.download("missing") == 1
    assert repository.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


@pytest.mark.parametrize(("renewed", "code"), [(False, 1), (True, 0)])
def test_attack_freeze_of_a_delegated_role(
    client: Client, repository: Repository, clock: FakeClock, code: int, *, renewed: bool
) -> None:
    """One that has expired lists nothing, at home as well as fetched; a newer one does."""
    signed = repository.delegate("A", expires=NOW + timedelta(days=7))
    repository.add("one", b"1", role="A")
    repository.add("two", b"2", role="A")
    repository.everything()
    assert client.download("one") == 0
    if renewed:
        signed.expires = LATER
        repository.everything()
    clock.advance(timedelta(days=18).total_seconds())
    assert client.download("two") == code
    assert set(client.files()) == ({"one", "two"} if renewed else {"one"})


def test_attack_a_delegated_role_signed_by_somebody_else(client: Client, repository: Repository) -> None:
    """Who delegates says whose signature counts."""
    repository.delegate("A")
    repository.add("one", b"1", role="A")
    repository.signers["A"] = [CryptoSigner.generate_ed25519()]
    repository.everything()
    assert client.download("one") == 1
    assert (client.files(), "A" in client.versions()) == ({}, False)


# Targets


def test_targets_are_brought_in_order_and_not_again(client: Client, repository: Repository) -> None:
    """By one client, with one refresh; what is there with the right hashes is not asked for."""
    repository.add("a", b"first")
    repository.add("deep/in/b.txt", b"second")
    repository.everything()
    assert client.download("deep/in/b.txt", "a") == 0
    files = [path for path in repository.asked if path.startswith("targets")]
    assert [path.rpartition(".")[2] for path in files] == ["txt", "a"]
    assert repository.asked.count("metadata/timestamp.json") == 1
    assert client.files() == {"a": b"first", "deep%2Fin%2Fb.txt": b"second"}
    repository.asked.clear()
    assert client.download("a", "deep/in/b.txt") == 0
    assert [path for path in repository.asked if path.startswith("targets")] == []


def test_a_target_that_changed_takes_the_place_of_the_old_one(client: Client, repository: Repository) -> None:
    """Under the same name."""
    for content in (b"old", b"new and longer"):
        repository.add("a", content)
        repository.everything()
        assert client.download("a") == 0
        assert client.files() == {"a": content}


@pytest.mark.parametrize("evil", [b"evil", b"evil and much longer than it may be", b""])
def test_attack_another_file_than_is_listed_is_not_kept(
    client: Client, repository: Repository, evil: bytes
) -> None:
    """Of another hash, endless, or none at all."""
    repository.add("a", b"good")
    repository.add("b", b"also")
    repository.everything()
    assert client.download("a") == 0
    for path in list(repository.files):
        if path.startswith("targets"):
            repository.files[path] = evil
    assert client.download("b") == 1
    assert client.files() == {"a": b"good"}


def test_of_several_targets_those_before_the_bad_one_are_there(
    client: Client, repository: Repository
) -> None:
    """The first failure ends it."""
    repository.add("a", b"good")
    repository.add("c", b"never")
    repository.everything()
    assert client.download("a", "missing", "c") == 1
    assert client.files() == {"a": b"good"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../escape", "..%2F..%2Fescape"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("a\\b", "a%5Cb"),
        ("ü ?#", "%C3%BC%20%3F%23"),
        ("..x", "..x"),
    ],
)
def test_attack_a_target_stays_in_its_folder(
    client: Client, repository: Repository, name: str, file: str
) -> None:
    """Its file has the quoted name; an address that a client would shorten is not asked for."""
    repository.add(name, b"content")
    repository.everything()
    if client.download(name) == 0:
        assert client.files() == {file: b"content"}
    else:
        assert ".." in name.split("/"), "nothing else is refused"
    above = sorted(one.name for one in client.metadata.parent.iterdir())
    assert above in (["initial.json", "metadata", "targets"], ["initial.json", "metadata"])


def test_attack_one_role_of_two_delegators_is_what_each_has_vouched_for(
    client: Client, repository: Repository
) -> None:
    """Under one version a mirror serves two contents: what A delegates to is what A's key has signed, to the end of the run."""
    repository.delegate("A", paths=["a/*"])
    repository.delegate("B", paths=["b/*"])
    repository.delegate("C", by="A", paths=["a/*"])
    ours = repository.signers["C"][0]
    theirs = CryptoSigner.generate_ed25519()
    repository.delegate("C", by="B", paths=["b/*"])
    delegations = repository.signed["B"].delegations
    delegations.roles["C"].keyids.clear()
    repository.signed["B"].add_key(theirs.public_key, "C")
    repository.add("a/one", b"1", role="C")
    repository.everything()
    honest = repository.files["metadata/2.C.json"]
    repository.add("b/two", b"2", role="C")
    repository.add("a/one", b"evil", role="C")
    repository.signers["C"] = [theirs]
    repository.write("C")
    forged = repository.files["metadata/2.C.json"]
    repository.signers["C"] = [ours]
    repository.files["metadata/2.C.json"] = honest
    repository.then["metadata/2.C.json"] = forged
    assert client.download("a/one", "b/two", "a/one") == 0
    assert client.files() == {"a%2Fone": b"1", "b%2Ftwo": b"2"}


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
