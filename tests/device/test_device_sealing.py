"""Seals: what was written opens at its place, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import SettingError
from edgestill.device.sealing import MARK_BYTES, Checked, Seal, Sealed, seal_of

ID, OTHER = b"i" * 16, b"o" * 16
KEY = bytes(range(32))
SEALS: list[Seal] = [Checked(ID), Sealed(ID, KEY)]

bodies = st.binary(max_size=300)
places = st.binary(max_size=20)


@pytest.mark.parametrize("seal", SEALS, ids=["checked", "sealed"])
@given(body=bodies, place=places)
def test_what_is_closed_opens_at_its_place(seal: Seal, body: bytes, place: bytes) -> None:
    """And is longer by the overhead; its beginning is not zeros."""
    record = seal.close(place, body)
    assert seal.open(place, record) == body
    assert len(record) == len(body) + seal.overhead
    assert any(record[:MARK_BYTES])


@pytest.mark.parametrize("seal", SEALS, ids=["checked", "sealed"])
@given(body=bodies, place=places, at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_does_not_open(seal: Seal, body: bytes, place: bytes, at: int, bit: int) -> None:
    """Wherever it is."""
    record = bytearray(seal.close(place, body))
    record[at % len(record)] ^= 1 << bit
    assert seal.open(place, bytes(record)) is None


@pytest.mark.parametrize("seal", SEALS, ids=["checked", "sealed"])
@given(body=bodies, place=places, other=places, cut=st.integers(1, 400))
def test_attack_a_record_at_another_place_or_cut_short_does_not_open(
    seal: Seal, body: bytes, place: bytes, other: bytes, cut: int
) -> None:
    """Records cannot be swapped, and a part is none."""
    record = seal.close(place, body)
    assert (seal.open(other, record) is None) == (other != place)
    assert seal.open(place, record[:-cut]) is None


@pytest.mark.parametrize("key", [None, KEY], ids=["checked", "sealed"])
def test_attack_a_record_of_another_file_does_not_open(key: bytes | None) -> None:
    """With the same key, too."""
    assert seal_of(OTHER, key).open(b"place", seal_of(ID, key).close(b"place", b"body")) is None


def test_another_key_opens_nothing() -> None:
    """And what is sealed tells nothing of what is in it."""
    record = Sealed(ID, KEY).close(b"place", b"a secret body")
    assert Sealed(ID, KEY[::-1]).open(b"place", record) is None
    assert b"secret" not in record


def test_no_two_records_share_a_nonce() -> None:
    """The same body at the same place is another record each time; also from two that were opened from one copy of a file."""
    seals = [Sealed(ID, KEY), Sealed(ID, KEY)]
    records = [seal.close(b"place", b"body") for seal in seals for _ in range(1_000)]
    assert len({record[:12] for record in records}) == len(records)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    """None is stretched or cut; the text does not tell it."""
    with pytest.raises(
        SettingError, match=f"a key of another length; at key; expected 32 bytes; got {length} bytes"
    ):
        Sealed(ID, b"k" * length)
