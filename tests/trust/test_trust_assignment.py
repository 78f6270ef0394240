"""Assignments: who may give them, to whom, in which order, and for how long."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import (
    EdgestillError,
    ExpiredError,
    MessageError,
    ReplayError,
    SettingError,
    TrustError,
)
from edgestill.core.jsonio import canonical, parse_object
from edgestill.core.release import MAX_COUNTER, MAX_EPOCH, Assignment, Measurement, Turn
from edgestill.trust.assignment import (
    MAX_KEYS,
    MEASURE_PREFIX,
    PREFIX,
    VOTE_PREFIX,
    AssignmentKeys,
    sign,
    sign_measurement,
    sign_turn,
    verify,
    verify_measurement,
    verify_turn,
)
from edgestill.trust.keys import SigningKey

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

NOW = 1_800_000_000
KEY = SigningKey.generate()
OTHER = SigningKey.generate()
KEYS = AssignmentKeys((KEY.public,))
ASSIGNMENT = Assignment(
    device="watch-7", counter=5, target="watch/1.0.0/x86_64-vnni-onnxruntime.esb", expires=NOW + 3600
)


def _verify(
    envelope: JsonObject, *, keys: AssignmentKeys = KEYS, seen: int = 5, now: float = NOW
) -> Assignment:
    return verify(envelope, keys=keys, device="watch-7", seen=seen, now=now)


def _forged(**changes: object) -> JsonObject:
    """An envelope whose signed part was changed after it was signed."""
    envelope = json.loads(canonical(sign(ASSIGNMENT, KEY)))
    envelope["signed"].update(changes)
    return envelope  # type: ignore[no-any-return]  # it is one


def _signed_as_is(signed: dict[str, Any]) -> JsonObject:
    """An envelope around anything at all, with a good signature."""
    sig = KEY.sign(PREFIX + canonical(signed)).hex()
    return {"signed": signed, "signatures": [{"keyid": KEY.public.keyid, "sig": sig}]}


@given(
    device=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    counter=st.integers(1, MAX_COUNTER),
    ahead=st.integers(0, 1000),
    left=st.integers(1, 10**6),
)
def test_what_was_signed_is_what_is_read(device: str, counter: int, ahead: int, left: int) -> None:
    """Sent as JSON and read again, an assignment is accepted by its device while it holds, if it is not older."""
    given_ = Assignment(device=device, counter=counter, target=ASSIGNMENT.target, expires=NOW + left)
    sent = parse_object(canonical(sign(given_, KEY)), where="poll")
    assert verify(sent, keys=KEYS, device=device, seen=max(0, counter - ahead), now=NOW + left - 1) == given_


def test_the_same_assignment_again_is_no_replay() -> None:
    """A device that polls twice gets the same counter twice, and that is fine."""
    assert _verify(sign(ASSIGNMENT, KEY), seen=ASSIGNMENT.counter) == ASSIGNMENT


def test_attack_replayed_assignment() -> None:
    """Attack: an older assignment, good in its time, is refused once a newer one was seen."""
    with pytest.raises(ReplayError, match=r"older than one already seen.*expected counter 6 or more; got 5"):
        _verify(sign(ASSIGNMENT, KEY), seen=6)


def test_attack_another_devices_assignment() -> None:
    """Attack: what was signed for one device is refused by every other."""
    with pytest.raises(ReplayError, match=r"for another device.*expected watch-8; got watch-7"):
        verify(sign(ASSIGNMENT, KEY), keys=KEYS, device="watch-8", seen=0, now=NOW)


@pytest.mark.parametrize(("now", "good"), [(NOW + 3599.9, True), (NOW + 3600, False), (NOW + 10**6, False)])
def test_attack_frozen_assignment(now: float, good: bool) -> None:
    """Attack: an assignment held back until it suits is refused from the second it expires."""
    if good:
        assert _verify(sign(ASSIGNMENT, KEY), now=now) == ASSIGNMENT
    else:
        with pytest.raises(ExpiredError, match=r"an assignment is past its time.*set the clock"):
            _verify(sign(ASSIGNMENT, KEY), now=now)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "watch-8"},
        {"counter": 6},
        {"target": "watch/6.6.6/x86_64-vnni-onnxruntime.esb"},
        {"expires": NOW + 10**6},
        {"extra": 1},
    ],
)
def test_attack_tampered_assignment(changes: dict[str, object]) -> None:
    """Attack: whatever field is changed or added after signing, the signature no longer holds."""
    with pytest.raises(TrustError, match=r"not signed as it must be.*got 0"):
        _verify(_forged(**changes))


def test_attack_unsigned_text_reaches_no_error() -> None:
    """Attack: the signature is judged first, so a forged device name is not even repeated in the error."""
    with pytest.raises(TrustError) as caught:
        _verify(_forged(device="<script>"))
    assert "script" not in str(caught.value)


def test_attack_key_not_in_root() -> None:
    """Attack: a key that root does not name can sign as it likes."""
    with pytest.raises(TrustError, match=r"keys that root.json names"):
        _verify(sign(ASSIGNMENT, OTHER))


def test_attack_borrowed_key_id() -> None:
    """Attack: another key's signature under the right key's id is no signature."""
    envelope = sign(ASSIGNMENT, OTHER)
    envelope["signatures"] = [
        {"keyid": KEY.public.keyid, "sig": OTHER.sign(PREFIX + canonical(ASSIGNMENT.as_json())).hex()}
    ]
    with pytest.raises(TrustError, match="not signed as it must be"):
        _verify(envelope)


def test_attack_signature_made_for_something_else() -> None:
    """Attack: without the prefix, metadata signed by the same online key could pass for an assignment."""
    envelope = sign(ASSIGNMENT, KEY)
    envelope["signatures"] = [
        {"keyid": KEY.public.keyid, "sig": KEY.sign(canonical(ASSIGNMENT.as_json())).hex()}
    ]
    with pytest.raises(TrustError, match="not signed as it must be"):
        _verify(envelope)


def test_attack_key_compromise_below_threshold() -> None:
    """Attack: with two signatures needed, one stolen key is not enough, however often it signs."""
    both = AssignmentKeys((KEY.public, OTHER.public), threshold=2)
    one, two = sign(ASSIGNMENT, KEY), sign(ASSIGNMENT, OTHER)
    with pytest.raises(TrustError, match=r"expected 2 good signatures.*got 1"):
        _verify(one | {"signatures": [*one["signatures"], *one["signatures"]]}, keys=both)  # type: ignore[misc]  # lists
    together = one | {"signatures": [*one["signatures"], *two["signatures"]]}  # type: ignore[misc]  # lists
    assert _verify(together, keys=both) == ASSIGNMENT


def test_a_signature_by_an_unknown_key_does_no_harm() -> None:
    """While keys change, an envelope may carry signatures that this device cannot judge."""
    envelope = sign(ASSIGNMENT, OTHER)
    envelope["signatures"] += sign(ASSIGNMENT, KEY)["signatures"]  # type: ignore[operator]  # lists
    assert _verify(envelope) == ASSIGNMENT


@pytest.mark.parametrize(
    ("envelope", "complaint"),
    [
        ({}, "signed"),
        ({"signed": [], "signatures": []}, "assignment: signed; expected {...}"),
        ({"signed": {}}, "signatures"),
        ({"signed": {}, "signatures": {}}, "a list of at most 8 items"),
        ({"signed": {}, "signatures": [[]]}, "not a JSON object"),
        ({"signed": {}, "signatures": [{"keyid": "../x", "sig": "00"}]}, "keyid"),
        ({"signed": {}, "signatures": [{"keyid": "0" * 64, "sig": "zz"}]}, "sig"),
        ({"signed": {}, "signatures": [], "more": 1}, "unknown field"),
        ({"signed": {"a": "\ud800"}, "signatures": []}, "cannot be written as JSON"),
        ({"signed": {"a": float("nan")}, "signatures": []}, "cannot be written as JSON"),
    ],
)
def test_what_is_no_envelope_is_refused(envelope: JsonObject, complaint: str) -> None:
    """Anything that is not an envelope is refused, and the field named."""
    with pytest.raises(MessageError) as caught:
        _verify(envelope)
    assert complaint in str(caught.value)


def test_attack_oversize_assignment() -> None:
    """Attack: a long signed part is refused before any signature is computed over it."""
    with pytest.raises(MessageError, match=r"an assignment is too long.*at most 4096 bytes"):
        _verify({"signed": {"pad": "x" * 5000}, "signatures": []})


def test_attack_thousands_of_signatures() -> None:
    """Attack: no more signatures are looked at than there can be keys."""
    envelope = sign(ASSIGNMENT, KEY)
    envelope["signatures"] = [*envelope["signatures"]] * (MAX_KEYS + 1)  # type: ignore[misc]  # a list
    with pytest.raises(MessageError, match="a list of at most 8 items"):
        _verify(envelope)


@pytest.mark.parametrize(
    "changes",
    [{"target": "../../etc/passwd"}, {"counter": 0}, {"counter": True}, {"device": None}, {"role": "x"}],
)
def test_a_good_signature_over_no_assignment_is_refused(changes: dict[str, Any]) -> None:
    """Even the hub's own key cannot make a device accept fields that are out of range."""
    with pytest.raises(MessageError):
        _verify(_signed_as_is({**ASSIGNMENT.as_json(), **changes}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["signed", "signatures", "keyid", "sig", "device", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(value=st.dictionaries(st.sampled_from(["signed", "signatures", "x"]), JSON))
def test_any_json_gives_a_coded_error(value: JsonObject) -> None:
    """Whatever JSON arrives, the outcome is one of our errors and never a crash."""
    with pytest.raises(EdgestillError):
        _verify(value)


def test_keys_come_back() -> None:
    """What a root holds, a device reads; the order of keys does not matter."""
    keys = AssignmentKeys((KEY.public, OTHER.public), threshold=2)
    again = AssignmentKeys.from_json(parse_object(canonical(keys.as_json()), where="root"))
    assert set(again.keys) == set(keys.keys)
    assert again.threshold == 2


@pytest.mark.parametrize("epoch", [0, 1, MAX_EPOCH])
def test_the_epoch_comes_back(epoch: int) -> None:
    """A root without one, as all were once, is of epoch 0, and none is written for it."""
    keys = AssignmentKeys((KEY.public,), epoch=epoch)
    assert AssignmentKeys.from_json(parse_object(canonical(keys.as_json()), where="root")) == keys
    assert ("epoch" in keys.as_json()) == (epoch > 0)


@given(
    one=st.tuples(st.integers(0, MAX_EPOCH), st.integers(1, MAX_COUNTER)),
    two=st.tuples(st.integers(0, MAX_EPOCH), st.integers(1, MAX_COUNTER)),
)
def test_a_later_epoch_comes_after_every_counter(one: tuple[int, int], two: tuple[int, int]) -> None:
    """Places are ordered by epoch, then by counter; all are numbers that any JSON reader keeps exactly."""
    places = [replace(ASSIGNMENT, epoch=epoch, counter=counter).place for epoch, counter in (one, two)]
    assert (places[0] < places[1]) == (one < two)
    assert (places[0] == places[1]) == (one == two)
    assert max(places) < 2**53


def test_attack_a_stolen_key_that_counted_to_the_end() -> None:
    """Attack: the largest counter, signed with a stolen key, is outlived: under the next key small counters count again."""
    last = replace(ASSIGNMENT, counter=MAX_COUNTER)
    assert _verify(sign(last, KEY)) == last
    seen = last.place
    with pytest.raises(ReplayError, match=rf"expected counter {MAX_COUNTER} or more; got 5"):
        _verify(sign(ASSIGNMENT, KEY), seen=seen)
    fresh, again = AssignmentKeys((OTHER.public,), epoch=1), replace(ASSIGNMENT, epoch=1)
    assert _verify(sign(again, OTHER), keys=fresh, seen=seen) == again
    with pytest.raises(TrustError, match="not signed as it must be"):
        _verify(sign(last, KEY), keys=fresh, seen=seen)


def test_attack_back_to_the_keys_of_an_earlier_epoch() -> None:
    """Attack: whoever could bring a device back to older keys could not bring it to follow them."""
    seen = replace(ASSIGNMENT, epoch=1, counter=1).place
    with pytest.raises(ReplayError, match="expected keys of epoch 1 or later; got epoch 0"):
        _verify(sign(replace(ASSIGNMENT, counter=MAX_COUNTER), KEY), seen=seen)


def test_attack_what_a_key_signed_in_an_earlier_epoch() -> None:
    """Attack: should a key ever count again, what it signed before does not."""
    again = AssignmentKeys((KEY.public,), epoch=2)
    for epoch in (0, 1, 3):
        with pytest.raises(ReplayError, match=rf"of another epoch.*expected epoch 2.*got {epoch}"):
            _verify(sign(replace(ASSIGNMENT, epoch=epoch), KEY), keys=again, seen=0)
    now = replace(ASSIGNMENT, epoch=2)
    assert _verify(sign(now, KEY), keys=again, seen=0) == now


def test_attack_a_counter_beyond_the_end() -> None:
    """Attack: a counter that would reach into the next epoch is no counter."""
    beyond = sign(replace(ASSIGNMENT, counter=MAX_COUNTER + 1), KEY)
    with pytest.raises(MessageError, match=f"a whole number from 1 to {MAX_COUNTER}"):
        _verify(beyond)


def _field(**changes: object) -> JsonObject:
    return {**KEYS.as_json(), **changes}  # type: ignore[dict-item]  # some are wrong on purpose


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "not a JSON object"),
        (_field(threshold=0), "threshold"),
        (_field(threshold=2), "threshold"),
        (_field(keyids=[]), "key ids and keys differ"),
        (_field(keyids=[], keys={}), "key ids and keys differ"),
        (_field(keyids=[KEY.public.keyid] * 2), "key ids and keys differ"),
        (_field(keyids=["0" * 64], keys={"0" * 64: KEY.public.as_json()}), "under an id that is not its own"),
        (_field(keyids=["k"] * (MAX_KEYS + 1)), "a list of at most 8 items"),
        (_field(more=1), "unknown field"),
        (_field(epoch=-1), "epoch"),
        (_field(epoch=MAX_EPOCH + 1), "epoch"),
        (_field(epoch="1"), "epoch"),
    ],
)
def test_unusable_keys_are_refused(value: JsonObject | None, complaint: str) -> None:
    """A field that names no keys, or a key under a name that is not its own, is refused."""
    with pytest.raises(MessageError, match=complaint):
        AssignmentKeys.from_json(value)


@pytest.mark.parametrize(
    ("keys", "threshold"), [((), 1), ((KEY.public, KEY.public), 1), ((KEY.public,), 0), ((KEY.public,), 2)]
)
def test_keys_that_could_never_assign_are_refused(keys: tuple[Any, ...], threshold: int) -> None:
    """No keys, a key twice, or a threshold that cannot be met: told when made, not when needed."""
    with pytest.raises(SettingError):
        AssignmentKeys(keys, threshold)


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCH + 1])
def test_an_epoch_out_of_range_is_refused(epoch: int) -> None:
    """Eight thousand changes of the hub's key are enough for a day each over twenty years."""
    with pytest.raises(SettingError, match="an epoch is out of range"):
        AssignmentKeys((KEY.public,), epoch=epoch)


# What is to be timed

MEASUREMENT = Measurement(
    device="watch-7", counter=5, target="timing/watch/1.0.0/x86_64-vnni-onnxruntime.est", expires=NOW + 3600
)


def _verify_measurement(
    envelope: JsonObject,
    *,
    keys: AssignmentKeys = KEYS,
    device: str = "watch-7",
    seen: int = 5,
    now: float = NOW,
) -> Measurement:
    return verify_measurement(envelope, keys=keys, device=device, seen=seen, now=now)


@given(counter=st.integers(1, MAX_COUNTER), epoch=st.integers(0, MAX_EPOCH), left=st.integers(1, 10**6))
def test_a_measurement_that_was_signed_is_what_is_read(counter: int, epoch: int, left: int) -> None:
    """Sent as JSON and read again, by the keys of its epoch, while it holds."""
    one = replace(MEASUREMENT, counter=counter, epoch=epoch, expires=NOW + left)
    sent = parse_object(canonical(sign_measurement(one, KEY)), where="poll")
    keys = AssignmentKeys((KEY.public,), epoch=epoch)
    assert _verify_measurement(sent, keys=keys, seen=one.place, now=NOW + left - 1) == one


@pytest.mark.parametrize(
    ("given_", "error"),
    [
        ({"seen": 6}, ReplayError),
        ({"device": "watch-8"}, ReplayError),
        ({"keys": AssignmentKeys((KEY.public,), epoch=1)}, ReplayError),
        ({"now": NOW + 3600}, ExpiredError),
        ({"keys": AssignmentKeys((OTHER.public,))}, TrustError),
    ],
)
def test_attack_a_measurement_is_judged_as_an_assignment_is(
    given_: dict[str, Any], error: type[EdgestillError]
) -> None:
    """Attack: replayed, another device's, of another epoch, frozen, or by another key."""
    with pytest.raises(error):
        _verify_measurement(sign_measurement(MEASUREMENT, KEY), **given_)


def _wrapped(signed: dict[str, Any], prefix: bytes) -> JsonObject:
    sig = KEY.sign(prefix + canonical(signed)).hex()
    return {"signed": signed, "signatures": [{"keyid": KEY.public.keyid, "sig": sig}]}


def test_attack_neither_kind_passes_for_the_other() -> None:
    """Attack: a signature over one kind of word is none over the other, whatever it is a word about."""
    for one in (MEASUREMENT.as_json(), ASSIGNMENT.as_json()):
        with pytest.raises(TrustError):
            _verify_measurement(_wrapped(dict(one), PREFIX))
        with pytest.raises(TrustError):
            _verify(_wrapped(dict(one), MEASURE_PREFIX))


@pytest.mark.parametrize(
    "target",
    [
        ASSIGNMENT.target,
        "timing/watch/1.0.0/x86_64-vnni-onnxruntime.esb",
        "watch/1.0.0/x86_64-vnni-onnxruntime.est",
        "timing/../1.0.0/x.est",
        "timing/watch/1.0.0/x.est/y",
        "timing/timing/watch/1.0.0/x.est",
    ],
)
def test_attack_a_measurement_names_nothing_but_a_family(target: str) -> None:
    """Attack: the hub's own key cannot have a bundle timed, nor a family run."""
    with pytest.raises(MessageError, match="measure"):
        _verify_measurement(_wrapped(MEASUREMENT.as_json() | {"measure": target}, MEASURE_PREFIX))
    with pytest.raises(MessageError, match="target"):
        _verify(_wrapped(ASSIGNMENT.as_json() | {"target": MEASUREMENT.target}, PREFIX))


# What is to be voted on

TURN = Turn(device="watch-7", counter=5, target="proxy/watch/1.0.0/samples.esp", expires=NOW + 3600)


def _verify_turn(
    envelope: JsonObject,
    *,
    keys: AssignmentKeys = KEYS,
    device: str = "watch-7",
    seen: int = 5,
    now: float = NOW,
) -> Turn:
    return verify_turn(envelope, keys=keys, device=device, seen=seen, now=now)


@given(counter=st.integers(1, MAX_COUNTER), epoch=st.integers(0, MAX_EPOCH), left=st.integers(1, 10**6))
def test_a_turn_that_was_signed_is_what_is_read(counter: int, epoch: int, left: int) -> None:
    """Sent as JSON and read again, by the keys of its epoch, while it holds."""
    one = replace(TURN, counter=counter, epoch=epoch, expires=NOW + left)
    sent = parse_object(canonical(sign_turn(one, KEY)), where="poll")
    keys = AssignmentKeys((KEY.public,), epoch=epoch)
    assert _verify_turn(sent, keys=keys, seen=one.place, now=NOW + left - 1) == one


@pytest.mark.parametrize(
    ("given_", "error"),
    [
        ({"seen": 6}, ReplayError),
        ({"device": "watch-8"}, ReplayError),
        ({"keys": AssignmentKeys((KEY.public,), epoch=1)}, ReplayError),
        ({"now": NOW + 3600}, ExpiredError),
        ({"keys": AssignmentKeys((OTHER.public,))}, TrustError),
    ],
)
def test_attack_a_turn_is_judged_as_an_assignment_is(
    given_: dict[str, Any], error: type[EdgestillError]
) -> None:
    """Attack: replayed, another device's, of another epoch, frozen, or by another key."""
    with pytest.raises(error):
        _verify_turn(sign_turn(TURN, KEY), **given_)


def test_attack_a_turn_passes_for_nothing_else_and_nothing_for_it() -> None:
    """Attack: a signature over one kind of word is none over another, whatever it is a word about."""
    for prefix in (PREFIX, MEASURE_PREFIX):
        with pytest.raises(TrustError):
            _verify_turn(_wrapped(dict(TURN.as_json()), prefix))
    with pytest.raises(TrustError):
        _verify(_wrapped(dict(ASSIGNMENT.as_json()), VOTE_PREFIX))
    with pytest.raises(TrustError):
        _verify_measurement(_wrapped(dict(MEASUREMENT.as_json()), VOTE_PREFIX))


@pytest.mark.parametrize(
    "target",
    [
        ASSIGNMENT.target,
        MEASUREMENT.target,
        "watch/1.0.0/samples.esp",
        "proxy/watch/1.0.0/x86_64-vnni-onnxruntime.esb",
        "proxy/../1.0.0/samples.esp",
        "proxy/watch/1.0.0/samples.esp/y",
    ],
)
def test_attack_a_turn_names_nothing_but_a_proxy_set(target: str) -> None:
    """Attack: the hub's own key cannot have a bundle voted on, nor a proxy set run or timed."""
    with pytest.raises(MessageError, match="vote"):
        _verify_turn(_wrapped(TURN.as_json() | {"vote": target}, VOTE_PREFIX))
    with pytest.raises(MessageError, match="target"):
        _verify(_wrapped(ASSIGNMENT.as_json() | {"target": TURN.target}, PREFIX))
    with pytest.raises(MessageError, match="measure"):
        _verify_measurement(_wrapped(MEASUREMENT.as_json() | {"measure": TURN.target}, MEASURE_PREFIX))
