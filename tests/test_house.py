"""The house keeps its own rules: docstrings, sizes, floors, libraries, errors and pages.

The floors themselves are import-linter contracts (`.importlinter`); here is what those cannot say.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from edgestill.core.errors import codes

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "edgestill"
DOCS = ROOT / "docs"
TOOLS_FLOOR = {"trust", "delta", "store", "infer", "learn", "link"}
ROOMS = {"core", *TOOLS_FLOOR, "lab", "hub", "device", "federated", "testing", "demo", "cli"}
MAX_LINES = 600
EXCUSE = f"Longer than {MAX_LINES} lines because"

# Which third-party library a room may load. Imports under TYPE_CHECKING load nothing and do not count.
LIBRARIES: dict[str, set[str]] = {
    "core": set(),
    "trust": {"tuf", "securesystemslib", "cryptography"},
    "delta": {"zstandard"},
    "store": set(),
    "infer": {"numpy"},
    "learn": {"numpy"},
    "link": {"urllib3"},
    "lab": {
        "numpy",
        "torch",
        "onnx",
        "onnxruntime",
        "onnx_ir",
        "onnxscript",
        "lightning_fabric",
        "matplotlib",
        "optuna",
        "safetensors",
        "scipy",
        "timm",  # where the user has it
        "transformers",
    },
    "hub": {"numpy", "starlette", "uvicorn", "sqlalchemy", "alembic", "aiosqlite"},
    "device": {"numpy"},
    "federated": {"numpy", "flwr"},
    "testing": {"numpy", "tuf", "securesystemslib", "cryptography", "pytest", "hypothesis"},
    "demo": {"numpy", "torch", "matplotlib", "rich"},
    # a verb asks for what it needs before it begins, so that a missing extra is one sentence
    "cli": {
        "typer",
        "rich",
        "numpy",
        "onnxruntime",
        "zstandard",
        "torch",
        "starlette",
        "uvicorn",
        "matplotlib",
        "lightning_fabric",
        "optuna",
        "tuf",
        "urllib3",
    },
}
# ... and which module may load one that its room may not.
EXCEPTIONS: dict[str, set[str]] = {
    "edgestill.infer.engine": {"onnxruntime"},
    "edgestill.infer.openvino": {"openvino"},
    "edgestill.infer.litert": {"ai_edge_litert", "flatbuffers"},
    "edgestill.infer.recordings": {"PIL"},
    "edgestill.infer.payload": {"PIL", "soundfile"},
    "edgestill.link.inference": {"numpy"},
    "edgestill.device.sealing": {"cryptography"},  # where a key is given
    "edgestill.device.serve": {"uvicorn"},
    "edgestill.device.main": {"uvicorn"},  # asks for it before it begins to serve
}
# The standard library's own ways to a web server; `link` is the only room that opens client connections.
CLIENTS = {"http.client", "urllib.request", "ftplib", "smtplib", "xmlrpc", "telnetlib"}

# What every error says (besides what is wrong) wherever it is raised, and the kinds that leave some of it out.
ANSWERS = {"where", "expected", "got", "fix"}
LEFT_OUT = {
    "UnitError": {"where"},  # it is told a text; whoever knows where the text stood adds it
    "MissingExtraError": {"expected", "got"},  # the package that is not there is all there is to say
}
GLOSSARY = """teacher, student, recipe, budget, bundle, release, rollout, assignment, slot, probe, health, escalate,
fuse, alpha, temperature, threshold, audit sample, evidence, lineage"""


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax."""
    return ast.parse(path.read_text(), str(path))


def python_files(*folders: str) -> list[Path]:
    """Every Python file below these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's name in failures."""
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """A source file's dotted name."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_by(path: Path) -> set[str]:
    """Dotted names a file imports when it runs, within functions too."""
    names: set[str] = set()
    stack: list[ast.AST] = [tree(path)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("require", "import_module")):
            names |= {
                arg.value
                for arg in node.args[:1]
                if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
        stack.extend(ast.iter_child_nodes(node))
    return names


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The test functions of a file."""
    return [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def headings(page: Path) -> list[str]:
    """The headings of a page, without those in code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [match[1].strip() for match in re.finditer(r"^#+ (.+)$", text, flags=re.MULTILINE)]


def test_the_rooms_are_those_of_the_plan() -> None:
    """There is no folder under `src/edgestill` that is not a room of the house, and every room is there."""
    found = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == ROOMS


def test_every_module_has_a_docstring() -> None:
    """Every Python file says in its docstring what it is, packages, tests and scripts included."""
    assert [
        name_of(path)
        for path in python_files("src", "tests", "tools", "bench", "examples")
        if not ast.get_docstring(tree(path))
    ] == []


def test_every_test_states_its_behaviour_as_a_sentence() -> None:
    """Each test function has a docstring whose first paragraph ends with a full stop, or a colon before the details."""
    silent = [
        f"{name_of(path)}:{test.lineno} {test.name}"
        for path in python_files("tests")
        for test in functions_of(path)
        if not (ast.get_docstring(test) or "").partition("\n\n")[0].endswith((".", ":"))
    ]
    assert silent == []


def test_no_two_test_files_share_a_name() -> None:
    """Tests are no package, so a file's name must tell where it belongs."""
    names = [path.name for path in python_files("tests")]
    assert sorted(names) == sorted(set(names))


def test_every_test_file_of_a_room_names_its_room() -> None:
    """A test file below `tests/ROOM` begins with `test_ROOM_`."""
    assert [
        name_of(path)
        for path in python_files("tests")
        if path.name.startswith("test_")
        and path.parent.name in ROOMS
        and not path.name.startswith(f"test_{path.parent.name}_")
    ] == []


def test_files_stay_short_or_say_why_not() -> None:
    """A file above 600 lines gives the reason in its docstring."""
    assert [
        name_of(path)
        for path in python_files("src", "tests", "tools", "bench", "examples")
        if len(path.read_text().splitlines()) > MAX_LINES
        and EXCUSE not in (ast.get_docstring(tree(path)) or "")
    ] == []


def test_functions_stay_short() -> None:
    """Without docstrings, half of the functions have at most 9 lines, nine in ten 25, and 99 in 100 have 60."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1 - (len((ast.get_docstring(node, clean=False) or "").splitlines()))
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    )
    half, ninth, most = (lengths[int(len(lengths) * share)] for share in (0.5, 0.9, 0.99))
    assert (half <= 9, ninth <= 25, most <= 60) == (True, True, True), (half, ninth, most)


def test_every_exception_from_a_check_has_a_reason() -> None:
    """A `noqa` or `type: ignore` names its rule and is followed by the reason."""
    pattern = re.compile(
        r"#\s*(noqa|type:\s*ignore)(?P<rule>:\s*[A-Z0-9]+(?:,\s*[A-Z0-9]+)*|\[[a-z, -]+\])?(?P<reason>\s+#\s*\S+)?"
    )
    bare = []
    for path in python_files("src", "tools", "bench", "examples"):
        reasons: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = pattern.search(line)
            if match is None:
                continue
            if match["reason"]:
                reasons[match["rule"] or ""] = line
            elif (
                not match["rule"] or match["rule"] not in reasons
            ):  # the first of a file's kind gives the reason
                bare.append(f"{name_of(path)}:{number}")
    assert bare == []


def test_nothing_is_left_undone() -> None:
    """The source holds no TODO or FIXME and raises no NotImplementedError."""
    assert [
        f"{name_of(path)}:{number}"
        for path in python_files("src")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b", line)
    ] == []


def test_there_is_no_import_cycle() -> None:
    """Modules can be put in an order in which each imports only earlier ones."""
    graph = grimp.build_graph("edgestill", exclude_type_checking_imports=True, cache_dir=None)
    order = TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_loads_only_its_own_libraries(room: str) -> None:
    """Each third-party library has its rooms, and a few single modules, where it may be imported."""
    wrong = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        module = module_of(path)
        allowed = LIBRARIES[room] | {"edgestill", "__future__"}
        for exception, more in EXCEPTIONS.items():
            if module == exception or module.startswith(f"{exception}."):
                allowed = allowed | more
        roots = {name.partition(".")[0] for name in loaded_by(path)}
        wrong += [f"{module}: {root}" for root in sorted(roots - allowed - set(sys.stdlib_module_names))]
    assert wrong == []


def test_only_link_opens_client_connections() -> None:
    """The standard library's HTTP and mail clients are imported nowhere outside `link`."""
    wrong = [
        f"{module_of(path)}: {name}"
        for path in python_files("src")
        if "link" not in path.relative_to(SOURCE).parts
        for name in loaded_by(path)
        if any(name == client or name.startswith(f"{client}.") for client in CLIENTS)
    ]
    assert wrong == []


def test_tools_read_no_clock_and_toss_no_coin_of_their_own() -> None:
    """Core and tools are given time and randomness: only `core.clock` asks the machine, only `trust` makes secrets."""
    wrong = [
        f"{module_of(path)}: {name}"
        for room in sorted(TOOLS_FLOOR | {"core"})
        for path in sorted((SOURCE / room).rglob("*.py"))
        for name in loaded_by(path)
        if name in {"time", "random", "secrets"} and module_of(path) != "edgestill.core.clock"
    ]
    assert wrong == []


def test_every_error_code_has_a_heading_and_every_heading_a_code() -> None:
    """`docs/errors.md` explains exactly the codes that exist."""
    explained = {one.strip("`") for one in headings(DOCS / "errors.md") if one.startswith("`")}
    assert explained == set(codes())


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_error_says_where_what_was_expected_what_was_got_and_what_to_do(room: str) -> None:
    """Each names all four where it is raised; what to do may be its class's `remedy` instead."""
    kinds = {kind.__name__: kind for kind in codes().values()}
    mute = [
        f"{name_of(path)}:{node.lineno} {', '.join(sorted(missing))}"
        for path in python_files(f"src/edgestill/{room}")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (kind := kinds.get(ast.unparse(node.func).rpartition(".")[2])) is not None
        and (
            missing := ANSWERS
            - LEFT_OUT.get(kind.__name__, set())
            - ({"fix"} if kind.remedy else set())
            - {one.arg for one in node.keywords}
        )
    ]
    assert mute == []


def test_shapes_are_told_in_one_notation() -> None:
    """An error tells a shape as `[2, 3]`: none formats a tuple, `(2, 3)`, into its text."""
    kinds = {kind.__name__ for kind in codes().values()}
    wrong = [
        f"{name_of(path)}:{value.lineno} {ast.unparse(value)}"
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in kinds
        for value in ast.walk(node)
        if isinstance(value, ast.FormattedValue)
        and re.search(r"\.shape(\[\d*:\d*\])?\)?$|\btuple\(", ast.unparse(value.value))
        and "list(" not in ast.unparse(value.value)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_has_its_page(room: str) -> None:
    """The page of a room has the room's name."""
    assert (DOCS / f"{room}.md").is_file()


def test_every_page_is_in_the_sites_navigation_and_the_other_way_round() -> None:
    """`mkdocs.yml` names every page of `docs`, and no page that is not there."""
    named = re.findall(r"(\S+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("word", [" ".join(word.split()) for word in GLOSSARY.split(",")])
def test_the_glossary_has_the_words_of_the_design(word: str) -> None:
    """Each word that code, wire, command line and docs share is explained."""
    assert word in [heading.lower() for heading in headings(DOCS / "glossary.md")]


def test_every_room_stands_in_the_plan_of_the_house() -> None:
    """`docs/house.md` and the README's table have a row for each room."""
    for page in (DOCS / "house.md", ROOT / "README.md"):
        rows = set(re.findall(r"^\|\s*\[?`([a-z]+)`", page.read_text(), re.MULTILINE))
        assert rows >= ROOMS, page.name


def test_the_readmes_commands_exist() -> None:
    """Every `make TARGET` that README and CONTRIBUTING name is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
        assert {name for pair in used for name in pair if name} <= targets, page
