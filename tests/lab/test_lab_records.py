"""Records give back what was put in, and a file of them is whole, missing, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_worlds import ask_of
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, NotFiniteError, ShapeError
from edgestill.lab.teacher.guide import Answer
from edgestill.lab.teacher.records import Layout, Shard, shards_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from edgestill.lab.teacher.records import Rows

KEY, OTHER = Digest.of(b"ours"), Digest.of(b"another's")
LAYOUT = Layout(outputs=5, features=(2, 3))
SHARD = Shard(view=1, number=2, start=16, stop=24)


def logits_of(samples: int, outputs: int, *, scale: float = 5.0, seed: int = 0) -> Tensor:
    """Random logits."""
    return scale * torch.randn((samples, outputs), generator=torch.Generator().manual_seed(seed))


def there_and_back(layout: Layout, logits: Tensor, features: Tensor | None = None) -> Answer:
    """Through the records."""
    return layout.decode(layout.encode(ask_of(list(range(len(logits)))), Answer(logits, features)))


def rows_of(layout: Layout = LAYOUT, samples: int = 8, seed: int = 0) -> Rows:
    """Records of random answers."""
    features = torch.ones((samples, *(layout.features or ())))
    answer = Answer(logits_of(samples, layout.outputs, seed=seed), features)
    return layout.encode(ask_of(list(range(16, 16 + samples)), 1), answer)


def test_a_record_is_a_seed_and_half_precision_logits() -> None:
    """Four bytes, two a class, two a feature, padded to a multiple of four; values of a regression take four each."""
    assert Layout(outputs=10).dtype.itemsize == 4 + 20
    assert Layout(outputs=5, features=(2, 3)).dtype.itemsize == 4 + 10 + 12 + 2
    assert Layout(outputs=3, values=True).dtype.itemsize == 4 + 12
    assert Layout(outputs=1000, top_k=10).dtype.itemsize == 4 + 4 + 20 + 20
    assert Layout(outputs=70_000, top_k=10).dtype.itemsize == 4 + 4 + 40 + 20


@given(st.integers(1, 20), st.integers(2, 12), st.floats(0.01, 100))
def test_dense_logits_come_back_to_half_precision(samples: int, outputs: int, scale: float) -> None:
    """Exactly the nearest float16, with the seeds beside them."""
    logits = logits_of(samples, outputs, scale=scale)
    found = there_and_back(Layout(outputs=outputs), logits)
    assert torch.equal(found.logits, logits.half().float())
    assert found.features is None


def test_features_come_back_to_half_precision_in_their_shape() -> None:
    """Beside the logits."""
    features = logits_of(4, 6).view(4, 2, 3)
    found = there_and_back(LAYOUT, logits_of(4, 5), features)
    assert found.features is not None
    assert torch.equal(found.features, features.half().float())
    assert torch.equal(found.logits, logits_of(4, 5).half().float())


def test_values_come_back_exactly() -> None:
    """A regression's values may be far beyond float16, and every digit of them counts."""
    values = torch.tensor([[1e9, 1 / 3], [-1e-9, 123_456.78]])
    assert torch.equal(there_and_back(Layout(outputs=2, values=True), values).logits, values)


@given(st.integers(2, 40), st.data())
def test_the_largest_and_the_mass_of_the_rest_come_back(outputs: int, data: st.DataObject) -> None:
    """At temperature 1 each kept class has its probability and the rest have theirs together, evenly."""
    top_k = data.draw(st.integers(1, outputs - 1))
    logits = logits_of(6, outputs, scale=data.draw(st.floats(0.1, 8)), seed=outputs)
    found = there_and_back(Layout(outputs=outputs, top_k=top_k), logits).logits
    wanted, said = logits.softmax(1), found.softmax(1)
    place = logits.topk(top_k, 1).indices
    torch.testing.assert_close(said.gather(1, place), wanted.gather(1, place), rtol=0.02, atol=1e-6)
    rest = torch.ones_like(said).scatter(1, place, 0.0).bool()
    torch.testing.assert_close((said * rest).sum(1), (wanted * rest).sum(1), rtol=0.02, atol=1e-5)
    for row, mask in zip(found, rest, strict=True):
        assert len(set(row[mask].tolist())) <= 1


def test_top_k_by_hand() -> None:
    """Of log 8, log 4, log 3, log 1 the two largest are kept, and the rest share (3 + 1) / 2 each."""
    logits = torch.tensor([[8.0, 3.0, 4.0, 1.0]]).log()
    found = there_and_back(Layout(outputs=4, top_k=2), logits).logits
    torch.testing.assert_close(found.softmax(1), torch.tensor([[8, 2, 4, 2]]) / 16, rtol=2e-3, atol=1e-4)


def test_many_classes_have_wide_places() -> None:
    """Class 69,999 is not taken for class 4,463."""
    logits = torch.zeros(1, 70_000)
    logits[0, 69_999] = 20.0
    assert int(there_and_back(Layout(outputs=70_000, top_k=1), logits).logits.argmax()) == 69_999


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 70_000.0])
@pytest.mark.parametrize("top_k", [None, 2])
def test_an_answer_that_cannot_be_kept_names_its_sample(value: float, top_k: int | None) -> None:
    """NaN, infinity or more than float16 holds must not become a student's target."""
    logits = logits_of(4, 5)
    logits[2, 1] = value
    with pytest.raises(
        NotFiniteError,
        match=r"the teacher's answers cannot be kept; at sample 12 in view 3: logits; expected .*65504",
    ):
        Layout(outputs=5, top_k=top_k).encode(ask_of([10, 11, 12, 13], 3), Answer(logits))


def test_a_value_that_is_not_finite_is_refused_and_a_large_one_is_not() -> None:
    """float32 holds more than float16."""
    with pytest.raises(NotFiniteError, match=r"at sample 0 in view 0: logits"):
        there_and_back(Layout(outputs=1, values=True), torch.tensor([[float("inf")]]))
    there_and_back(Layout(outputs=1, values=True), torch.tensor([[1e30]]))


def test_features_that_cannot_be_kept_are_refused() -> None:
    """They are named as such."""
    features = torch.zeros(4, 2, 3)
    features[3, 1, 1] = 1e6
    with pytest.raises(NotFiniteError, match=r"at sample 3 in view 0: features"):
        there_and_back(LAYOUT, logits_of(4, 5), features)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(torch.zeros(4, 6), torch.zeros(4, 2, 3)), "logits"),
        (Answer(torch.zeros(3, 5), torch.zeros(3, 2, 3)), "logits"),
        (Answer(torch.zeros(4, 5), torch.zeros(4, 2, 4)), "features"),
        (Answer(torch.zeros(4, 5)), "features"),
    ],
)
def test_answers_of_another_shape_are_refused(answer: Answer, what: str) -> None:
    """A teacher whose outputs depend on the batch cannot be kept."""
    with pytest.raises(
        ShapeError, match=rf"the teacher's answers change their shape; at {what}; expected \[4, "
    ):
        LAYOUT.encode(ask_of([0, 1, 2, 3]), answer)


def test_a_shard_comes_back_memory_mapped_and_read_only(tmp_path: Path) -> None:
    """Its file is named by view and number, has the promised size, and nothing else is there."""
    rows = rows_of()
    SHARD.write(tmp_path, rows, KEY)
    path = tmp_path / "view-0001" / "shard-0002.rec"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]
    assert path.stat().st_size == SHARD.size(LAYOUT)
    assert SHARD.is_whole(tmp_path, LAYOUT, KEY)
    SHARD.check(tmp_path, LAYOUT, KEY)
    mapped = SHARD.map(tmp_path, LAYOUT)
    assert np.array_equal(mapped, rows)
    assert not mapped.flags.writeable


def test_a_file_is_readable_as_others_files_are(tmp_path: Path) -> None:
    """A cache may be shared, so that the user's own mask decides."""
    SHARD.write(tmp_path, rows_of(), KEY)
    (tmp_path / "plain").touch()
    assert SHARD.path(tmp_path).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_or_cut_file_is_not_whole_at_any_length(tmp_path: Path) -> None:
    """Whatever part of it is left, it is to be filled again."""
    assert not SHARD.is_whole(tmp_path, LAYOUT, KEY)
    SHARD.write(tmp_path, rows_of(), KEY)
    path = SHARD.path(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not SHARD.is_whole(tmp_path, LAYOUT, KEY)
    path.write_bytes(whole)
    assert SHARD.is_whole(tmp_path, LAYOUT, KEY)


def read(folder: Path) -> None:
    """As an opening cache does."""
    assert SHARD.is_whole(folder, LAYOUT, KEY)
    SHARD.check(folder, LAYOUT, KEY)


def test_any_altered_byte_is_found(tmp_path: Path) -> None:
    """In the records, in the footer, or in the checksum itself; the text names the file and what to do."""
    SHARD.write(tmp_path, rows_of(), KEY)
    path = SHARD.path(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"shard-0002.rec.*delete this file.* filled again"):
            read(tmp_path)


def test_altered_records_are_told_by_their_checksum(tmp_path: Path) -> None:
    """Expected and got are the two sums."""
    SHARD.write(tmp_path, rows_of(), KEY)
    path = SHARD.path(tmp_path)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(
        DataError,
        match=r"the cache was altered; at .*; expected CRC-32 [0-9a-f]{8} \(the file's own\); got [0-9a-f]{8}",
    ):
        SHARD.check(tmp_path, LAYOUT, KEY)


@pytest.mark.parametrize(
    ("shard", "key"),
    [
        (SHARD, OTHER),
        (Shard(view=0, number=2, start=16, stop=24), KEY),
        (Shard(view=1, number=0, start=0, stop=8), KEY),
        (Shard(view=1, number=2, start=16, stop=23), KEY),
    ],
)
def test_another_shards_file_is_refused(tmp_path: Path, shard: Shard, key: Digest) -> None:
    """Of another cache, view, place or length: copied here, it is not taken for this one's."""
    SHARD.write(tmp_path, rows_of(), KEY)
    shard.path(tmp_path).parent.mkdir(exist_ok=True)
    SHARD.path(tmp_path).rename(shard.path(tmp_path))
    with pytest.raises(DataError, match=r"a file of the cache that does not belong to it.*delete this file"):
        shard.is_whole(tmp_path, LAYOUT, key)


@given(st.integers(1, 200), st.integers(1, 50))
def test_shards_cover_every_sample_once(samples: int, size: int) -> None:
    """In order, numbered from 0, none longer than the size and only the last one shorter."""
    shards = shards_of(samples, 3, size)
    assert [place for one in shards for place in range(one.start, one.stop)] == list(range(samples))
    assert [(one.view, one.number) for one in shards] == [(3, at) for at in range(len(shards))]
    assert all(len(one) == size for one in shards[:-1])
    assert 0 < len(shards[-1]) <= size


def test_the_bytes_of_a_shard_do_not_change(tmp_path: Path) -> None:
    """The format is fixed: this file's checksum was written down when it was made."""
    layout = Layout(outputs=3, features=(2,))
    rows: Any = np.zeros(2, layout.dtype)
    rows["seed"], rows["logits"], rows["features"] = [1, 2**32 - 1], [[1, 2, 3], [-1, 0, 0.5]], 4
    shard = Shard(view=0, number=0, start=0, stop=2)
    shard.write(tmp_path, rows, KEY)
    assert (
        shard.path(tmp_path).read_bytes().hex()
        == (
            "01000000003c0040004200440044"  # seed 1, logits 1 2 3, features 4 4
            "0000"  # to a multiple of four
            "ffffffff00bc0000003800440044"
            "0000"
            "6573726563000001"
            f"{KEY.hex}"
            "000000000000000002000000"  # view, number, records
            + shard.path(tmp_path).read_bytes()[-4:].hex()
        )
    )
