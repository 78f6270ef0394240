"""The index map as bytes, checked on its way back, and used only where it belongs."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inherit_worlds import WORLDS, made
from lab_worlds import motion_net, straight

from edgestill.core.errors import DataError, ModelError
from edgestill.lab.inherit import IndexMap, fuse_parameters_, inherit_
from edgestill.lab.inherit.select import check_consistent
from edgestill.lab.inherit.trace import traced

MAGIC = b"edgestill-index-map-1\n"
ascending = st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=6).map(sorted).map(torch.tensor)
maps = st.dictionaries(
    st.text(max_size=8), st.lists(st.none() | ascending, max_size=3).map(tuple), max_size=4
)


def same(one: IndexMap, other: IndexMap) -> bool:
    """Whether two maps say the same."""
    return (
        one.sources == other.sources
        and one.kept.keys() == other.kept.keys()
        and all(
            len(axes) == len(other.kept[name])
            and all(
                a is b if a is None or b is None else a.dtype == b.dtype == torch.int64 and torch.equal(a, b)
                for a, b in zip(axes, other.kept[name], strict=True)
            )
            for name, axes in one.kept.items()
        )
    )


def packed(header: object, body: bytes = b"") -> bytes:
    """A file with this header."""
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + body


@settings(max_examples=20)
@given(maps, st.data())
def test_a_map_comes_back_as_it_went(
    kept: dict[str, tuple[torch.Tensor | None, ...]], data: st.DataObject
) -> None:
    """Names, whole dimensions, indices up to 32 bits and renamed blocks; the same map gives the same bytes."""
    names = st.sampled_from(sorted(kept)) if kept else st.nothing()
    index_map = IndexMap(kept, data.draw(st.dictionaries(names, st.text(max_size=5))))
    found = IndexMap.from_bytes(index_map.to_bytes())
    assert same(found, index_map)
    assert found.to_bytes() == index_map.to_bytes()


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_refused(data: bytes) -> None:
    """Whatever follows the first bytes, it is a map or a coded error."""
    for one in (data, MAGIC + data, packed({"arrays": [], "axes": {}, "sources": {}})[: len(data)]):
        with suppress(DataError):
            IndexMap.from_bytes(one)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04pickle", "not an index map"),
        (MAGIC + (2**63).to_bytes(8, "little"), "cut off"),
        (packed([]), "damaged; .*got TypeError"),
        (
            packed({"arrays": [2**62], "axes": {}, "sources": {}}),
            "damaged; .*got ValueError: a number out of range",
        ),
        (packed({"arrays": [2], "axes": {}, "sources": {}}, b"\0" * 4), "damaged; .*got ValueError: 4 bytes"),
        (packed({"arrays": [2], "axes": {}, "sources": {}}, b"\0" * 8), "indices that do not ascend"),
        (packed({"arrays": [], "axes": {"a": [0]}, "sources": {}}), "damaged; .*got ValueError"),
        (packed({"arrays": [], "axes": {"a": [True]}, "sources": {}}), "damaged; .*got ValueError"),
        (packed({"arrays": [], "axes": {}, "sources": {"a": "b"}}), "tensors that are not there"),
        (packed({"arrays": [], "axes": {"a": []}, "sources": {"a": 1}}), "no text"),
        (packed({"arrays": []}), "damaged; .*got KeyError"),
        (MAGIC + (200_000).to_bytes(8, "little") + b"[" * 200_000, "damaged; .*got RecursionError"),
    ],
)
def test_a_damaged_map_is_refused_with_the_reason(data: bytes, message: str) -> None:
    """Nothing is allocated or believed before it was compared with what is there."""
    with pytest.raises(DataError, match=message):
        IndexMap.from_bytes(data)


def test_a_map_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length is looked at first."""
    monkeypatch.setattr("edgestill.lab.inherit.index_map.MAX_BYTES", 40)
    with pytest.raises(DataError, match="too long; at index map; expected <= 40 bytes; got 41"):
        IndexMap.from_bytes(b"\0" * 41)


def test_a_map_read_from_bytes_fuses_as_the_first_did() -> None:
    """A lineage may keep it."""
    world = WORLDS["bert"]
    narrow, wide = made(world, world.narrow, 1), made(world, world.wide)
    index_map = inherit_(narrow, wide, world.example)
    again = made(world, world.wide)
    other = made(world, world.narrow, 5)
    fuse_parameters_(wide, other, index_map, alpha=0.5)
    fuse_parameters_(again, other, IndexMap.from_bytes(index_map.to_bytes()), alpha=0.5)
    assert all(torch.equal(one, two) for one, two in zip(wide.parameters(), again.parameters(), strict=True))


def test_fusing_refuses_a_map_of_other_models() -> None:
    """Before anything is written, the tensor that does not fit is named."""
    wide, narrow = motion_net(5, 6, 7), motion_net(2, 3, 4)
    index_map = inherit_(narrow, wide, torch.zeros(1, 16, 6))
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    for teacher, student in (
        (wide, motion_net(2, 3, 5)),
        (motion_net(5, 6, 4), narrow),
        (straight(), narrow),
    ):
        with pytest.raises(ModelError, match="belongs to other models; at "):
            fuse_parameters_(teacher, student, index_map, alpha=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())


def test_an_inconsistent_map_is_found_and_named() -> None:
    """The control: columns that are not the rows of the layer before them, or heads kept in part."""
    wide = straight(hidden=5)
    trace = traced(wide, torch.zeros(1, 4), who="teacher")
    rows, columns = torch.tensor([0, 2]), torch.tensor([1, 2])
    kept = {
        "first.weight": (rows, None),
        "first.bias": (rows,),
        "head.weight": (None, rows),
        "head.bias": (None,),
    }
    check_consistent(trace, kept)
    with pytest.raises(
        ModelError, match=r"different units .* at head.weight; expected \[0, 2\] \(as in first.weight\)"
    ):
        check_consistent(trace, kept | {"head.weight": (None, columns)})
    vit = made(WORLDS["vit"], WORLDS["vit"].wide)
    trace = traced(vit, WORLDS["vit"].example, who="teacher")
    part = torch.tensor([0, 1, 2, 3, 4])  # one head of four, and a quarter of the next
    with pytest.raises(
        ModelError, match=r"kept in part; at blocks.0.attn.proj.weight; expected 8 positions; got 5"
    ):
        check_consistent(trace, {"blocks.0.attn.proj.weight": (None, part)})
