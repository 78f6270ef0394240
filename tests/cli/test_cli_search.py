"""`edgestill search` as a person or a script meets it: a budget in, a bundle out, and what is said on the way."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest
from test_cli_distill import JOB, assert_refused, edgestill, write_job

from edgestill.core.bundle import Bundle

if TYPE_CHECKING:
    import subprocess

CARVED = JOB.partition("[student]")[0] + "[data]" + JOB.partition("[data]")[2]
CARVED = (
    CARVED.replace('file = "data.npz"', 'file = "data.npz"\nvalidation = 0.5').replace(
        "width = 8", "width = 24"
    )
    + "\n[search]\ntrials = 2\nbudgets = 2\n"
)


@pytest.fixture(scope="module")
def searched() -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A search that ran to its end."""
    folder = Path(mkdtemp())
    write_job(folder, CARVED)
    return folder, edgestill("search", "job.toml", "--budget", "size=20kB", folder=folder)


def test_a_budget_in_a_bundle_out(searched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """It keeps the budget; the front, the pick and the folder are told."""
    folder, done = searched
    assert done.returncode == 0, done.stderr
    out = folder / "search-job"
    assert Bundle.open(out / "student.esb").manifest.size <= 20_000
    lines = done.stdout.splitlines()
    assert "trained to the end" in lines[0]
    assert sum("<- picked" in one for one in lines) == 1
    assert any(one.startswith("bundle: student.esb, ") for one in lines)
    assert lines[-1].endswith("everything is in search-job")
    assert "searched: student 2 of 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_report_says_what_was_found(searched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Slack for each bound, the gain over the uniform student, and where everything is."""
    folder, _ = searched
    report = json.loads((folder / "search-job" / "report.json").read_text())
    assert report["picked"] in report["front"]
    assert report["budget"]["size"]["kept"]
    assert 0 <= report["budget"]["size"]["slack"] < 0.5
    picked = report["points"][report["picked"]]
    assert picked["unseen"]["n"] == 60
    assert Path(folder, picked["weights"]).is_file()
    assert any(one["uniform"] for one in report["points"].values())
    assert set(report["closer"]["classes"]) == {"rest", "lift", "turn"}
    assert sum(report["closer"]["latencies"]["counts"]) + report["closer"]["latencies"]["slower"] == 1000


def test_the_page_needs_nothing_else(searched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """One file: the front, the picked student, its classes, with plots inside."""
    folder, _ = searched
    page = (folder / "search-job" / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "(picked)" in page
    assert "What int8 costs" in page
    for part in ("http://", "https://", "<script", "src="):
        assert part not in page.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
            "http://creativecommons.org/", ""
        ).replace("https://matplotlib.org/", "")


@pytest.mark.slow
def test_the_same_call_goes_on_and_helpers_take_part(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """More trials in two processes, in the same folder; the output is one JSON object."""
    folder, _ = searched
    done = edgestill(
        "search",
        "job.toml",
        "--budget",
        "size=20kB",
        "--trials",
        "4",
        "--workers",
        "2",
        "--json",
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["search"]["trials"] == 4
    assert report["passed_over"] == {}
    assert report["bundle"]["file"] == "student.esb"
    assert "Traceback" not in done.stderr


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    """A budget that no student keeps, one without a unit, arguments of nobody, a key that is misspelt."""
    write_job(tmp_path, CARVED)
    tight = edgestill("search", "job.toml", "--budget", "size=4kB", folder=tmp_path)
    assert_refused(tight, "setting-invalid", "the bound on size is too tight", "the smallest student takes")
    unit = edgestill("search", "job.toml", "--budget", "latency=1", folder=tmp_path)
    assert_refused(unit, "unit-invalid", "latency")
    named = CARVED.replace("[search]\n", "[search]\narguments = { width = [4, 8] }\n")
    write_job(tmp_path, named)
    assert_refused(
        edgestill("search", "job.toml", folder=tmp_path), "setting-invalid", "arguments of no student"
    )
    (tmp_path / "taken").write_text("a file")
    shapes = edgestill("device", "shapes", "job.toml", "taken", folder=tmp_path)
    assert_refused(shapes, "path-unusable", "cannot write into the folder")
    nothing = edgestill("device", "profile", "nowhere", folder=tmp_path)
    assert_refused(nothing, "path-unusable", "nowhere/shapes.json")
    write_job(tmp_path, CARVED.replace("trials", "trails"))
    assert_refused(edgestill("search", "job.toml", folder=tmp_path), "setting-invalid", "trials")


@pytest.mark.slow
def test_a_named_student_is_searched_by_its_arguments(tmp_path: Path) -> None:
    """Which need their ranges; the callable is given what was chosen, and the fixed ones."""
    text = JOB.replace("arguments = { width = 4, seed = 2 }", "arguments = { seed = 2 }")
    text = text.replace('file = "data.npz"', 'file = "data.npz"\nvalidation = 0.5')
    text += '\n[search]\ntrials = 2\narguments = { width = [2, 24] }\n[budget]\nsize = "20 kB"\n'
    write_job(tmp_path, text)
    done = edgestill("search", "job.toml", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["points"][report["picked"]]["widths"]) == {"width"}
    write_job(tmp_path, text.replace("arguments = { width = [2, 24] }\n", ""))
    assert_refused(
        edgestill("search", "job.toml", folder=tmp_path), "setting-invalid", "nothing of it to choose"
    )


@pytest.mark.slow
def test_distill_cuts_a_student_to_the_budget(tmp_path: Path) -> None:
    """Without a [student] the largest uniform part of the teacher that fits is distilled, and no search is made."""
    write_job(tmp_path, CARVED)
    done = edgestill("distill", "job.toml", "--budget", "size=20kB", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 15_000 < Bundle.open(tmp_path / "run-job" / "student.esb").manifest.size <= 20_000
    assert_refused(
        edgestill("distill", "job.toml", "--out", "none", folder=tmp_path),
        "setting-invalid",
        "neither a student nor a budget",
    )


@pytest.mark.slow
def test_a_device_of_another_kind_is_timed_there(tmp_path: Path) -> None:
    """The family goes to the device, its latencies come back, and the bundle is for it; this machine measures nothing."""
    write_job(tmp_path, CARVED)
    made = edgestill(
        "device",
        "shapes",
        "job.toml",
        "shapes",
        "--hardware-class",
        "aarch64-dotprod-onnxruntime",
        folder=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("28 models; copy shapes to the device")
    timed = edgestill("device", "profile", "shapes", folder=tmp_path)
    assert timed.returncode == 0, timed.stderr
    path = tmp_path / "profile.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"hardware_class": "aarch64-dotprod-onnxruntime"}))
    done = edgestill(
        "search",
        "job.toml",
        "--profile",
        "profile.json",
        "--budget",
        "latency=5ms",
        "--json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(one["footprint"]["source"] == "predicted" for one in report["points"].values())
    assert "latencies of aarch64-dotprod-onnxruntime" in report["latencies"]
    bundle = Bundle.open(tmp_path / "search-job" / "student.esb")
    assert bundle.manifest.hardware_class == "aarch64-dotprod-onnxruntime"
    assert report["closer"]["latencies"] is None
