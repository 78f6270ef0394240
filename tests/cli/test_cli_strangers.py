"""What strangers hand to the command line: files that are not what they should be, and texts that want the terminal."""

from __future__ import annotations

import json
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgestill.cli import app as program
from edgestill.cli import bundle as verbs
from edgestill.cli.app import app
from edgestill.cli.terminal import plain
from edgestill.core.bundle import build, write_archive
from edgestill.core.errors import DemoError, EdgestillError
from edgestill.delta.codec import diff

if TYPE_CHECKING:
    from pathlib import Path

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A sound bundle whose card wants to set the terminal's title."""
    blobs = {
        "model.onnx": b"not looked at",
        "policy.json": b"{}",
        "golden.npz": b"golden",
        "lineage.json": b"{}",
        "card.md": f"# A card\n\twith {ESCAPE} in it\n".encode() + b"\xff",
    }
    manifest, ordered = build(name="tiny", version="1.0.0", hardware_class="any", blobs=blobs)
    write_archive(tmp_path / "tiny.esb", manifest, ordered)
    return tmp_path / "tiny.esb"


def refused(*arguments: object) -> EdgestillError:
    """The coded error that a verb ends with."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert isinstance(done.exception, EdgestillError), done.exception
    assert "\n" not in str(done.exception)
    return done.exception


def test_attack_a_card_cannot_reach_the_terminal(bundle: Path) -> None:
    """Its lines and tabs are shown, its escape sequences are not, and bytes that are no text do not matter."""
    shown = CliRunner().invoke(app, ["bundle", "inspect", str(bundle)])
    assert shown.exit_code == 0
    assert "# A card\n\twith \N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER} in it" in shown.output
    assert "\x1b" not in shown.output


def test_plain_text_stays_as_it_is() -> None:
    """Letters of any script, lines and tabs; carriage returns could overwrite a line and go."""
    assert plain("Größe\t5 µm\n数") == "Größe\t5 µm\n数"
    assert plain("a\rb\x1b[2Jc\u202e") == "a\ufffdb\ufffd[2Jc\ufffd"


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_is_not_there_is_named(tmp_path: Path, verb: str) -> None:
    """A path that leads nowhere, and a folder that is no bundle."""
    assert refused("bundle", verb, tmp_path / "none.esb").code == "path-unusable"
    assert refused("bundle", verb, tmp_path).code == "bundle-invalid"


@pytest.mark.parametrize("missing", [0, 1])
def test_a_patch_of_files_that_are_not_there(bundle: Path, tmp_path: Path, missing: int) -> None:
    """Either may be missing; no patch is written."""
    pair: list[Path] = [bundle, bundle]
    pair[missing] = tmp_path / "none.esb"
    error = refused("bundle", "diff", *pair, tmp_path / "patch")
    assert (error.code, error.where) == ("path-unusable", tmp_path / "none.esb")
    assert not (tmp_path / "patch").exists()


def test_a_patch_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    """The folder is missing: a coded error that names the path."""
    assert refused("bundle", "diff", bundle, bundle, tmp_path / "none" / "patch").code == "path-unusable"


def test_a_patch_to_an_empty_file_is_one_too(bundle: Path, tmp_path: Path) -> None:
    """Its share of nothing is not divided by nothing."""
    (tmp_path / "empty").touch()
    done = CliRunner().invoke(
        app, ["bundle", "diff", str(bundle), str(tmp_path / "empty"), str(tmp_path / "p")]
    )
    assert done.exit_code == 0


@pytest.mark.parametrize(
    "data", [b"", b"esdelta1", b"something else that is longer than a patch's header" * 3]
)
def test_what_is_no_patch_is_refused(bundle: Path, tmp_path: Path, data: bytes) -> None:
    """Empty, cut off, or of another kind; nothing is written."""
    (tmp_path / "patch").write_bytes(data)
    assert refused("bundle", "apply", bundle, tmp_path / "patch", tmp_path / "new").code == "patch-invalid"
    assert not (tmp_path / "new").exists()


def test_attack_a_patch_cannot_ask_for_all_memory(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody signed the size that a patch names: above the verb's bound it is refused before it is unpacked."""
    monkeypatch.setattr(verbs, "MAX_NEW_BYTES", 1000)
    (tmp_path / "patch").write_bytes(diff(bundle.read_bytes(), bytes(1001)))
    assert refused("bundle", "apply", bundle, tmp_path / "patch", tmp_path / "new").code == "patch-invalid"
    assert not (tmp_path / "new").exists()


def npz(path: Path) -> None:
    """Several arrays."""
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(1))


def huge(path: Path) -> None:
    """A header that promises far more than there is."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": (2**50, 128, 6)}).encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 no zip"),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
        npz,
        huge,
    ],
    ids=["empty", "half-a-zip", "half-a-header", "npz", "huge"],
)
def test_predict_refuses_what_is_no_batch(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    """Each is one coded error that names the file, never numpy's own."""
    monkeypatch.setattr("edgestill.infer.student.load", lambda _: None)  # the input is read before it is used
    write(tmp_path / "batch.npy")
    error = refused("predict", bundle, tmp_path / "batch.npy")
    assert (error.code, error.where) == ("data-unusable", tmp_path / "batch.npy")


def test_predict_names_an_input_that_is_not_there(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a bundle that is damaged within."""
    assert refused("predict", bundle, tmp_path / "none.npy").code == "message-invalid"  # its policy is `{}`
    monkeypatch.setattr("edgestill.infer.student.load", lambda _: None)
    assert refused("predict", bundle, tmp_path / "none.npy").code == "path-unusable"


def test_without_arguments_help_is_shown() -> None:
    """Of the program, and of the group of verbs."""
    assert "predict" in CliRunner().invoke(app, []).output
    assert "verify" in CliRunner().invoke(app, ["bundle"]).output


@pytest.mark.parametrize(
    "arguments", [["demo", "--seed", "-1"], ["demo", "--seed", "x"], ["bundle", "inspect"], ["predict", "a"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    """A value out of range, of another type, or missing."""
    assert CliRunner().invoke(app, arguments).exit_code == 2


def run_with(monkeypatch: pytest.MonkeyPatch, raised: BaseException, *arguments: str) -> int:
    """The status that the program ends with where a verb raises this; signal handlers stay as they are."""

    def raising() -> None:
        raise raised

    monkeypatch.setattr(program, "app", raising)
    monkeypatch.setattr(sys, "argv", ["edgestill", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        program.run()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_coded_error_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--json` the same facts stand on standard output as an object."""
    error = DemoError("a step\nfailed", where="hub.log", got="\x1b[31m")
    assert run_with(monkeypatch, error, "demo") == 1
    assert capsys.readouterr() == (
        "",
        "[demo-failed] a step failed; at hub.log; got \N{REPLACEMENT CHARACTER}[31m\n",
    )
    assert run_with(monkeypatch, error, "demo", "--json") == 1
    said, _ = capsys.readouterr()
    assert json.loads(said)["error"]["code"] == "demo-failed"


def test_an_interruption_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 130 with a line; other ends without one."""
    assert run_with(monkeypatch, SystemExit(130)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert run_with(monkeypatch, SystemExit(2)) == 2
    assert capsys.readouterr().err == ""
