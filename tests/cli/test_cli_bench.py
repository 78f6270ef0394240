"""The verb `bench`: finds a checkout's benchmarks, runs one, hands its words and its end through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgestill.cli.bench import scripts_in
from edgestill.core.errors import PathError

ROOT = Path(__file__).resolve().parent.parent.parent

SCRIPT = '''\
"""Counts what it is given.

    More that a list does not show.
"""
import json, sys
print("counting", flush=True)
if "--fail" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("--fail") + 1]))
print(json.dumps({"bench": "count", "figures": {"arguments": sys.argv[1:]}}))
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with one benchmark."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench_count.py").write_text(SCRIPT)
    return tmp_path


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The verb, run in `folder` on a copy of the package that has no benchmarks beside it."""
    program = (
        "import sys, edgestill; from pathlib import Path;"
        "edgestill.__file__ = str(Path(sys.argv.pop(1)) / 'site' / 'edgestill' / '__init__.py');"
        "from edgestill.cli import main; main()"
    )
    command = [sys.executable, "-c", program, str(folder / "nowhere"), "bench", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


def test_without_a_name_benchmarks_are_listed(checkout: Path) -> None:
    """Each with the first line of its docstring."""
    assert bench(checkout).stdout == "count      Counts what it is given.\n"
    assert json.loads(bench(checkout, "--json").stdout) == {"benches": {"count": "Counts what it is given."}}


def test_arguments_and_output_are_handed_through(checkout: Path) -> None:
    """What the benchmark prints is printed, its last line last; its own options reach it."""
    done = bench(checkout, "count", "--quick", "three", "--json")
    first, last = done.stdout.splitlines()
    assert (done.returncode, first) == (0, "counting")
    assert json.loads(last) == {
        "bench": "count",
        "figures": {"arguments": ["--quick", "three", "--json"]},
    }


def test_a_benchmark_that_fails_is_one_line(checkout: Path) -> None:
    """The error names the script and its status; for machines it is the last line."""
    done = bench(checkout, "count", "--json", "--fail", "3")
    assert done.returncode == 1
    assert done.stderr.startswith("[bench-failed] a benchmark failed; at ")
    assert "bench_count.py; expected exit status 0; got exit status 3" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "bench-failed"


def test_wrong_usage_of_a_benchmark_ends_with_2(checkout: Path) -> None:
    """It has said what is wrong itself."""
    done = bench(checkout, "count", "--fail", "2")
    assert (done.returncode, done.stderr) == (2, "")


def test_an_unknown_benchmark_is_one_line(checkout: Path) -> None:
    """The text says which there are."""
    done = bench(checkout, "cuont")
    assert (done.returncode, done.stderr) == (
        1,
        "[not-found] no such benchmark; at the folder bench; expected count; got 'cuont'; run `edgestill bench` to see them\n",
    )


def test_without_a_checkout_the_text_says_where_benchmarks_are(tmp_path: Path) -> None:
    """Installed from a wheel, in some folder."""
    done = bench(tmp_path, "distill")
    assert done.returncode == 1
    assert done.stderr.startswith("[path-unusable] no benchmarks here; at ")
    assert "they are in the repository, not in the package" in done.stderr
    assert "run this in a checkout" in done.stderr


def test_the_checkout_one_is_installed_from_comes_first(checkout: Path, tmp_path: Path) -> None:
    """The current folder counts only where the package is not in a checkout."""
    other = tmp_path / "other"
    (other / "bench").mkdir(parents=True)
    (other / "bench" / "bench_other.py").write_text('"""Other."""\n')
    assert list(scripts_in(checkout, other)) == ["count"]
    assert list(scripts_in(tmp_path / "none", other)) == ["other"]
    with pytest.raises(PathError, match="no benchmarks here"):
        scripts_in(tmp_path / "none")


def test_the_projects_own_benchmarks_are_found() -> None:
    """Those that the docs speak of."""
    assert {"demo", "distill"} <= set(scripts_in(ROOT))
