"""Codec 2: tensors are found, told by differences where that is shorter, and put back to the bit; a forged table is refused."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgestill.core.bundle import archive_bytes, build
from edgestill.core.digest import Digest
from edgestill.core.errors import PatchError
from edgestill.delta import elements
from edgestill.delta.codec import HEADER_BYTES, Header, apply, diff
from edgestill.delta.coder import Writer
from edgestill.delta.elements import MAX_NUMBERS, MAX_TENSORS, MAX_WIDE
from edgestill.delta.frames import compressed
from edgestill.delta.tensors import Span, tensors_in

_unhurried = settings(deadline=None)

ELEMENTS = 2
"""The codec's number."""
_TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "float32": TensorProto.FLOAT,
}


@dataclass
class Model:
    """Tensors by name, as a file or a bundle."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def onnx(self) -> bytes:
        """A graph that only holds them; names and documentation stand between the tensors."""
        tensors = [
            helper.make_tensor(name, _TYPES[str(one.dtype)], one.shape, one.tobytes(), raw=True)
            for name, one in self.arrays.items()
        ]
        graph = helper.make_graph([], "weights", [], [], tensors, doc_string="nothing to compute")
        data: bytes = helper.make_model(graph).SerializeToString()
        return data

    def bundle(self, *, version: str = "1.0.0", **more: bytes) -> bytes:
        """An archive with this as its model."""
        blobs = dict.fromkeys(("policy.json", "golden.npz", "lineage.json", "card.md"), b"x")
        blobs |= {"model.onnx": self.onnx()} | {name.replace("_", "."): data for name, data in more.items()}
        manifest, ordered = build(name="m", version=version, hardware_class="any", blobs=blobs)
        return archive_bytes(manifest, ordered)

    def moved(self, share: float, seed: int, *, by: int = 1) -> Model:
        """Every number is moved up or down by this with such a probability, around the end of its range."""
        draw = np.random.default_rng(seed)
        found = {}
        for name, one in self.arrays.items():
            codes = one.view(f"u{one.dtype.itemsize}")
            step = draw.choice(np.array([0, by, -by]), size=one.shape, p=[1 - share, share / 2, share / 2])
            found[name] = (codes + step.astype(codes.dtype)).view(one.dtype)
        return Model(found)


def codes(*shape: int, seed: int = 0, dtype: str = "int8") -> np.ndarray:
    """Such as a quantiser writes."""
    return np.random.default_rng(seed).normal(0, 30, shape).round().clip(-127, 127).astype(dtype)


def network(seed: int = 0) -> Model:
    """Two layers in int8, with biases in int32 and scales in floats."""
    return Model(
        {
            "first": codes(40, 90, seed=seed),
            "first_scale": np.linspace(1, 2, 40, dtype=np.float32),
            "second": codes(10, 40, seed=seed + 1),
            "bias": codes(10, seed=seed + 2, dtype="int32") * 100,
        }
    )


def applied(old: bytes, patch: bytes, new: bytes) -> bytes:
    """What comes of it."""
    out = io.BytesIO()
    apply(io.BytesIO(old), io.BytesIO(patch), out, expected=Digest.of(new), max_size=len(new))
    return out.getvalue()


def codec_of(patch: bytes) -> int:
    """The number in its header."""
    return Header.read(io.BytesIO(patch)).codec


# What it gains


@pytest.mark.parametrize("wrapped", ["file", "bundle"])
def test_a_small_change_of_many_numbers_is_told_by_differences(wrapped: str) -> None:
    """A tenth of the codes moved by one: under half of what the generic codec takes, for a file and for a bundle."""
    before, after = network(), network().moved(0.1, 1)
    old, new = (
        (before.onnx(), after.onnx())
        if wrapped == "file"
        else (before.bundle(), after.bundle(version="1.0.1"))
    )
    patch = diff(old, new)
    assert codec_of(patch) == ELEMENTS
    assert applied(old, patch, new) == new
    overhead = HEADER_BYTES + (0 if wrapped == "file" else 150)  # a new digest, twice, and a version
    assert len(patch) < 0.5 * len(compressed(new, old)) + overhead


def test_only_what_changed_costs() -> None:
    """Ten numbers of the last layer: a patch of less than the header and 60 bytes, however large the rest is."""
    before = network()
    after = Model(dict(before.arrays))
    after.arrays["second"] = before.arrays["second"].copy()
    after.arrays["second"][0, :10] += 1
    old, new = before.onnx(), after.onnx()
    patch = diff(old, new)
    assert applied(old, patch, new) == new
    assert len(patch) < HEADER_BYTES + 60


def test_what_was_trained_anew_is_sent_as_before() -> None:
    """Where differences are as random as the numbers, the shortest generic codec is taken."""
    old, new = network().onnx(), network(seed=50).onnx()
    patch = diff(old, new)
    assert applied(old, patch, new) == new
    assert len(patch) <= HEADER_BYTES + min(len(compressed(new)), len(compressed(new, old)))


def test_each_tensor_is_told_in_its_own_way() -> None:
    """One layer trained anew does not keep another from being told by differences."""
    before, after = network(), network().moved(0.05, 1)
    after.arrays["first"] = codes(40, 90, seed=77)
    old, new = before.onnx(), after.onnx()
    chosen = elements._chosen(old, new)  # which is what this is about
    assert {one.new.size for one in chosen} == {400, 40, 160}
    assert applied(old, diff(old, new), new) == new


def test_a_layer_that_became_wider_is_no_trouble() -> None:
    """What has another size goes with the rest, and the others are still told by differences."""
    before, after = network(), network().moved(0.1, 1)
    after.arrays["second"] = codes(12, 40, seed=9)
    old, new = before.onnx(), after.onnx()
    patch = diff(old, new)
    assert codec_of(patch) == ELEMENTS
    assert applied(old, patch, new) == new


def test_tensors_in_another_order() -> None:
    """Those that stand in the same order in both files are told by differences, the others with the rest."""
    before = network()
    after = Model(dict(reversed(before.moved(0.1, 1).arrays.items())))
    old, new = before.onnx(), after.onnx()
    assert applied(old, diff(old, new), new) == new


def test_making_it_twice_gives_the_same_bytes() -> None:
    """So that caches and mirrors agree."""
    old, new = network().bundle(), network().moved(0.1, 1).bundle(version="1.0.1")
    assert diff(old, new) == diff(old, new)


# What it keeps

_DTYPES = st.sampled_from(list(_TYPES))


@_unhurried
@given(
    layers=st.lists(st.tuples(_DTYPES, st.integers(1, 70), st.integers(1, 9)), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    by=st.integers(1, 2**31),
    seed=st.integers(0, 99),
)
def test_any_change_of_any_tensors_comes_back_to_the_bit(
    layers: list[tuple[str, int, int]], share: float, by: int, seed: int
) -> None:
    """Every width, signed or not, over the end of its range and back."""
    before = Model(
        {
            f"layer {at}": codes(rows, columns, seed=seed + at).astype(dtype)
            for at, (dtype, rows, columns) in enumerate(layers)
        }
    )
    changed = {
        name: before_one.view(f"u{before_one.dtype.itemsize}").copy()
        for name, before_one in before.arrays.items()
    }
    draw = random.Random(seed)
    for one in changed.values():
        for place in range(one.size):
            if draw.random() < share:
                one.flat[place] = (int(one.flat[place]) + draw.choice((by, -by))) % (1 << 8 * one.itemsize)
    after = Model({name: one.view(before.arrays[name].dtype) for name, one in changed.items()})
    old, new = before.onnx(), after.onnx()
    assert applied(old, diff(old, new), new) == new
    payload = elements.make(old, new)
    if payload is not None:
        assert b"".join(elements.read(io.BytesIO(old), io.BytesIO(payload), len(new))) == new


def test_a_tensor_longer_than_one_piece() -> None:
    """Pieces are put together where they were taken apart."""
    before = Model({"large": codes(40_001)})
    old, new = before.onnx(), before.moved(0.02, 1).onnx()
    patch = diff(old, new)
    assert codec_of(patch) == ELEMENTS
    assert applied(old, patch, new) == new


def test_of_the_base_only_what_is_no_changed_tensor_is_held() -> None:
    """Applying takes less memory than the base has bytes: its tensors are read where they stand, piece by piece."""
    before = Model({"large": codes(1_500_000)})
    old, new = before.onnx(), before.moved(0.001, 1).onnx()
    patch = diff(old, new)
    assert codec_of(patch) == ELEMENTS

    class Nowhere(io.BytesIO):
        def write(self, data: object, /) -> int:
            return len(data)  # type: ignore[arg-type]  # bytes

    base, given_ = io.BytesIO(old), io.BytesIO(patch)
    tracemalloc.start()
    apply(base, given_, Nowhere(), expected=Digest.of(new), max_size=len(new))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(old) / 2


# What is found


def test_tensors_are_found_where_they_stand() -> None:
    """Place, size and width of each, in a file; in a bundle, of both its models."""
    model = network()
    data = model.onnx()
    found = tensors_in(data)
    assert {name for _, name in found} == set(model.arrays)
    for (_, name), span in found.items():
        array = model.arrays[name]
        assert data[span.start : span.start + span.size] == array.tobytes()
        assert span.width == array.dtype.itemsize
    archive = model.bundle(train_onnx=model.moved(1.0, 3).onnx())
    both = tensors_in(archive)
    assert {which for which, _ in both} == {"model.onnx", "train.onnx"}
    for (which, name), span in both.items():
        array = (model if which == "model.onnx" else model.moved(1.0, 3)).arrays[name]
        assert archive[span.start : span.start + span.size] == array.tobytes()


def test_two_names_of_one_model() -> None:
    """A blob that stands once under two names is patched once."""
    before, after = network(), network().moved(0.1, 1)
    old, new = before.bundle(train_onnx=before.onnx()), after.bundle(train_onnx=after.onnx())
    patch = diff(old, new)
    assert codec_of(patch) == ELEMENTS
    assert applied(old, patch, new) == new


@_unhurried
@given(data=st.binary(max_size=200), cut=st.integers(0, 4_000))
def test_what_cannot_be_read_has_no_tensors(data: bytes, cut: int) -> None:
    """Any bytes, and a file or an archive that ends anywhere: found are tensors within it, or none."""
    for one in (
        data,
        network().onnx()[:cut],
        network().bundle()[:cut],
        network().bundle()[: 512 + cut] + data,
    ):
        for span in tensors_in(one).values():
            assert span.start > 0
            assert span.start + span.size <= len(one)


def test_numbers_in_lists_are_left_alone() -> None:
    """A tensor whose numbers are fields of the message, not one piece of bytes, goes with the rest."""
    graph = helper.make_graph(
        [], "g", [], [], [helper.make_tensor("listed", TensorProto.INT8, [3], [1, 2, 3])]
    )
    assert tensors_in(helper.make_model(graph).SerializeToString()) == {}


# Attacks

BEFORE, AFTER = network(), network().moved(0.1, 1)
OLD, NEW = BEFORE.onnx(), AFTER.onnx()
PAYLOAD = elements.make(OLD, NEW) or b""


def varint(number: int) -> bytes:
    """LEB128, of any length."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def forged(
    *table: tuple[int, int, int, int], frame: bytes = b"", code: bytes = b"", count: int | None = None
) -> bytes:
    """A patch with (gap, gap in the base, numbers, width) of the attacker's choice."""
    entries = b"".join(b"".join(map(varint, one[:3])) + bytes([one[3]]) for one in table)
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    return head + varint(len(table) if count is None else count) + entries + varint(len(frame)) + frame + code


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([(0, 0, len(NEW) + 1, 1)], "ranges within"),
        ([(len(NEW), 0, 1, 1)], "ranges within"),
        ([(0, len(OLD), 1, 1)], "ranges within"),
        ([(0, 0, 10, 1), (2**60, 0, 10, 1)], "ranges within"),
        ([(0, 0, MAX_NUMBERS + 1, 1)], f"at most {MAX_NUMBERS} numbers"),
        ([(0, 0, MAX_WIDE + 1, 2)], f"{MAX_WIDE} of them of two or four bytes"),
        ([(0, 0, 1, 3)], "numbers"),
        ([(0, 0, 1, 0)], "numbers"),
        ([(0, 0, 1, 8)], "numbers"),
    ],
)
def test_attack_a_table_out_of_bounds(table: list[tuple[int, int, int, int]], expected: str) -> None:
    """Ranges beyond either file, too many numbers or widths that are none are refused before anything is read."""
    with pytest.raises(PatchError, match=rf"a damaged patch; at payload: table; .*{expected}"):
        applied(OLD, forged(*table), NEW)


def test_attack_a_table_that_never_ends() -> None:
    """More tensors than any model has, and numbers of more than ten bytes."""
    with pytest.raises(PatchError, match=f"at most {MAX_TENSORS} tensors"):
        applied(OLD, forged(count=MAX_TENSORS + 1), NEW)
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with pytest.raises(PatchError, match="numbers of at most 9 bytes"):
        applied(OLD, head + b"\xff" * 100, NEW)


def test_attack_a_frame_longer_than_the_patch() -> None:
    """A length that the patch does not have is damage."""
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with pytest.raises(PatchError, match="payload: table; expected 1000 bytes more; got 3"):
        applied(OLD, head + varint(0) + varint(1000) + b"abc", NEW)


@pytest.mark.parametrize("length", [2**31, 2**62, 2**63 - 1, 2**63, 2**64, 2**69])
def test_attack_lengths_that_no_machine_has(length: int) -> None:
    """A frame, a gap or a count of numbers of any size is a damaged patch, and nothing else comes of it."""
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with pytest.raises(PatchError, match="a damaged patch"):
        applied(OLD, head + varint(0) + varint(length) + b"abc", NEW)
    for table in ((length, 0, 1, 1), (0, length, 1, 1), (0, 0, length, 1)):
        with pytest.raises(PatchError, match="a damaged patch"):
            applied(OLD, forged(table), NEW)


@pytest.mark.parametrize("error", [OverflowError("x"), ValueError("x"), struct.error("x"), MemoryError()])
def test_whatever_a_codec_meets_is_a_damaged_patch(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device fetches the whole file then, and its installation does not fail for it."""

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(elements, "_table", broken)
    with pytest.raises(PatchError, match="a damaged patch; at payload"):
        applied(OLD, diff(OLD, NEW), NEW)


def test_wide_numbers_are_counted_over_all_tensors() -> None:
    """They take the most time each; so does who makes a patch, who tries no more than a device would read."""
    half, base = MAX_WIDE // 2, bytes(5 * MAX_WIDE)
    table = forged((0, 0, half, 4), (0, 0, half + 1, 4))[HEADER_BYTES:]
    head = Header(Digest.of(base), Digest.of(NEW), len(base), ELEMENTS).to_bytes()
    patch, out = io.BytesIO(head + table), io.BytesIO()
    with pytest.raises(PatchError, match=f"{MAX_WIDE} of them of two or four bytes"):
        apply(io.BytesIO(base), patch, out, expected=Digest.of(NEW), max_size=len(base))
    before = Model({name: codes(half + 1, seed=at, dtype="int32") for at, name in enumerate("abc")})
    old, new = before.onnx(), before.moved(0.01, 1).onnx()
    assert len(elements._chosen(old, new)) == 1  # which is what this is about
    assert applied(old, diff(old, new), new) == new


def test_of_more_numbers_than_a_device_reads_those_that_gain_most_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others go with the rest."""
    monkeypatch.setattr(elements, "MAX_NUMBERS", 4_000)
    before = network()
    after = Model({"first": before.moved(0.3, 1).arrays["first"]} | before.moved(0.01, 1).arrays)
    after.arrays["first"] = before.moved(0.5, 1).arrays["first"]
    old, new = before.onnx(), after.onnx()
    sizes = {one.new.size for one in elements._chosen(old, new)}  # which is what this is about
    assert sum(sizes) <= 4_000 + 4 * 50
    assert applied(old, diff(old, new), new) == new


def test_what_was_trained_anew_is_not_coded_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a look at the differences says that they are no shorter, nothing is spent on coding them."""
    coded: list[int] = []
    monkeypatch.setattr(elements, "_write", lambda *_: coded.append(1))
    before, after = Model({"layer": codes(50_000)}), Model({"layer": codes(50_000, seed=5)})
    diff(before.onnx(), after.onnx())
    assert coded == []


def test_attack_a_payload_longer_than_what_comes_out() -> None:
    """A patch that could never be the shortest is not read to its end."""
    long = io.BytesIO(
        Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes() + bytes(10_000_000)
    )
    with pytest.raises(PatchError, match="payload: length"):
        apply(io.BytesIO(OLD), long, io.BytesIO(), expected=Digest.of(NEW), max_size=len(NEW))
    assert long.tell() < 200_000


def test_attack_a_bomb_in_the_frame() -> None:
    """Gigabytes between the tensors: unpacking stops at the size that was stated."""
    frame = zstandard.ZstdCompressor(level=19).compress(bytes(2**28))
    with pytest.raises(PatchError, match=rf"yields too much; at result; expected {len(NEW)} bytes"):
        applied(OLD, forged((10, 10, 10, 1), frame=frame), NEW)


def test_attack_differences_that_lead_elsewhere() -> None:
    """True ranges and a true frame with other numbers: the digest tells."""
    payload = elements.make(OLD, BEFORE.moved(0.1, 2).onnx())
    assert payload is not None
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with pytest.raises(PatchError, match="another file"):
        applied(OLD, head + payload, NEW)


@_unhurried
@given(at=st.integers(0, len(PAYLOAD) - 1), flip=st.integers(1, 255))
def test_attack_altered_differences(at: int, flip: int) -> None:
    """Any byte altered: refused, or still the file that was asked for."""
    altered = bytearray(PAYLOAD)
    altered[at] ^= flip
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with contextlib.suppress(PatchError):
        assert applied(OLD, head + bytes(altered), NEW) == NEW


@_unhurried
@given(cut=st.integers(0, len(PAYLOAD) - 1))
def test_attack_truncated_differences(cut: int) -> None:
    """Ended anywhere too early: refused, or still the file that was asked for."""
    head = Header(Digest.of(OLD), Digest.of(NEW), len(NEW), ELEMENTS).to_bytes()
    with contextlib.suppress(PatchError):
        assert applied(OLD, head + PAYLOAD[:cut], NEW) == NEW


def test_attack_an_empty_base() -> None:
    """Nothing can be added to nothing."""
    new = NEW[:50]
    head = Header(Digest.of(b""), Digest.of(new), len(new), ELEMENTS).to_bytes()
    with pytest.raises(PatchError, match="a base out of bounds"):
        applied(b"", head + PAYLOAD, new)


def test_attack_numbers_without_a_code() -> None:
    """A code of no bytes is zeros to its end, which are some numbers; the digest tells."""
    span = Span(0, len(NEW), 1)
    with pytest.raises(PatchError, match=r"another file|damaged"):
        applied(OLD, forged((0, 0, span.size - 1, 1), frame=compressed(b"x"), code=Writer().to_bytes()), NEW)
