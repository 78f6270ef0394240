"""Digests: the published values, one spelling, no other algorithm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_digest_is_sha256() -> None:
    """The digests of `abc` and of nothing are those of FIPS 180-4's examples."""
    assert Digest.of(b"abc").hex == ABC
    assert Digest.of(b"").hex == EMPTY


def test_a_digest_travels_with_its_algorithm() -> None:
    """The text form names the algorithm."""
    assert str(Digest.of(b"abc")) == f"sha256:{ABC}"


@given(st.binary())
def test_writing_and_reading_give_the_same_digest(data: bytes) -> None:
    """A digest survives its text form."""
    assert Digest.parse(str(Digest.of(data))) == Digest.of(data)


@given(st.lists(st.binary(max_size=40)))
def test_chunks_count_as_their_concatenation(chunks: list[bytes]) -> None:
    """However the bytes are cut, the digest is that of the whole."""
    assert Digest.of_chunks(iter(chunks)) == Digest.of(b"".join(chunks))


def test_a_view_counts_as_its_bytes() -> None:
    """A memoryview has the digest of the bytes it shows."""
    assert Digest.of(memoryview(b"xabcx")[1:4]).hex == ABC


@pytest.mark.parametrize(
    "text",
    [
        "",
        ABC,
        f"md5:{ABC}",
        f"sha512:{ABC}",
        f"SHA256:{ABC}",
        f"sha256:{ABC.upper()}",
        f"sha256:{ABC[:-1]}",
        f"sha256:{ABC}0",
        f"sha256:{ABC}\n",
        f" sha256:{ABC}",
        "sha256:" + "g" * 64,
        "sha256:" + "٣" * 64,  # digits, but not hex digits
    ],
)
def test_any_other_spelling_is_refused(text: str) -> None:
    """A digest has one spelling; a trailing line end or another algorithm is refused."""
    with pytest.raises(MessageError, match="not a digest"):
        Digest.parse(text)


def test_a_digest_cannot_be_made_of_something_else() -> None:
    """The constructor takes 64 lower-case hex digits and nothing else."""
    with pytest.raises(MessageError, match="64 lower-case hex digits"):
        Digest("../../etc/passwd")


def test_attack_a_huge_text_is_not_repeated_in_the_refusal() -> None:
    """The refusal quotes at most 80 characters of what it got."""
    with pytest.raises(MessageError) as caught:
        Digest.parse("sha256:" + "a" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_digests_have_an_order_and_can_be_keys() -> None:
    """Digests sort by their hex digits and are equal by value."""
    assert sorted([Digest(EMPTY), Digest(ABC)]) == [Digest(ABC), Digest(EMPTY)]
    assert {Digest(ABC): 1}[Digest.of(b"abc")] == 1
