"""The laws of a `core.protocols.BlobStore`, to be run over every implementation.

Each law is a function that takes an empty store and asserts; `LAWS` holds them all:

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    def test_my_store_keeps_the_law(law, tmp_path):
        law(MyStore.open(tmp_path))
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgestill.core.digest import Digest
from edgestill.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import BlobStore

SAMPLES: Final = (b"", b"\0", b"some bytes", bytes(range(256)) * 4_000)


def what_is_put_can_be_got(store: BlobStore) -> None:
    """Under the digest of the bytes, whatever they are."""
    for data in SAMPLES:
        digest = store.put(data)
        assert digest == Digest.of(data)
        assert store.get(digest) == data
    assert [store.get(Digest.of(data)) for data in SAMPLES] == list(SAMPLES)


def putting_twice_is_putting_once(store: BlobStore) -> None:
    """The second time changes nothing; one deletion undoes both."""
    first, second = store.put(b"twice"), store.put(b"twice")
    assert first == second
    assert list(store.list()) == [first]
    store.delete(first)
    assert not store.has(first)


def has_tells_what_is_there(store: BlobStore) -> None:
    """Before and after `put`, and after `delete`."""
    digest = Digest.of(b"here")
    assert not store.has(digest)
    store.put(b"here")
    assert store.has(digest)
    store.delete(digest)
    assert not store.has(digest)


def list_gives_every_digest_in_order(store: BlobStore) -> None:
    """Each once, sorted, and none that is not there."""
    assert list(store.list()) == []
    digests = [store.put(b"%d" % number) for number in range(50)]
    store.delete(digests[7])
    assert list(store.list()) == sorted(set(digests) - {digests[7]})


def what_is_missing_is_an_error_of_get(store: BlobStore) -> None:
    """A StoreError that names the digest."""
    missing = Digest.of(b"missing")
    try:
        store.get(missing)
    except StoreError as error:
        assert missing.hex in str(error)  # noqa: PT017  # a law must not need pytest
    else:
        raise AssertionError("get() of a blob that is not there did not raise StoreError")


def deleting_what_is_missing_is_no_error(store: BlobStore) -> None:
    """And deleting one blob leaves the others."""
    kept = store.put(b"kept")
    store.delete(Digest.of(b"missing"))
    gone = store.put(b"gone")
    store.delete(gone)
    store.delete(gone)
    assert store.get(kept) == b"kept"


def what_was_deleted_can_be_put_again(store: BlobStore) -> None:
    """Nothing remembers that it was gone."""
    digest = store.put(b"again")
    store.delete(digest)
    assert store.put(b"again") == digest
    assert store.get(digest) == b"again"


def listing_survives_changes(store: BlobStore) -> None:
    """A list may be walked while blobs come and go."""
    digests = [store.put(b"%d" % number) for number in range(20)]
    for number, digest in enumerate(store.list()):
        store.delete(digest)
        store.put(b"more %d" % number)
        assert number < 2 * len(digests)
    assert not any(store.has(digest) for digest in digests)


def many_threads_may_use_it(store: BlobStore) -> None:
    """Same and different bytes at once; what was put is there when `put` returns."""

    def work(number: int) -> bool:
        data = b"%d" % (number % 8)
        return store.get(store.put(data)) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    assert len(list(store.list())) == 8


LAWS: Final[tuple[Callable[[BlobStore], None], ...]] = (
    what_is_put_can_be_got,
    putting_twice_is_putting_once,
    has_tells_what_is_there,
    list_gives_every_digest_in_order,
    what_is_missing_is_an_error_of_get,
    deleting_what_is_missing_is_no_error,
    what_was_deleted_can_be_put_again,
    listing_survives_changes,
    many_threads_may_use_it,
)
