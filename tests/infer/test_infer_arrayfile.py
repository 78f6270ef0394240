"""Files of arrays: what numpy wrote is read, and whatever else it is, is one coded error."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import DataError, PathError
from edgestill.infer.arrayfile import native, npy_of, read_npy, read_npz

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)


def saved(array: object) -> bytes:
    """The bytes of an npy file."""
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def spoilt(old: bytes, new: bytes) -> bytes:
    """An npy file with this piece of its header replaced by another of the same length."""
    whole = saved(NUMBERS)
    assert old in whole
    assert len(old) == len(new)
    return whole.replace(old, new, 1)


DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "text": b"1,2\n",
    "a pickle": b"\x80\x04K\x01.",
    "objects": saved(np.array([{}], dtype=object)),
    "cut off": saved(NUMBERS)[:-1],
    "cut off in the header": saved(NUMBERS)[:40],
    "an open string": spoilt(b"'<f4'", b"'<f4 "),  # a TokenError of Python's tokenizer, or a SyntaxError
    "an open bracket": spoilt(b"(2, 3)", b"(2, 3 "),
    "an operator": spoilt(b"(2, 3)", b"2,3,;)"),
    "not a type": spoilt(b"'<f4'", b"'<q9'"),
    "a shape of texts": spoilt(b"(2, 3)", b"('a',)"),
    "a negative shape": spoilt(b"(2, 3)", b"(-2,3)"),
    "too much": spoilt(b"(2, 3), }            ", b"(2, 9999999999999), }"),
    "zeros in the header": spoilt(b"fortran_order", bytes(13)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_no_array_is_one_coded_error(case: str, tmp_path: Path) -> None:
    """Whatever numpy raises: the text names the file, what would be right and what to do, and no way to unpickle."""
    path = tmp_path / "one.npy"
    path.write_bytes(DAMAGE[case])
    with pytest.raises(DataError, match="not an npy file of plain numbers") as caught:
        read_npy(path, what="the input")
    assert caught.value.where == path
    assert (caught.value.expected, bool(caught.value.got)) == ("one array, as numpy.save writes it", True)
    assert caught.value.fix == "write it again with numpy.save(FILE, array)"
    assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_no_array_within_an_npz_is_named(case: str, tmp_path: Path) -> None:
    """With the file and the array; one that nobody asked for harms nobody."""
    path = tmp_path / "all.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("y.npy", saved([1, 2]))
        file.writestr("x.npy", DAMAGE[case])
    with pytest.raises(DataError, match="not an npz file of plain arrays") as caught:
        read_npz(path, what="the data")
    assert caught.value.where == f"{path}: x"
    assert "allow_pickle" not in str(caught.value)
    assert read_npz(path, what="the data", names=["y"])["y"].tolist() == [1, 2]


@given(st.binary(min_size=1, max_size=20), st.integers(0, 140))
def test_attack_no_damage_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, put: bytes, at: int
) -> None:
    """Bytes changed anywhere in header or body: an array of numbers comes out, or a coded error."""
    whole = bytearray(saved(NUMBERS))
    whole[at : at + len(put)] = put
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(whole)
    with suppress(DataError):
        assert isinstance(read_npy(path, what="the input"), np.ndarray)


def test_an_npz_is_not_taken_for_an_npy_and_the_other_way_round(tmp_path: Path) -> None:
    """Several arrays are not one."""
    np.savez(tmp_path / "a.npz", x=NUMBERS)
    with pytest.raises(DataError, match="named arrays, not one array"):
        read_npy(tmp_path / "a.npz", what="the input")
    np.save(tmp_path / "b.npy", NUMBERS)
    with pytest.raises(DataError, match="not an npz file"):
        read_npz(tmp_path / "b.npy", what="the data")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """One that is not there, and a folder."""
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(PathError, match=r"cannot read the input; .*check the path") as caught:
            read_npy(path, what="the input")
        assert caught.value.where == path


def test_numbers_come_in_this_machines_order(tmp_path: Path) -> None:
    """Big-endian, little-endian, column by column: the same numbers, in the type that models name."""
    for order in "<>":
        path = tmp_path / f"{ord(order)}.npy"
        np.save(path, np.asfortranarray(NUMBERS.astype(f"{order}f4")))
        found = read_npy(path, what="the input")
        assert np.array_equal(found, NUMBERS)
        assert found.dtype.isnative
    assert native(NUMBERS) is NUMBERS


def test_an_array_in_memory_is_read_as_one_of_a_file() -> None:
    """Whatever is damaged, holds objects or has no rows is refused."""
    assert np.array_equal(npy_of(saved(NUMBERS), what="the inputs", where="x"), NUMBERS)
    for data in (*DAMAGE.values(), saved(np.float32(1)), saved(np.zeros((0, 4), np.float32))):
        with pytest.raises(DataError):
            npy_of(data, what="the inputs", where="x")
