"""The rules of the house that can be read off the files: imports run down, help stays light, shelves and README are whole."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tunesmith"

# Top first. A file imports only from rows below its own, or from its own room; `tunesmith/verbs/chat.py` is of room `verbs`.
ORDER = [
    {"__main__"},
    {"cli"},
    {"verbs"},
    {"train"},
    {"export", "plan", "evaluate", "imports"},
    {"serve"},
    {"tuned"},
    {"step", "config"},
    {"methods", "tasks", "generate"},
    {"models", "data"},
    {"hardware", "events", "run_yaml"},
    {"errors"},
]
# What `--help`, completion and the schema pass through: answering in well under a second leaves no room for these.
HEAVY = {"torch", "transformers", "bitsandbytes", "accelerate", "matplotlib", "pyarrow", "peft", "huggingface_hub", "tokenizers"}
LIGHT = ["config.py", "run_yaml.py", "errors.py", "events.py", "cli.py", "methods/settings.py"]
LIGHT += ["data/files/read.py", "data/sample.py", "data/look/check.py"]
LIGHT_FOLDERS = ["data/formats", "verbs"]

# What the targets of exports stand on.
BESIDE_TARGETS = {
    "agreement", "bases", "changes", "combined", "crown", "difference", "distil", "even", "export", "fitted", "folder", "four_bits",
    "go_template", "live", "merge", "merged", "modelfile", "nearest", "prepared", "served", "source", "target", "targets", "truth",
    "vllm_files", "vllm_proof", "whole",
}  # fmt: skip
# shelf: folder of its pages, files in it that are not things of the shelf
SHELVES = {
    "data/formats": ("docs/data", set()),
    "evaluate/metrics": ("docs/metrics", set()),
    "tasks": ("docs/tasks", {"predict"}),
    "methods": ("docs/methods", {"settings", "method", "tuning", "rates"}),
    "export": ("docs/export", BESIDE_TARGETS),
}
# Pages beside a shelf's own: what all its things share.
BESIDE = {"data/formats": {"files", "info", "check", "scale"}, "methods": {"loftq"}, "export": {"gguf", "merge", "served"}}
# The table of methods needs torch, which `methods/settings.py` in the same folder must not.
TABLES = {"methods": "method.py", "export": "targets.py"}
TESTS_OF_THE_WHOLE = {"laws", "oracle"}
TESTS_OF_NO_FILE = {"test_structure.py", "test_setup.py", "test_docs.py", "test_readme.py", "test_recipes.py", "data/test_dirty.py"}
TESTS_OF_NO_FILE |= {"test_sweep.py", "test_bench.py"}  # of benchmarks


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources()}


@cache
def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, at the top) of every import; `at the top` is false inside functions and under TYPE_CHECKING."""
    found: list[tuple[str, int, bool]] = []
    _collect(ast.parse(path.read_text(encoding="utf-8")), True, found)
    return found


def _collect(node: ast.AST, top: bool, found: list[tuple[str, int, bool]]) -> None:
    if isinstance(node, ast.Import):
        found += [(alias.name, node.lineno, top) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are written in full, from tunesmith..."
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            found.append((whole if whole in MODULES else str(node.module), node.lineno, top))
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        _collect(child, top and not inside and not checking, found)


def room(module: str) -> str:
    """`tunesmith.models.load` is of room `models`; the package itself, which holds the version, is of none."""
    return (module.split(".") + [""])[1]  # noqa: RUF005


def row(module: str) -> int:
    return next((i for i, rooms in enumerate(ORDER) if room(module) in rooms), -1)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tunesmith"])
def test_imports_run_down(module: str) -> None:
    assert row(module) >= 0, f"{module}: its room stands in no row of ORDER"
    for other, line, _ in imports(MODULES[module]):
        if not other.startswith("tunesmith.") or room(other) == room(module):
            continue
        assert row(other) > row(module), f"{MODULES[module]}:{line}: {room(module)} may not import {other}"


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a cycle: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for other, _, _ in imports(MODULES[module]):
                if other in MODULES:
                    visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def light_files() -> list[Path]:
    folders = [path for folder in LIGHT_FOLDERS for path in (PACKAGE / folder).glob("*.py")]
    return sorted([PACKAGE / name for name in LIGHT] + folders)


@pytest.mark.parametrize("path", light_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_files_import_nothing_heavy_at_the_top(path: Path) -> None:
    assert path.exists(), f"{path} is in LIGHT but not there"
    seen: set[Path] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for module, line, top in imports(here):
            if not top:
                continue
            assert module.split(".")[0] not in HEAVY, f"{here}:{line}: {module} at the top, reached from {path}"
            parts = module.split(".")
            packages = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]  # importing a.b.c runs a and a.b too
            todo += [MODULES[name] for name in packages if name in MODULES]


def test_the_configuration_really_loads_without_torch() -> None:
    program = f"import sys, tunesmith.config; sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def tree_of_readme() -> dict[str, str]:
    """{path: phrase} of the block between two `<!-- tree -->` marks. One file or folder a line, its phrase behind two blanks or
    more, folders end in `/`, two blanks of indentation for each level:

        tunesmith/
          cli.py        verbs; reads flags from Run
          models/       from a name to a model in memory
            source.py   name -> local folder
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = text.split("<!-- tree -->")
    assert len(parts) == 3, "README.md: the file tree stands between two lines `<!-- tree -->`"
    paths: dict[str, str] = {}
    stack: list[str] = []
    for line in parts[1].splitlines():
        if not line.strip() or line.startswith("```"):
            continue
        name, _, phrase = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        assert depth <= len(stack), f"README.md: {line!r} is indented too far"
        stack = [*stack[:depth], name]
        paths["".join(stack)] = phrase.strip()
    return paths


def test_the_tree_in_the_readme_is_true() -> None:
    tree = tree_of_readme()
    absent = [path for path in tree if not (ROOT / path).exists()]
    assert not absent, f"in README.md's tree but not there: {absent}"
    silent = [path for path, phrase in tree.items() if not phrase and path != "tunesmith/"]
    assert not silent, f"README.md's tree says nothing about {silent}"
    files = {str(path.relative_to(ROOT)) for path in sources() if path.name != "__init__.py"}
    assert not files - set(tree), f"not in README.md's tree: {sorted(files - set(tree))}"


def shelf_entries() -> list[tuple[str, str]]:
    return [
        (shelf, path.stem)
        for shelf, (_, others) in SHELVES.items()
        for path in sorted((PACKAGE / shelf).glob("*.py"))
        if path.stem not in {"__init__", *others}
    ]


@pytest.mark.parametrize(("shelf", "name"), shelf_entries())
def test_a_thing_on_a_shelf_has_a_table_line_a_page_and_a_test(shelf: str, name: str) -> None:
    place = PACKAGE / shelf / TABLES.get(shelf, "__init__.py")
    table = ast.parse(place.read_text(encoding="utf-8"))
    assert name in {node.id for node in ast.walk(table) if isinstance(node, ast.Name)}, f"{place}: no line for {name}"
    page = ROOT / SHELVES[shelf][0] / f"{name}.md"
    assert page.is_file(), f"{page.relative_to(ROOT)} is missing"
    test = ROOT / "tests" / shelf / f"test_{name}.py"
    assert test.is_file(), f"{test.relative_to(ROOT)} is missing"


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_page_on_a_shelf_has_its_thing(shelf: str) -> None:
    for page in (ROOT / SHELVES[shelf][0]).glob("*.md"):
        beside = page.stem in {"README", *BESIDE.get(shelf, ())}
        assert (PACKAGE / shelf / f"{page.stem}.py").is_file() or beside, f"{page.relative_to(ROOT)} describes nothing"


def test_tests_mirror_the_source() -> None:
    stray = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        inner = path.relative_to(ROOT / "tests")
        if inner.parts[0] in TESTS_OF_THE_WHOLE or str(inner) in TESTS_OF_NO_FILE:
            continue
        if not (PACKAGE / inner.parent / inner.name.removeprefix("test_")).is_file():
            stray.append(f"tests/{inner}")
    assert not stray, f"no source file stands behind {stray}"


def text_files() -> list[Path]:
    skip = {".git", ".venv", "__pycache__", "runs", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in skip and not name.endswith(".egg-info")]
        found += [
            Path(folder) / name for name in names if Path(name).suffix in {"", ".py", ".md", ".toml", ".txt", ".yaml", ".json", ".cfg"}
        ]
    return found


def test_no_machine_is_named() -> None:
    """A path of the machine that something was written on helps nobody; so does the host of a package index."""
    words = ["/" + word for word in ("work/", "tmp/", "root/", "opt/", "home/")] + [
        "pypi" + ".org",
        "--" + "index-url",
        "python" + "hosted",
    ]
    for path in text_files():
        if path.name == "LICENSE":
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found = [word for word in words if any(word in line and f"~{word}" not in line for line in text.splitlines())]
        assert not found, f"{path.relative_to(ROOT)}: names {found}"


def test_nothing_is_unpickled() -> None:
    """torch.load, pickle and their kin run whatever a file tells them to."""
    for path in sources():
        for module, line, _ in imports(path):
            spoken = path == PACKAGE / "data/corpus/workers.py"  # to its own processes, over pipes that nobody else holds
            assert spoken or module.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, f"{path}:{line}: {module}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "torch.load", f"{path}:{node.lineno}: torch.load"
                remote = [k for k in node.keywords if k.arg == "trust_remote_code"]
                assert all(ast.unparse(k.value) == "False" for k in remote), f"{path}:{node.lineno}: trust_remote_code"
