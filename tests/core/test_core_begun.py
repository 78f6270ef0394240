"""A folder that is made beside its place: all of it or nothing, by one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgestill.core.begun import begun
from edgestill.core.errors import ConflictError, PathError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """For its owner alone; where the block fails there is nothing, and what a kill left is cleared."""
    to, left = tmp_path / "to", tmp_path / ".to.begun"
    left.mkdir()
    (left / "old").write_bytes(b"of a kill")
    with pytest.raises(KeyError), begun(to, what="", fix="another"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with begun(to, what="", fix="another") as beside:
        (beside / "new").write_bytes(b"whole")
        assert not to.exists()
    assert [one.name for one in to.iterdir()] == ["new"]
    assert to.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == [to]


def test_two_at_once_do_not_clear_each_others_away(tmp_path: Path) -> None:
    """The later one is told; the first comes to its end, and then the place is taken."""
    to = tmp_path / "to"
    with begun(to, what="", fix="another") as beside:
        (beside / "new").write_bytes(b"whole")
        with pytest.raises(ConflictError, match="somebody else"), begun(to, what="", fix="another"):
            pass
    assert (to / "new").read_bytes() == b"whole"
    with pytest.raises(ConflictError, match="something already"), begun(to, what="", fix="another"):
        pass


def test_attack_a_link_in_the_place_of_what_was_begun(tmp_path: Path) -> None:
    """Attack: it is not followed, and nothing behind it is cleared."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"precious")
    (tmp_path / ".to.begun").symlink_to("victim")
    with pytest.raises(PathError, match="cannot make a folder"), begun(tmp_path / "to", what="", fix=""):
        pass
    assert (tmp_path / "victim" / "file").read_bytes() == b"precious"
