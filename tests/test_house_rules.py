"""Rules of the house: who may import whom, how large a wing, a file and a function may be."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "music2vec_hf"
FILES = sorted(LIBRARY.rglob("*.py"))

# Arrows point down only: a wing may import the levels below its own, never a wing of its own level.
LEVELS = (
    {"common"},
    {"audio", "model"},
    {"features", "corpus", "synthetic"},
    {"pretraining", "finetuning", "probing", "hub"},
    {"top"},
)
# Lines of Python in a wing, at most.
LIMITS = {
    "top": 1_322,
    "common": 1_023,
    "model": 2_066,
    "audio": 2_545,
    "corpus": 2_496,
    "synthetic": 966,
    "features": 2_079,
    "pretraining": 1_878,
    "finetuning": 608,
    "probing": 4_386,
    "hub": 1_376,
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def wing_of(path: Path) -> str:
    inside = path.relative_to(LIBRARY)
    return inside.parts[0] if len(inside.parts) > 1 else "top"


def allowed(wing: str) -> set[str]:
    level = next(number for number, wings in enumerate(LEVELS) if wing in wings)
    return {wing}.union(*LEVELS[:level])


def imported_files(path: Path):
    """Files of ours that a file imports, anywhere in it; read, not executed."""
    package = path.parent
    for node in ast.walk(tree_of(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):
            base = package
            for _ in range(node.level - 1):
                base = base.parent
            prefix = ".".join(base.relative_to(ROOT).parts)
            module = f"{prefix}.{node.module}" if node.module else prefix
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("music2vec_hf.") and file.is_file():
                yield file


def names_of(nodes) -> set[str]:
    """What the statements of a module define."""
    names = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return names


def test_imports_point_downwards():
    pairs = [(path, imported) for path in FILES for imported in imported_files(path)]
    upward = [pair for pair in pairs if wing_of(pair[1]) not in allowed(wing_of(pair[0]))]
    assert len(pairs) > 100 and upward == [], "a file must not import the other"


def test_the_rule_sees_a_forbidden_import(monkeypatch):
    """The test above can fail: a planted sideways import is found."""
    planted = LIBRARY / "probing" / "planted.py"
    text = "def late():\n    from ..pretraining.loop import pretrain\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: text)
    assert [wing_of(file) for file in imported_files(planted)] == ["pretraining"]
    assert "pretraining" not in allowed("probing") and "corpus" not in allowed("features")


def test_model_files_can_travel_to_the_hub():
    """`save_pretrained` copies files reached by `from .name import`, and only those."""
    files = sorted((LIBRARY / "model").glob("*.py"))
    nodes = [(path, node) for path in files for node in ast.walk(tree_of(path))]
    for path, node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, path
            assert (path.parent / f"{node.module}.py").is_file(), path
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.startswith("music2vec_hf") for name in names), path


@pytest.mark.parametrize("wing", sorted(set().union(*LEVELS)))
def test_a_wing_keeps_its_total(wing):
    assert wing == "top" or (LIBRARY / wing).is_dir()
    lines = sum(path.read_text().count("\n") for path in FILES if wing_of(path) == wing)
    assert lines <= LIMITS[wing], f"{wing} has {lines} lines"


def test_a_file_is_read_in_one_sitting():
    assert [path for path in FILES if path.read_text().count("\n") > 400] == []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node) or ""
                lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines without its docstring"


def test_no_global_random_state_and_no_catch_all():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"np\.random\.(seed|rand|randn|randint|choice|shuffle|permutation)\(", text), path
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                assert getattr(node.type, "id", "") not in ("Exception", "BaseException"), path


def test_no_module_gives_out_anothers_names():
    for path in FILES:
        body = tree_of(path).body
        assigned = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)]
        for node in assigned:
            if getattr(node.targets[0], "id", "") == "__all__":
                assert {element.value for element in node.value.elts} <= names_of(body), path


def test_public_functions_and_classes_say_what_they_are():
    silent = []
    for path in FILES:
        for node in tree_of(path).body:
            named = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                silent.append(f"{path.name}: {node.name}")
    assert silent == []


def test_files_beside_the_code_are_packed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {path for pattern in settings["package-data"]["music2vec_hf"] for path in LIBRARY.glob(pattern)}
    beside = {path for path in LIBRARY.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert beside and beside <= packed


def test_the_verbs_that_pages_name_exist():
    from music2vec_hf.cli import build_parser

    verbs = next(action.choices for action in build_parser()._actions if action.choices)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]
    named = {verb for page in pages for verb in re.findall(r"(?:^|`)music2vec ([a-z]+)", page.read_text(), flags=re.M)}
    assert named == set(verbs)


def test_the_page_of_the_house_names_every_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = [path for path in FILES if not path.name.startswith("__") and path.parent.name != "tasks"]
    # Files of the model wing are named without the end that they share.
    assert [path for path in shown if path.stem.removesuffix("music2vec") not in page] == []
