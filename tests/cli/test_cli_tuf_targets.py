"""The bare TUF client: which role speaks for a target, and how its bytes are brought."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf_repositories import LATER, NOW, Client, Repository, Served

from edgestill.cli import tuf_client
from edgestill.testing.clock import FakeClock
from edgestill.trust.delegation import MAX_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
