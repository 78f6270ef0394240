"""Roles that a publisher delegates to: what they may list, what a stolen key of one can do, and how it is outlived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_forging import forge, signed_part
from tuf.api.metadata import Targets  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, ExpiredError, NotFoundError, SettingError, TrustError
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import DAY, RepositorySimulator
from edgestill.trust.client import Listing, TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo, read
from edgestill.trust.repository import check_targets, sign_targets
from edgestill.trust.roles import (
    MAX_LIST_BYTES,
    MOST_FIRST,
    MOST_ROLES,
    MOST_STEPS,
    Delegation,
    check_delegated,
    check_signed,
    delegations_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = FakeClock().now()
CLASS, OTHER = "x86_64-vnni-onnxruntime", "aarch64-neon-onnxruntime"
AUTO = f"auto/{CLASS}"
PUBLISHER, LAB, MAKER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()


def name(version: str, *, of: str = "watch", hardware_class: str = CLASS) -> str:
    """A target's name."""
    return f"{of}/{version}/{hardware_class}.esb"


def info(data: bytes = b"one") -> TargetInfo:
    """Of an archive."""
    return TargetInfo(len(data), Digest.of(data))


def auto(key: SigningKey = LAB, **changes: Any) -> Delegation:
    """The lab's role for unattended updates of watches."""
    values: dict[str, Any] = {"role": AUTO, "keys": (key.public,), "names": ("watch",)}
    return Delegation(**(values | changes))


def by_class(key: SigningKey = MAKER, **changes: Any) -> Delegation:
    """Who builds for the hardware may list what is for it."""
    values: dict[str, Any] = {"role": CLASS, "keys": (key.public,)}
    return Delegation(**(values | changes))


def publisher_list(*roles: Delegation, **add: TargetInfo) -> bytes:
    """A publisher's list with these roles."""
    return sign_targets(
        previous=None,
        add={name(version): one for version, one in add.items()},
        keys=[PUBLISHER],
        expires=NOW + DAY,
        delegate=roles,
    )


def role_list(add: dict[str, TargetInfo], key: SigningKey = LAB, **changes: Any) -> bytes:
    """A role's list."""
    values: dict[str, Any] = {"previous": None, "keys": [key], "expires": NOW + DAY}
    return sign_targets(add=add, **(values | changes))


def taken(data: bytes, *, role: str = AUTO, last: int = 0, **changes: Any) -> dict[str, TargetInfo]:
    """What a hub takes in of a role's list."""
    values: dict[str, Any] = {"targets": publisher_list(auto(), by_class()), "now": NOW, "others": {}}
    return check_delegated(role=role, data=data, last=last, **(values | changes))


# What may be delegated


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"role": "targets"}, "not a role that may list bundles"),
        ({"role": "auto/any"}, "not a role that may list bundles"),
        ({"role": "auto/auto/x"}, "not a role that may list bundles"),
        ({"role": "AUTO/x"}, "not a role that may list bundles"),
        ({"role": "auto/"}, "not a role that may list bundles"),
        ({"role": "../x"}, "not a role that may list bundles"),
        ({"role": "*"}, "not a role that may list bundles"),
        ({"keys": ()}, "the keys of a role are unusable"),
        ({"keys": (LAB.public, LAB.public)}, "the keys of a role are unusable"),
        ({"threshold": 0}, "a threshold that cannot be met"),
        ({"threshold": 2}, "a threshold that cannot be met"),
        ({"names": ()}, "a role for unattended updates without a name"),
        ({"names": ("*",)}, "the names of a role are unusable"),
        ({"names": ("wat?h",)}, "the names of a role are unusable"),
        ({"names": ("watch/1.0.0",)}, "the names of a role are unusable"),
        ({"names": tuple(f"n{number}" for number in range(33))}, "the names of a role are unusable"),
    ],
)
def test_a_role_that_nobody_should_have_is_not_made(changes: Any, complaint: str) -> None:
    """No name that means another, no wildcard, none for all hardware, and no list without bounds for a key that nobody watches."""
    with pytest.raises(SettingError, match=complaint):
        auto(**changes)


def test_a_role_by_class_may_list_any_name_of_its_class() -> None:
    """And one for unattended updates the names it was given."""
    assert by_class().paths == (f"*/*/{CLASS}.esb",)
    assert auto(names=("watch", "lamp")).paths == (f"watch/*/{CLASS}.esb", f"lamp/*/{CLASS}.esb")


def test_roles_are_searched_by_class_first() -> None:
    """Whatever the order in which they were named; those for unattended updates end the search."""
    signed = publisher_list(auto(), by_class(), Delegation(role="any", keys=(MAKER.public,)))
    assert list(delegations_of(signed)) == ["any", CLASS, AUTO]
    parsed = read(Targets, signed).signed.delegations
    assert parsed is not None
    assert parsed.roles is not None
    assert [role.terminating for role in parsed.roles.values()] == [False, False, True]
    assert [one for one, _ in parsed.get_roles_for_target(name("1.0.0"))] == [CLASS, AUTO]
    assert list(parsed.get_roles_for_target(name("1.0.0", hardware_class=OTHER))) == []


def test_roles_are_replaced_and_taken_away() -> None:
    """A role's new key counts instead of its old one; with the last role the field goes, and keys that nobody has are not left in it."""
    first = publisher_list(auto(), by_class())
    key = SigningKey.generate()
    second = sign_targets(
        previous=first, add={}, keys=[PUBLISHER], expires=NOW + DAY, delegate=[auto(key)], undelegate=[CLASS]
    )
    assert delegations_of(second) == {AUTO: auto(key)}
    assert LAB.public.keyid.encode() not in second
    third = sign_targets(previous=second, add={}, keys=[PUBLISHER], expires=NOW + DAY, undelegate=[AUTO])
    assert "delegations" not in signed_part(third)
    with pytest.raises(NotFoundError, match="no such role is delegated to"):
        sign_targets(previous=third, add={}, keys=[PUBLISHER], expires=NOW + DAY, undelegate=[AUTO])


def test_roles_stay_when_bundles_are_published() -> None:
    """The next list goes on with them."""
    second = sign_targets(
        previous=publisher_list(auto()), add={name("1.0.0"): info()}, keys=[PUBLISHER], expires=NOW + DAY
    )
    assert delegations_of(second) == {AUTO: auto()}


def test_there_are_not_too_many_roles() -> None:
    """A snapshot that names them all must stay short enough for a device."""
    roles = [by_class(role=f"c{number}") for number in range(MOST_ROLES)]
    assert len(delegations_of(publisher_list(*roles))) == MOST_ROLES
    with pytest.raises(SettingError, match="too many roles"):
        publisher_list(*roles, by_class(role="one-more"))


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.booleans(), st.sampled_from([CLASS, OTHER, "c-1"])),
        st.tuples(st.lists(names, min_size=1, max_size=3, unique=True), st.integers(1, 3), st.integers(1, 3)),
        max_size=5,
    )
)
def test_what_is_delegated_is_read_as_it_was_meant(wanted: Any) -> None:
    """Signed and read again, every role says the same; and a hub takes such a list in."""
    keys = [SigningKey.generate() for _ in range(3)]
    roles = {
        f"auto/{hardware_class}" if is_auto else hardware_class: Delegation(
            role=f"auto/{hardware_class}" if is_auto else hardware_class,
            keys=tuple(key.public for key in keys[:count]),
            threshold=min(threshold, count),
            names=tuple(given_names),
        )
        for (is_auto, hardware_class), (given_names, count, threshold) in wanted.items()
    }
    signed = publisher_list(*roles.values())
    assert delegations_of(signed) == roles
    for role, one in roles.items():
        listed = {name("1.2.3", of=one.names[0], hardware_class=one.hardware_class): info()}
        assert check_signed(
            signed, role, sign_targets(previous=None, add=listed, keys=keys, expires=NOW + DAY)
        )


def _paths(signed: dict[str, Any], *paths: str) -> None:
    signed["delegations"]["roles"][0]["paths"] = list(paths)


@pytest.mark.parametrize(
    "change",
    [
        lambda signed: _paths(signed, f"*/*/{OTHER}.esb"),
        lambda signed: _paths(signed, "*/*/*.esb"),
        lambda signed: _paths(signed, "*"),
        _paths,
        lambda signed: _paths(signed, f"watch/*/{CLASS}.esb", f"*/*/{CLASS}.esb"),
        lambda signed: (
            signed["delegations"]["roles"][0].pop("paths")
            and signed["delegations"]["roles"][0].update(path_hash_prefixes=["00"])
        ),
        lambda signed: signed["delegations"]["roles"][0].update(name="auto/any"),
        lambda signed: signed["delegations"]["roles"][0].update(threshold=3),
        lambda signed: signed["delegations"]["roles"][0].update(keyids=["0" * 64]),
        lambda signed: signed["delegations"]["roles"][0].update(terminating=True),
        lambda signed: signed["delegations"]["roles"][0].update(note="a field of later"),
        lambda signed: signed["delegations"]["roles"].reverse(),
    ],
)
def test_a_list_with_delegations_of_another_kind_is_refused(
    change: Callable[[dict[str, Any]], object],
) -> None:
    """A publisher who signs with another tool is told at the hub, before a device meets what it was not built for."""
    root_key, online = SigningKey.generate(), SigningKey.generate()
    from edgestill.trust.root import create_root

    root = create_root(root=[root_key], targets=[PUBLISHER.public], online=online.public, expires=NOW + DAY)
    good = publisher_list(by_class(), auto())
    assert check_targets(root=root, previous=None, targets=good, now=NOW) == {}
    with pytest.raises(TrustError):
        check_targets(root=root, previous=None, targets=forge(good, change, [PUBLISHER]), now=NOW)


# What a hub takes in of a role's list


def test_a_list_that_the_publisher_vouches_for_is_taken() -> None:
    """Of its key, its class and its names."""
    assert taken(role_list({name("1.1.0"): info()})) == {name("1.1.0"): info()}
    assert taken(role_list({name("1.0.0", of="lamp"): info()}, MAKER), role=CLASS)


@pytest.mark.parametrize("thief", [MAKER, PUBLISHER, SigningKey.generate()])
def test_attack_a_role_signed_by_another_key_is_refused(thief: SigningKey) -> None:
    """By a stranger's, by another role's, and by the publisher's own, which has its own list."""
    with pytest.raises(TrustError, match="metadata is refused"):
        taken(role_list({name("1.1.0"): info()}, thief))


def test_attack_one_of_two_keys_is_not_enough() -> None:
    """The role's threshold is the publisher's word, not the list's."""
    both = publisher_list(auto(keys=(LAB.public, MAKER.public), threshold=2))
    with pytest.raises(TrustError):
        taken(role_list({name("1.1.0"): info()}), targets=both)
    signed = sign_targets(previous=None, add={name("1.1.0"): info()}, keys=[LAB, MAKER], expires=NOW + DAY)
    assert taken(signed, targets=both)


@pytest.mark.parametrize(
    "foreign",
    [
        name("1.1.0", hardware_class=OTHER),
        name("1.1.0", hardware_class="any"),
        name("1.1.0", of="lamp"),
        name("1.1.0", of="watch2"),
    ],
)
def test_attack_a_stolen_lab_key_lists_what_is_not_its_own(foreign: str) -> None:
    """Another class, any hardware, another product: the whole list is refused, where a person sees it."""
    with pytest.raises(TrustError, match="a name that this role may not list"):
        taken(role_list({name("1.1.0"): info(), foreign: info()}))


@pytest.mark.parametrize("who", ["targets", CLASS])
def test_attack_a_stolen_lab_key_gives_a_listed_name_another_content(who: str) -> None:
    """Devices would never see it, for others are asked first; the hub refuses it all the same. The same content does no harm."""
    listed = {name("1.1.0"): (who, info(b"good"))}
    with pytest.raises(ConflictError, match="a name that is listed already, with another content"):
        taken(role_list({name("1.1.0"): info(b"evil")}), others=listed)
    assert taken(role_list({name("1.1.0"): info(b"good")}), others=listed)


def test_attack_a_role_that_delegates_further_is_refused() -> None:
    """Who may list unattended updates could name a role that is taken for one by class."""
    nested = role_list({}, delegate=[by_class(LAB)])
    with pytest.raises(TrustError, match="a role that delegates further"):
        taken(nested)


@pytest.mark.parametrize(
    ("last", "version", "is_taken"),
    [
        (0, 1, True),
        (4, 5, True),
        (5, 5, False),
        (6, 5, False),
        (0, MOST_FIRST, True),
        (0, MOST_FIRST + 1, False),
        (1, MOST_STEPS + 1, True),
        (1, MOST_STEPS + 2, False),
        (0, 2**31, False),
        (7, 2**53, False),
    ],
)
def test_attack_a_version_that_goes_back_or_leaps(last: int, version: int, *, is_taken: bool) -> None:
    """Back would bring back what was retired; a leap would leave no number for the key that replaces a stolen one (TUF 1.5.2)."""
    data = role_list({}, least=version)
    if is_taken:
        taken(data, last=last)
    else:
        with pytest.raises(TrustError, match=r"the list (does not grow|grows too far at once)"):
            taken(data, last=last)


def test_a_list_past_its_time_and_one_that_is_too_long_are_refused() -> None:
    """A megabyte for a role, and a date."""
    with pytest.raises(ExpiredError):
        taken(role_list({}), now=NOW + 2 * DAY)
    with pytest.raises(TrustError, match=r"a role's list is too long|metadata is refused"):
        taken(role_list({}) + b" " * MAX_LIST_BYTES)


def test_a_role_that_nobody_has_named_is_refused() -> None:
    """Whatever it is called."""
    for role in ("auto/other", OTHER, "targets", "../x"):
        with pytest.raises(NotFoundError, match="delegates nothing to this role"):
            taken(role_list({}), role=role)


# What a device believes


@pytest.fixture
def clock() -> FakeClock:
    """The time of everybody."""
    return FakeClock()


@pytest.fixture
def repository(clock: FakeClock) -> RepositorySimulator:
    """One whose publisher has listed 1.0.0, and delegates to the lab."""
    made = RepositorySimulator(clock)
    made.publish({name("1.0.0"): b"good"})
    made.delegate(auto(), by_class())
    made.publish_role(CLASS, {name("1.0.5"): b"maker"}, MAKER)
    made.publish_role(AUTO, {name("1.1.0"): b"lab"}, LAB)
    return made


@pytest.fixture
def client(repository: RepositorySimulator, clock: FakeClock, tmp_path: Path) -> TrustedClient:
    """A device that has refreshed."""
    made = client_of(repository, clock, tmp_path)
    made.refresh()
    return made


def client_of(repository: RepositorySimulator, clock: FakeClock, folder: Path) -> TrustedClient:
    """A device that knows the first root."""
    root = repository.files["metadata/1.root.json"]
    return TrustedClient(KeptMetadata(folder / "tuf"), root=root, fetch=repository.fetch, clock=clock)


def test_a_device_knows_who_lists_a_bundle(client: TrustedClient) -> None:
    """The publisher, who builds for its class, or the lab; and `target` speaks for the publisher alone."""
    assert client.listing(name("1.0.0")) == Listing("targets", info(b"good"))
    assert client.listing(name("1.0.5")) == Listing(CLASS, info(b"maker"))
    assert client.listing(name("1.1.0")) == Listing(AUTO, info(b"lab"))
    for unknown in ("9.9.9", "1.2.0"):
        with pytest.raises(TrustError, match="the publisher does not list this target"):
            client.listing(name(unknown))
    with pytest.raises(TrustError, match="does not list this target"):
        client.target(name("1.1.0"))


def test_a_role_is_fetched_only_where_somebody_looks_for_something(
    client: TrustedClient, repository: RepositorySimulator
) -> None:
    """What the publisher lists itself costs no look at others' lists; a role's file has a quoted name, and is fetched once."""
    client.listing(name("1.0.0"))
    assert not any("auto" in path for path, _ in repository.fetched)
    client.listing(name("1.1.0"))
    client.listing(name("1.1.0"))
    client.refresh()
    client.listing(name("1.1.0"))
    assert [path for path, _ in repository.fetched if "auto" in path] == [f"metadata/1.auto%2F{CLASS}.json"]


def test_attack_a_stolen_lab_key_cannot_shadow_what_the_publisher_lists(
    client: TrustedClient, repository: RepositorySimulator
) -> None:
    """Served by a stolen hub that looks at nothing: targets.json is searched first, roles by class second (pre-order, TUF 5.6.7)."""
    repository.publish_role(
        AUTO,
        {name("1.0.0"): b"evil", name("1.0.5"): b"evil", name("1.2.0"): b"evil"},
        LAB,
        anew=True,
        least=2,
    )
    client.refresh()
    assert client.listing(name("1.0.0")) == Listing("targets", info(b"good"))
    assert client.listing(name("1.0.5")) == Listing(CLASS, info(b"maker"))
    assert client.listing(name("1.2.0")).role == AUTO


@pytest.mark.parametrize("foreign", [name("1.1.0", hardware_class=OTHER), name("2.0.0", of="lamp")])
def test_attack_a_stolen_lab_key_and_a_stolen_hub_reach_no_other_class_or_name(
    client: TrustedClient, repository: RepositorySimulator, foreign: str
) -> None:
    """The role is not even asked about names that the publisher did not give it."""
    repository.publish_role(AUTO, {foreign: b"evil"}, LAB, anew=True, least=2)
    client.refresh()
    with pytest.raises(TrustError, match="the publisher does not list this target"):
        client.listing(foreign)


@pytest.mark.parametrize("called", ["friend", OTHER, "any"])
def test_attack_a_stolen_lab_key_names_a_role_that_looks_harmless(
    client: TrustedClient, repository: RepositorySimulator, called: str
) -> None:
    """A device must not take for a role by class what only the lab has named."""
    thief = SigningKey.generate()
    nested = forge(
        repository.publish_role(AUTO, {}, LAB, anew=True, least=2),
        lambda signed: signed.update(
            delegations={
                "keys": {thief.public.keyid: thief.public.as_json()},
                "roles": [
                    {
                        "name": called,
                        "keyids": [thief.public.keyid],
                        "threshold": 1,
                        "terminating": False,
                        "paths": ["*/*/*"],
                    }
                ],
            }
        ),
        [LAB],
    )
    repository.serve_role(AUTO, nested)
    repository.publish_role(called, {name("1.2.0"): b"evil"}, thief, anew=True)
    client.refresh()
    assert client.find(name("1.2.0")) is not None, "any other client of TUF would take it"
    with pytest.raises(TrustError, match="a role that the publisher has not named"):
        client.listing(name("1.2.0"))


def test_attack_mix_and_match_of_role_lists(client: TrustedClient, repository: RepositorySimulator) -> None:
    """An older list of the role, or another of the same version, does not go with the snapshot."""
    old = repository.delegated[AUTO]
    repository.publish_role(AUTO, {name("1.2.0"): b"newer"}, LAB)
    other = sign_targets(previous=old, add={name("1.2.0"): info(b"evil")}, keys=[LAB], expires=NOW + DAY)
    for swapped in (old, other):
        repository.files[f"metadata/2.auto%2F{CLASS}.json"] = swapped
        client.refresh()
        with pytest.raises(TrustError):
            client.listing(name("1.2.0"))
    assert client.listing(name("1.0.0")).role == "targets", "the publisher's own list does not depend on it"


def test_attack_rollback_of_a_role_list(
    client: TrustedClient, repository: RepositorySimulator, tmp_path: Path
) -> None:
    """A stolen hub that names the older list again is refused: a snapshot's versions do not go back (TUF 5.5.5)."""
    old = repository.delegated[AUTO]
    repository.publish_role(AUTO, {name("1.2.0"): b"newer"}, LAB)
    client.refresh()
    assert repository.fresh is not None
    rolled_back = forge(
        repository.fresh.snapshot,
        lambda signed: (
            signed.update(version=signed["version"] + 1),
            signed["meta"][f"{AUTO}.json"].update(
                version=1, length=len(old), hashes={"sha256": Digest.of(old).hex}
            ),
        ),
        [repository.online],
    )
    version = signed_part(rolled_back)["version"]
    repository.files[f"metadata/{version}.snapshot.json"] = rolled_back
    stamp = forge(
        repository.fresh.timestamp,
        lambda signed: signed.update(
            version=signed["version"] + 1,
            meta={
                "snapshot.json": {
                    "version": version,
                    "length": len(rolled_back),
                    "hashes": {"sha256": Digest.of(rolled_back).hex},
                }
            },
        ),
        [repository.online],
    )
    repository.files["metadata/timestamp.json"] = stamp
    with pytest.raises(TrustError, match="version"):
        client.refresh()


def test_a_role_past_its_time_lists_nothing(
    client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A lab that was given up stops by itself, while the publisher's own list goes on; also where nothing is fetched in between."""
    assert client.listing(name("1.1.0")).role == AUTO
    clock.advance(31 * DAY)
    with pytest.raises(ExpiredError):
        client.listing(name("1.1.0"))
    repository.freshen()
    client.refresh()
    assert client.listing(name("1.0.0")).role == "targets"
    with pytest.raises(ExpiredError):
        client.listing(name("1.1.0"))


def test_a_role_by_class_past_its_time_hides_the_unattended_one_behind_it(
    client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A search does not pass by what must not be trusted any more; signed anew, or taken away by the publisher, it does."""
    repository.publish_role(CLASS, {name("1.2.0"): b"two"}, MAKER)
    clock.advance(31 * DAY)
    repository.publish_role(AUTO, {name("1.3.0"): b"three"}, LAB)
    repository.freshen()
    client.refresh()
    assert client.listing(name("1.0.0")).role == "targets"
    with pytest.raises(ExpiredError):
        client.listing(name("1.3.0"))
    repository.publish_role(CLASS, {}, MAKER)
    client.refresh()
    assert client.listing(name("1.3.0")).role == AUTO


def test_a_role_is_believed_after_a_restart_without_network(
    client: TrustedClient, repository: RepositorySimulator, clock: FakeClock, tmp_path: Path
) -> None:
    """Its list is kept beside the others, and verified again."""
    client.listing(name("1.1.0"))
    repository.files.clear()
    repository.files["metadata/1.root.json"] = repository.root
    again = client_of(repository, clock, tmp_path)
    assert again.restore()
    assert again.listing(name("1.1.0")) == Listing(AUTO, info(b"lab"))


def test_attack_a_revoked_role_lists_nothing(client: TrustedClient, repository: RepositorySimulator) -> None:
    """Once the publisher has taken it away, whatever the device had verified before; the snapshot names it still, as it must (TUF 5.5.5)."""
    assert client.listing(name("1.1.0")).role == AUTO
    repository.delegate(revoke=[AUTO])
    client.refresh()
    with pytest.raises(TrustError, match="the publisher does not list this target"):
        client.listing(name("1.1.0"))
    assert repository.fresh is not None
    assert f"{AUTO}.json" in signed_part(repository.fresh.snapshot)["meta"]


def test_attack_a_stolen_lab_key_is_replaced(client: TrustedClient, repository: RepositorySimulator) -> None:
    """What the old key listed is gone with it, also what it signs afterwards; the new one's list goes on above its version."""
    repository.publish_role(AUTO, {name("6.6.6"): b"evil"}, LAB)
    client.refresh()
    assert client.listing(name("6.6.6")).role == AUTO
    fresh = SigningKey.generate()
    repository.delegate(auto(fresh))
    client.refresh()
    with pytest.raises(TrustError):
        client.listing(name("6.6.6"))
    repository.publish_role(AUTO, {name("1.2.0"): b"clean"}, fresh, anew=True, least=3)
    client.refresh()
    assert client.listing(name("1.2.0")) == Listing(AUTO, info(b"clean"))
    with pytest.raises(TrustError, match="does not list this target"):
        client.listing(name("6.6.6"))
    repository.publish_role(AUTO, {name("6.6.6"): b"evil"}, LAB, anew=True, least=4)
    client.refresh()
    with pytest.raises(TrustError):
        client.listing(name("6.6.6"))
    assert client.listing(name("1.0.0")).role == "targets"


def test_attack_a_fast_forward_of_a_role_is_recovered_from(
    client: TrustedClient, repository: RepositorySimulator
) -> None:
    """A stolen lab key at a stolen hub has signed a version without a successor: a root with a new key of the hub begins anew (TUF 5.3.11)."""
    repository.publish_role(AUTO, {name("6.6.6"): b"evil"}, LAB, least=2**31 - 1)
    client.refresh()
    assert client.listing(name("6.6.6")).role == AUTO
    fresh = SigningKey.generate()
    del repository.delegated[AUTO]
    repository.delegate(auto(fresh))
    with pytest.raises(TrustError, match="older than the one already served"):
        repository.publish_role(AUTO, {name("1.2.0"): b"clean"}, fresh, anew=True)
    repository.rotate(online=True)
    repository.publish_role(AUTO, {name("1.2.0"): b"clean"}, fresh, anew=True)
    client.refresh()
    assert client.listing(name("1.2.0")) == Listing(AUTO, info(b"clean"))
    with pytest.raises(TrustError, match="does not list this target"):
        client.listing(name("6.6.6"))
