"""Every snippet of the documentation runs, and every link within it leads somewhere.

- Fenced `python` blocks of a page run top to bottom in one namespace, in a process and an empty folder of their own.
- A failing snippet shows the page and line it stands on, because blocks are compiled at their own line numbers.
- Relative links must name a file of the repository, and `#fragments` a heading of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
TIMEOUT = 60.0

RUNNER = """
import pathlib, sys
page, snippets = sys.argv[1], pathlib.Path(sys.argv[2]).read_text().split("\\0")
namespace = {"__name__": "__main__"}
for snippet in snippets:
    exec(compile(snippet, page, "exec", dont_inherit=True), namespace)
"""


def name_of(page: Path) -> str:
    """A page's name in failures."""
    return str(page.relative_to(ROOT))


def snippets_of(text: str) -> list[str]:
    """The Python blocks of a page, each after as many empty lines as stand above it on the page."""
    found = []
    for match in FENCE.finditer(text):
        if match[2] in {"python", "py"}:
            body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            found.append("\n" * (text[: match.start(3)].count("\n")) + body)
    return found


@cache
def anchors_of(page: Path) -> set[str]:
    """The fragments that a page's headings give, as the site spells them."""
    text = FENCE.sub("", page.read_text())
    anchors: set[str] = set()
    for match in re.finditer(r"^#+ (.+?)(?:\s*\{ *#([\w-]+) *\})?\s*$", text, flags=re.MULTILINE):
        plain = (
            re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", match[1])).strip().lower()
        )
        anchors.add(match[2] or re.sub(r"[\s-]+", "-", plain))
    return anchors


def links_of(page: Path) -> list[tuple[str, str]]:
    """The targets of a page's relative links: file (empty for the page itself) and fragment (may be empty)."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    pairs = [target.partition("#")[::2] for target in targets if not re.match(r"[a-z]+:", target)]
    return [(file, fragment) for file, fragment in pairs]


@cache
def names_of_tests() -> frozenset[str]:
    """The names of all test functions of the repository."""
    defined = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    return frozenset(
        name for file in (ROOT / "tests").rglob("test_*.py") for name in defined.findall(file.read_text())
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.exists() and snippets_of(page.read_text())], ids=name_of
)
def test_the_snippets_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """A reader who pastes a page's Python into a fresh interpreter gets no error."""
    program, source = tmp_path / "runner.py", tmp_path / "snippets"
    program.write_text(RUNNER)
    source.write_text("\0".join(snippets_of(page.read_text())))
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(program), name_of(page), str(source)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading that is on it."""
    broken = []
    for file, fragment in links_of(page):
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (
            fragment and target.suffix == ".md" and fragment not in anchors_of(target)
        ):
            broken.append(f"{file}#{fragment}".rstrip("#"))
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    """A page that names a test in evidence names one that is run, and a file of tests that exists."""
    text = FENCE.sub("", page.read_text())
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", text))
    assert named <= names_of_tests()
    assert [path for path in re.findall(r"`(tests/[^`*]+)`", text) if not (ROOT / path).exists()] == []


def test_the_names_of_tests_are_found() -> None:
    """The list that names are looked up in is not empty, and holds tests only."""
    names = names_of_tests()
    assert "test_the_names_of_tests_are_found" in names
    assert "names_of_tests" not in names


def test_a_failing_snippet_would_be_noticed_with_its_line(tmp_path: Path) -> None:
    """The runner itself fails on a failing block and names the page's line."""
    page = "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n"
    (tmp_path / "runner.py").write_text(RUNNER)
    (tmp_path / "snippets").write_text("\0".join(snippets_of(page)))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "runner.py"), "page.md", str(tmp_path / "snippets")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert 'File "page.md", line 10' in done.stderr


def test_blocks_of_other_languages_do_not_run() -> None:
    """Only blocks marked as Python are Python."""
    assert snippets_of("```console\n$ make demo\n```\n```\nplain\n```\n```json\n{}\n```\n") == []
