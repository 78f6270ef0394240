"""The command line as a person or a script meets it: exit status, one line an error, JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgestill import __version__
from edgestill.cli.app import app
from edgestill.core.bundle import Bundle, build, write_archive
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy

LABELS = ("left", "right")


def edgestill(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program, run to its end."""
    command = [sys.executable, "-m", "edgestill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def tiny_model(scale: float) -> bytes:
    """An ONNX student: logits are `scale` times the two inputs, which are the features too."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], np.eye(2, dtype=np.float32).ravel() * scale)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w"], ["logits"]),
            helper.make_node("Identity", ["input"], ["features"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
            for name in ("logits", "features")
        ],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def make_bundle(
    path: Path, *, version: str = "1.0.0", scale: float = 3.0, policy: bytes | None = None
) -> Path:
    """A small bundle that runs."""
    inputs = np.array([[1, 0], [0, 1]], dtype=np.float32)
    golden = Golden(input=inputs, logits=inputs * np.float32(scale), tolerance=0.01)
    manifest, blobs = build(
        name="tiny",
        version=version,
        hardware_class="any",
        blobs={
            "model.onnx": tiny_model(scale),
            "policy.json": Policy(labels=LABELS).to_bytes() if policy is None else policy,
            "golden.npz": golden.to_bytes(),
            "lineage.json": b"{}",
            "card.md": b"# A tiny model\n",
        },
    )
    write_archive(path, manifest, blobs)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as a file."""
    return make_bundle(tmp_path / "tiny.esb")


def assert_refused(done: subprocess.CompletedProcess[str], code: str, *parts: str) -> None:
    """Exit status 1 and one line that names the code."""
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"[{code}] ")
    for part in parts:
        assert part in lines[0]


def test_the_version_is_the_packages() -> None:
    """`edgestill --version` prints it and ends with 0."""
    done = edgestill("--version")
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_wrong_usage_ends_with_2() -> None:
    """An unknown verb or option is usage, not an error with a code."""
    assert edgestill("fly").returncode == 2
    assert edgestill("demo", "--sideways").returncode == 2


def test_help_names_every_verb() -> None:
    """Without arguments the program shows what it can do."""
    shown = edgestill("--help").stdout
    for verb in ("demo", "predict", "bundle"):
        assert verb in shown


def test_an_unknown_scenario_is_one_line() -> None:
    """The text says which scenarios there are."""
    assert_refused(edgestill("demo", "--scenario", "wach"), "setting-invalid", "expected watch, images")


def test_errors_for_machines_are_one_json_object() -> None:
    """With `--json` the last line on standard output is the error."""
    done = edgestill("demo", "--scenario", "wach", "--json")
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (done.returncode, error["code"], error["where"]) == (1, "setting-invalid", "--scenario")


def test_images_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    """A missing data file is named."""
    missing = tmp_path / "none.npz"
    assert_refused(
        edgestill("demo", "--scenario", "images", "--data", missing), "path-unusable", str(missing)
    )


def test_a_report_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    """A file where the folder should be is refused at once."""
    (tmp_path / "taken").write_text("a file")
    done = edgestill("demo", "--out", tmp_path / "taken" / "out")
    assert_refused(done, "path-unusable", "--out")


def test_predict_answers_a_batch(bundle: Path, tmp_path: Path) -> None:
    """Labels and probabilities, row by row; for machines also the confidence, and by which measure."""
    np.save(tmp_path / "batch.npy", np.array([[2, 0], [0, 2], [0, 9]], dtype=np.float32))
    done = edgestill("predict", bundle, tmp_path / "batch.npy", "--json")
    told = json.loads(done.stdout)
    assert told["measure"] == "max_probability"
    assert [one["label"] for one in told["answers"]] == ["left", "right", "right"]
    sure = 1 / (1 + np.exp(-6))
    assert told["answers"][0]["confidence"] == pytest.approx(sure, abs=1e-3)
    assert told["answers"][0]["probability"] == pytest.approx(sure, abs=1e-3)
    lines = edgestill("predict", bundle, tmp_path / "batch.npy").stdout.splitlines()
    assert lines[0] == f"{sure:.3f}  left"


def test_predict_takes_what_the_sensor_wrote(bundle: Path, tmp_path: Path) -> None:
    """A table of two columns, each row an input; what is damaged is named."""
    (tmp_path / "told.csv").write_text("left,right\n3,-1\n-1,3\n")
    done = edgestill("predict", bundle, tmp_path / "told.csv", "--json")
    assert [one["label"] for one in json.loads(done.stdout)["answers"]] == ["left", "right"]
    (tmp_path / "heard.wav").write_bytes(b"RIFF")
    assert_refused(edgestill("predict", bundle, tmp_path / "heard.wav"), "data-unusable", "heard.wav")


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (np.zeros((2, 3), dtype=np.float32), "shape-mismatch"),
        (np.zeros((2, 2), dtype=np.float64), "dtype-mismatch"),
        (np.full((2, 2), np.nan, dtype=np.float32), "not-finite"),
    ],
)
def test_predict_refuses_what_the_model_does_not_take(
    bundle: Path, tmp_path: Path, batch: np.ndarray, code: str
) -> None:
    """Shape, type and NaN each have their code."""
    np.save(tmp_path / "batch.npy", batch)
    assert_refused(edgestill("predict", bundle, tmp_path / "batch.npy"), code)


def test_attack_a_bundle_that_was_altered_anywhere_does_not_answer(bundle: Path, tmp_path: Path) -> None:
    """Nor is it patched: also where the byte lies in a part that answering does not read."""
    np.save(tmp_path / "batch.npy", np.zeros((1, 2), dtype=np.float32))
    whole = bundle.read_bytes()
    golden = Bundle.open(bundle).read("golden.npz")
    bad = tmp_path / "bad.esb"
    bad.write_bytes(whole.replace(golden, golden[:40] + bytes([golden[40] ^ 1]) + golden[41:]))
    assert_refused(edgestill("predict", bad, tmp_path / "batch.npy"), "bundle-altered", "golden.npz")
    for pair in ((bad, bundle), (bundle, bad)):
        assert_refused(edgestill("bundle", "diff", *pair, tmp_path / "p"), "bundle-altered", "golden.npz")
    assert not (tmp_path / "p").exists()


def test_predict_refuses_to_answer_what_is_no_number(bundle: Path, tmp_path: Path) -> None:
    """Inputs so large that the model overflows: the error names the bundle, and nobody is told `nan`."""
    np.save(tmp_path / "x.npy", np.full((1, 2), 3e38, np.float32))
    done = edgestill("predict", bundle, tmp_path / "x.npy")
    assert_refused(
        done, "answer-not-finite", f"at {bundle}: logits", "the model's answer is not finite", "got inf"
    )


def test_predict_names_the_bundle_of_what_is_wrong_in_it(tmp_path: Path) -> None:
    """Its path, and its policy once, not `policy.json: policy.json`."""
    path = make_bundle(tmp_path / "x.esb", policy=b"[]")
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    done = edgestill("predict", path, tmp_path / "x.npy")
    assert_refused(
        done, "message-invalid", f"at {path}: policy.json; expected {{...}}; got list; fetch or build"
    )
    path = make_bundle(tmp_path / "y.esb", policy=Policy(labels=("a", "b", "c")).to_bytes())
    done = edgestill("predict", path, tmp_path / "x.npy")
    assert_refused(done, "class-count-mismatch", f"at {path}: logits")


def test_what_is_no_patch_is_told_with_its_place(bundle: Path, tmp_path: Path) -> None:
    """The files, and the part of the patch."""
    (tmp_path / "p").write_bytes(b"x" * 100)
    done = edgestill("bundle", "apply", bundle, tmp_path / "p", tmp_path / "new.esb")
    assert_refused(done, "patch-invalid", f"at {tmp_path / 'p'}, applied to {bundle}: header")


@pytest.mark.parametrize(
    "verb",
    [
        ("bundle", "inspect", "/dev/zero"),
        ("bundle", "verify", "/dev/zero"),
        ("bundle", "apply", "BUNDLE", "/dev/zero", "NEW"),
        ("bundle", "apply", "/dev/zero", "BUNDLE", "NEW"),
        ("predict", "BUNDLE", "/dev/zero"),
        ("predict", "/dev/zero", "BUNDLE"),
        ("distill", "/dev/zero"),
        ("demo", "--scenario", "images", "--data", "/dev/zero"),
    ],
)
def test_attack_a_path_to_an_endless_device_is_refused_by_every_verb(
    bundle: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    """At once: it would fill the memory."""
    given = [{"BUNDLE": bundle, "NEW": tmp_path / "new.esb"}.get(one, one) for one in verb]
    assert_refused(edgestill(*given), "path-unusable", "at /dev/zero", "got a device or a pipe")


def test_predict_refuses_a_pickle(bundle: Path, tmp_path: Path) -> None:
    """An npy file of objects is not loaded, and nobody is told how to load it all the same."""
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = edgestill("predict", bundle, tmp_path / "objects.npy")
    assert_refused(done, "data-unusable", "Python objects", "numpy.save")
    assert "allow_pickle" not in done.stderr


def test_predict_names_the_file_of_what_it_refuses(bundle: Path, tmp_path: Path) -> None:
    """And the model's input that it was for."""
    path = tmp_path / "batch.npy"
    np.save(path, np.zeros((2, 3), dtype=np.float32))
    assert_refused(edgestill("predict", bundle, path), "shape-mismatch", f"at {path}: input; expected [N, 2]")


def test_predict_refuses_a_damaged_header(bundle: Path, tmp_path: Path) -> None:
    """Numpy reads it as Python, and Python stumbles over it: still one line."""
    path = tmp_path / "batch.npy"
    np.save(path, np.zeros((2, 2), dtype=np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 2)", b"(2, 2 ", 1))
    assert_refused(edgestill("predict", bundle, path), "data-unusable", str(path))


def test_predict_takes_either_byte_order(bundle: Path, tmp_path: Path) -> None:
    """A file from a big-endian machine holds the same numbers."""
    np.save(tmp_path / "batch.npy", np.array([[2, 0], [0, 2]], dtype=">f4"))
    done = edgestill("predict", bundle, tmp_path / "batch.npy", "--json")
    assert [one["label"] for one in json.loads(done.stdout)["answers"]] == ["left", "right"]


def test_a_bundle_shows_what_it_is(bundle: Path) -> None:
    """`inspect` names version, blobs, digest and card; `--json` the manifest and the card."""
    shown = edgestill("bundle", "inspect", bundle).stdout
    assert "tiny 1.0.0 for any" in shown
    assert "A tiny model" in shown
    head = json.loads(edgestill("bundle", "inspect", bundle, "--json").stdout)
    assert head["digest"] == str(Bundle.open(bundle).manifest.digest)
    assert head["card"] == Bundle.open(bundle).read("card.md").decode()


def test_a_sound_bundle_is_verified(bundle: Path) -> None:
    """`verify` ends with 0 and the digest."""
    assert json.loads(edgestill("bundle", "verify", bundle, "--json").stdout)["verified"] is True


def test_attack_an_altered_bundle_is_refused(bundle: Path) -> None:
    """One bit of a blob is enough."""
    data = bytearray(bundle.read_bytes())
    at = data.index(b"A tiny model")
    data[at] ^= 1
    bundle.write_bytes(data)
    assert_refused(edgestill("bundle", "verify", bundle), "bundle-altered", "card.md")


def test_a_truncated_bundle_is_refused(bundle: Path) -> None:
    """Half a file is named as such."""
    bundle.write_bytes(bundle.read_bytes()[:2000])
    assert_refused(edgestill("bundle", "verify", bundle), "bundle-truncated")


def test_a_patch_gives_the_new_bundle_bit_for_bit(bundle: Path, tmp_path: Path) -> None:
    """`diff` and `apply` are each other's way back; a patch for another base is refused, and writes nothing."""
    new = make_bundle(tmp_path / "new.esb", version="1.1.0", scale=4.0)
    patch, out = tmp_path / "patch", tmp_path / "out.esb"
    assert edgestill("bundle", "diff", bundle, new, patch).returncode == 0
    assert edgestill("bundle", "apply", bundle, patch, out).returncode == 0
    assert out.read_bytes() == new.read_bytes()
    assert_refused(edgestill("bundle", "apply", new, patch, tmp_path / "wrong.esb"), "patch-invalid")
    assert not (tmp_path / "wrong.esb").exists()


def children_of(group: str) -> list[int]:
    """Processes whose command line names this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if group in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [one for one in found if one != os.getpid()]


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_part_of_a_report(tmp_path: Path) -> None:
    """A demonstration that is interrupted once its hub runs ends with 130, its processes with it."""
    out, temporary = tmp_path / "out", tmp_path / "t"
    temporary.mkdir()
    command = [sys.executable, "-m", "edgestill.cli", "demo", "--out", str(out), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(temporary)}
    ) as running:
        until = time.monotonic() + 300
        while not (out / "logs" / "hub.log").exists() and time.monotonic() < until:
            assert running.poll() is None, running.communicate()
            time.sleep(0.1)  # real processes: there is no clock to fake
        assert children_of(str(temporary))
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert children_of(str(temporary)) == []
    assert list(temporary.glob("edgestill-*")) == []
    assert not (out / "report.json").exists()
    assert not (out / "report.html").exists()


def test_the_verbs_that_are_written_about_exist() -> None:
    """Whatever the documentation or an error tells a person to type after `edgestill` is a verb, and its part too."""
    root = Path(__file__).parents[2]
    known: dict[str | None, set[str | None]] = {verb.name: set() for verb in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        verbs, parts = group.typer_instance.registered_commands, group.typer_instance.registered_groups
        known[group.name] = {verb.name or verb.callback.__name__ for verb in verbs if verb.callback}
        known[group.name] |= {part.name for part in parts}
    pages = [*(root / "docs").rglob("*.md"), root / "README.md", *(root / "src").rglob("*.py")]
    named = {
        (page.name, *match.groups())
        for page in pages
        for match in re.finditer(r"(?:`|\$ |run: )edgestill ([a-z]+)(?: ([a-z-]+)\b)?", page.read_text())
    }
    assert "bundle" in {verb for _, verb, _ in named}
    wrong = {
        one
        for one in named
        if one[1] not in known or (known[one[1]] and one[2] not in {None, *known[one[1]]})
    }
    assert wrong == set()
