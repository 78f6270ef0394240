"""Keys that come late, on media that come and go, and samples in the clear after an owner wanted them sealed: nothing is lost or left that should not be."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import HERE, batches, tiny_bundle
from device_worlds import Killed
from hypothesis import given
from hypothesis import strategies as st
from replay_worlds import KEY, PLAN

from edgestill.core.errors import EdgestillError, NotFoundError, PathError
from edgestill.device import model, samplekey
from edgestill.device.arrays import to_tensor
from edgestill.device.blocks import PlainFile
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.main import main
from edgestill.device.model import Serving
from edgestill.device.replay import Replay
from edgestill.device.replay_head import HEAD_BYTES, is_sealed
from edgestill.device.samplekey import (
    chosen_key,
    is_plain,
    key_to_keep,
    make_key,
    memory_of,
    place_of,
    read_key,
)
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = b"a picture"
RUN = Path("/run")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A device that keeps samples."""
    identity = Identity(
        device="d0", credential="c" * 32, hub="http://127.0.0.1:9", hardware_class=HERE, interval=60
    )
    settings = Settings(leaves="nothing", labels={}, keeps=200_000)
    made = Home.create(tmp_path / "home", identity=identity, settings=settings, root=b"{}")
    (made.path / "x.esb").write_bytes(tiny_bundle())
    return made


@pytest.fixture(autouse=True)
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says which samples are held back and which are left out between; the same in each run, so that there always are some."""
    monkeypatch.setattr(model, "SystemRandom", partial(Random, 1))


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Path]:
    """Folders that are in memory, and where the file system is mounted that they are on; those of this machine count for nothing."""
    told: dict[Path, Path] = {}
    monkeypatch.setattr(samplekey, "memory_of", told.get)
    return told


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that is in memory, on a machine that has one."""
    if memory_of(Path("/dev/shm")) is None:
        pytest.skip("no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def settings_of(home: Home, *more: str) -> int:
    """`edgestill-agent settings`; its exit status."""
    return main(["settings", "--home", str(home.path), *more])


def serving_of(home: Home) -> Serving:
    """Its engine."""
    home = Home.open(home.path)
    return Serving.open(home, home.path / "x.esb", clock=FakeClock(), random=lambda: 0.9)


def teach(serving: Serving) -> None:
    """An application tells labels."""
    tensors = (to_tensor("input", batches(9, 1)), to_tensor("labels", np.arange(9) % 3))
    serving.answer(Frame({"op": "teach"}, tensors))


def kept(serving: Serving) -> tuple[int, Any]:
    """How many samples an engine has, and why it keeps none."""
    status: Any = serving.status()
    told = status["kept"] or {"to_train": 0, "held_back": 0}
    return told["to_train"] + told["held_back"], status["not_kept"]


# A key that is not there yet


def lost_and_back(home: Home, folder: Path, away: Callable[[], object], back: Callable[[], object]) -> None:
    """Fills a buffer, starts an engine while the key is away and again when it is back: nothing is made, and nothing is lost."""
    serving = serving_of(home)
    teach(serving)
    count, _ = kept(serving)
    serving.close()
    before = home.samples.read_bytes()
    away()
    there = sorted(folder.iterdir())
    serving = serving_of(home)
    teach(serving)
    assert "the key of the samples is not there" in kept(serving)[1]
    assert (sorted(folder.iterdir()), home.samples.read_bytes()) == (there, before)
    back()
    serving.learn()
    assert (kept(serving), count > 0) == ((count, None), True)
    serving.close()


def test_attack_a_key_that_is_fetched_into_memory_after_the_agent_has_started_costs_no_samples(
    home: Home, tmp_path: Path, mounts: dict[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It was there when it was named, so somebody brings it back; naming it again changes nothing."""
    folder = tmp_path / "run"
    folder.mkdir()
    key, fetched = folder / "key", tmp_path / "fetched"
    chosen_key(key)
    mounts[folder] = RUN
    for _ in range(2):
        assert settings_of(home, "--seal-samples", str(key)) == 0
    assert f"sealed          by {key}, in memory\n" in capsys.readouterr().out
    lost_and_back(home, folder, lambda: key.rename(fetched), lambda: fetched.rename(key))


@pytest.mark.parametrize("at_first", [None, RUN / "stick"], ids=["stick", "memory"])
def test_attack_a_mount_point_in_memory_whose_medium_is_away_gets_no_key(
    home: Home, tmp_path: Path, mounts: dict[Path, Path], at_first: Path | None
) -> None:
    """The key was made on a stick, or on a file system in memory of its own: what its mount point is on without it is another."""
    folder, away = tmp_path / "stick", tmp_path / "away"
    folder.mkdir()
    mounts |= {} if at_first is None else {folder: at_first}
    assert settings_of(home, "--seal-samples", str(folder / "key")) == 0

    def take() -> None:
        (folder / "key").rename(away)
        mounts[folder] = RUN

    lost_and_back(home, folder, take, lambda: away.rename(folder / "key"))


def test_attack_a_link_in_memory_to_a_key_that_is_away_is_not_replaced(
    home: Home, tmp_path: Path, mounts: dict[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the engine, whatever was settled, nor by naming it."""
    folder, real = tmp_path / "run", tmp_path / "real"
    folder.mkdir()
    mounts[folder] = RUN
    link = folder / "key"
    assert settings_of(home, "--seal-samples", str(link)) == 0
    assert Home.open(home.path).settings.seal_anew_on == RUN
    link.rename(real)
    link.symlink_to(real)
    lost_and_back(home, folder, lambda: real.rename(tmp_path / "a"), lambda: (tmp_path / "a").rename(real))
    real.unlink()
    with pytest.raises(NotFoundError, match="got a link that leads nowhere"):
        key_to_keep(link, RUN)
    capsys.readouterr()
    assert settings_of(home, "--seal-samples", str(link)) == 1
    assert "a link that leads nowhere" in capsys.readouterr().err
    assert (link.is_symlink(), real.exists()) == (True, False)


def test_a_key_that_was_made_in_memory_is_made_anew_after_a_restart(
    home: Home, tmp_path: Path, memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the file system in memory of this machine, through a link to its folder; samples begin anew with it, and `settings` says so before."""
    (tmp_path / "run").symlink_to(memory)
    key = tmp_path / "run" / "key"
    for _ in range(2):
        assert settings_of(home, "--seal-samples", str(key)) == 0
        assert f"by {key}, in memory, made anew when it is missing\n" in capsys.readouterr().out
    serving = serving_of(home)
    teach(serving)
    serving.close()
    first = read_key(key)
    key.unlink()
    assert settings_of(home) == 0
    assert f"by {key}, not there now, made anew when it is missing\n" in capsys.readouterr().out
    serving = serving_of(home)
    assert kept(serving) == (0, None)
    serving.close()
    assert read_key(key) != first


def test_where_a_link_leads_counts_and_not_where_it_lies(tmp_path: Path, memory: Path) -> None:
    """A link in memory to a key on the disk protects nothing that the key on the disk would not."""
    samples = tmp_path / "samples"
    chosen_key(tmp_path / "key")
    (memory / "key").symlink_to(tmp_path / "key")
    assert place_of(memory / "key", samples) == "on the same file system"
    chosen_key(memory / "other")
    (tmp_path / "other").symlink_to(memory / "other")
    assert place_of(tmp_path / "other", samples) == "in memory"
    assert memory_of(memory) == memory_of(Path("/dev/shm"))


def test_of_a_machine_without_a_list_of_mounts_nothing_is_said_to_be_in_memory(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of a folder that is not there."""
    assert memory_of(memory / "missing") is None
    monkeypatch.setattr(samplekey, "_MOUNTS", tmp_path / "missing")
    assert memory_of(memory) is None


# One who makes it


def test_a_key_that_another_makes_meanwhile_is_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second reads what the first has made, with hard links and without; nothing is left beside."""
    path, link = tmp_path / "key", os.link
    for refused in (None, errno.EPERM, errno.EOPNOTSUPP):
        path.unlink(missing_ok=True)

        def second(source: Path, target: Path, refused: int | None = refused) -> None:
            target.write_bytes(KEY)
            target.chmod(0o600)
            if refused is not None:
                raise OSError(refused, "no links here")
            link(source, target)

        monkeypatch.setattr(os, "link", second)
        assert chosen_key(path) == KEY
        assert list(tmp_path.iterdir()) == [path]


def test_a_medium_without_hard_links_gets_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sticks are; another refusal is told, and leaves nothing."""

    def refuse(number: int) -> None:
        def link(source: Path, target: Path) -> None:
            raise OSError(number, "not here", str(source), None, str(target))

        monkeypatch.setattr(os, "link", link)

    refuse(errno.EIO)
    with pytest.raises(PathError, match="the key of the samples cannot be made"):
        make_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    refuse(errno.EPERM)
    assert (make_key(tmp_path / "key"), make_key(tmp_path / "key")) == (True, False)
    assert (len(read_key(tmp_path / "key")), list(tmp_path.iterdir())) == (32, [tmp_path / "key"])


# Samples in the clear


def plain_samples(path: Path, key: bytes | None = None) -> bytes:
    """A buffer with something in it, in the clear unless there is a key; its bytes."""
    Replay.create(path, PLAN, random=Random(0), key=key).close()
    with path.open("r+b") as file:
        file.seek(HEAD_BYTES + 999)
        file.write(SECRET)
    return path.read_bytes()


@given(at=st.integers(0, HEAD_BYTES - 1), bit=st.integers(0, 7))
def test_a_file_is_sealed_where_its_whole_head_says_so(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    """One bit of damage, or a shorter file, and anything may be in it."""
    path = tmp_path_factory.mktemp("sealed") / "samples"
    assert is_plain(path) is False, "nothing is there"
    head = bytearray(plain_samples(path, KEY)[:HEAD_BYTES])
    assert (is_plain(path), is_sealed(bytes(head)), is_sealed(bytes(head[:at]))) == (False, True, False)
    head[at] ^= 1 << bit
    assert is_sealed(bytes(head)) is False
    plain_samples(path)
    assert is_plain(path) is True


def steps_of(monkeypatch: pytest.MonkeyPatch, last: int, error: BaseException) -> None:
    """Has the disk fail, or the process end, after so many steps of erasing."""
    steps = iter(range(last))

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*given: object, **more: object) -> object:
            if next(steps, None) is None:
                raise error
            return real(*given, **more)

        return step

    for where, name in ((PlainFile, "write"), (PlainFile, "sync"), (Path, "unlink")):
        monkeypatch.setattr(where, name, counted(getattr(where, name)))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), Killed()], ids=["fails", "killed"])
@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("by", ["settings", "engine"])
def test_attack_what_could_not_be_erased_is_erased_by_whoever_comes_next(
    home: Home, tmp_path: Path, step: int, error: BaseException, by: str
) -> None:
    """Sealing is switched on and the erasing is cut off anywhere: the next `settings`, whatever it is for, or the next engine does the rest."""
    chosen_key(tmp_path / "key")
    plain_samples(home.samples)
    with home.samples.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplekey, "_PIECE", 4_000)
        steps_of(patch, step, error)
        with suppress(Killed):
            assert settings_of(home, "--seal-samples", str(tmp_path / "key")) == 1
        patch.undo()
        assert Home.open(home.path).settings.seal == tmp_path / "key"
        if by == "settings":
            assert settings_of(home) == 0
            assert not home.samples.exists()
        else:
            serving_of(home).close()
            assert is_plain(home.samples) is False
        assert not any(file.read())


def test_attack_an_engine_without_the_key_overwrites_what_is_in_the_clear(home: Home, tmp_path: Path) -> None:
    """It needs no key for that; nothing is kept, and what is sealed stays. With the key the status tells why there is nothing."""
    key = tmp_path / "key"
    assert settings_of(home, "--seal-samples", str(key)) == 0
    made = key.read_bytes()
    key.unlink()
    plain_samples(home.samples)
    with home.samples.open("rb") as file:
        serving = serving_of(home)
        assert (any(file.read()), home.samples.exists()) == (False, False)
    key.write_bytes(made)
    key.chmod(0o600)
    serving.learn()
    status: Any = serving.status()
    assert status["kept"]["begun_anew"] == "what was kept in the clear is overwritten"
    serving.close()


def test_what_a_running_engine_keeps_until_its_next_start_is_overwritten_then(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`settings` says that it is in the clear until then; the engine that takes over waits for the one before."""
    first = serving_of(home)
    assert settings_of(home, "--seal-samples", str(tmp_path / "key")) == settings_of(home) == 0
    said = "keeps until its next start, is in the clear; it is overwritten then"
    assert capsys.readouterr().err.count(said) == 2
    teach(first)
    second = serving_of(home)
    teach(second)
    assert kept(second) == (0, None)
    first.close()
    with pytest.MonkeyPatch.context() as patch, home.samples.open("rb") as file:
        patch.setattr(model, "erase", lambda _: False)  # the one before ends right after that
        second.learn()
        assert (is_plain(home.samples), any(file.read())) == (True, True)
    with home.samples.open("rb") as file:
        second.learn()
        assert not any(file.read())
    teach(second)
    assert kept(second)[0] > 0
    second.close()
    assert (is_plain(home.samples), settings_of(home), home.samples.exists()) == (False, 0, True)
    assert capsys.readouterr().err == ""


def test_what_a_running_engine_keeps_is_removed_where_nothing_shall_be_kept(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next engine would not look at it; and the verb says that it is not overwritten."""
    serving = serving_of(home)
    assert settings_of(home, "--keep-samples", "none") == 0
    assert "removed and not overwritten, like what it keeps until its next start" in capsys.readouterr().err
    assert not home.samples.exists()
    serving.close()


def test_attack_a_link_in_the_place_of_the_samples_is_not_followed(home: Home, tmp_path: Path) -> None:
    """What it leads to stays; the verb and the engine say what is wrong."""
    other = tmp_path / "other"
    other.write_bytes(b"of somebody else")
    assert settings_of(home, "--seal-samples", str(tmp_path / "key")) == 0
    home.samples.symlink_to(other)
    with pytest.raises(EdgestillError, match="cannot be erased"):
        is_plain(home.samples)
    assert settings_of(home) == 1
    serving = serving_of(home)
    assert "cannot be erased" in kept(serving)[1]
    serving.close()
    assert other.read_bytes() == b"of somebody else"
