"""Rules of the house: who may import whom, how long a file may be, and that the README's commands exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "music2vec_hf"
FILES = sorted(LIBRARY.rglob("*.py"))

# Wing -> the wings that it may import. Arrows point down only; pretraining, probing, finetuning and hub never meet.
ALLOWED = {
    "model floor": {"model floor"},
    "data": {"data", "model floor"},
    "embeddings": {"embeddings", "precision", "data", "model floor"},
    "precision": {"precision"},
    "pretraining": {"pretraining", "precision", "data", "embeddings", "model floor"},
    "finetuning": {"finetuning", "precision", "data", "embeddings", "model floor"},
    "probing": {"probing", "precision", "data", "embeddings", "model floor"},
    "hub": {"hub", "data", "embeddings", "model floor"},
    "top": {"top", "pretraining", "probing", "finetuning", "hub", "data", "embeddings", "model floor"},
}
TOP = {"cli.py", "cli_embeddings.py", "cli_export.py", "__main__.py", "__init__.py", "demo.py"}
EMBEDDINGS = {
    *("embeddings.py", "embedding_model.py", "embedding_windows.py", "embedding_inputs.py", "embedding_batches.py"),
    *("embedding_table.py", "embedding_files.py", "similarity.py"),
}
HUB = {
    *("hub.py", "fairseq.py", "fairseq_reader.py", "model_card.py", "model_facts.py", "push.py", "remote_code.py"),
    *("onnx_export.py", "onnx_int8.py"),
}


def wing_of(path: Path) -> str:
    inside = path.relative_to(LIBRARY)
    if len(inside.parts) > 1:
        return inside.parts[0]
    if inside.name.endswith("_music2vec.py"):
        return "model floor"
    if inside.name in EMBEDDINGS:
        return "embeddings"
    if inside.name in HUB:
        return "hub"
    return "top" if inside.name in TOP else inside.stem


def imported_files(path: Path):
    """Files of ours that a file imports, anywhere in it; read, not executed."""
    package = path.parent
    for node in ast.walk(ast.parse(path.read_text())):
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    for imported in imported_files(path):
        assert wing_of(imported) in ALLOWED[wing_of(path)], f"{path} must not import {imported}"


def test_the_rule_sees_a_forbidden_import(tmp_path, monkeypatch):
    """The test above can fail: a planted sideways import is found."""
    planted = LIBRARY / "probing" / "planted.py"
    text = "def late():\n    from ..pretraining.loop import pretrain\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: text)
    assert [wing_of(file) for file in imported_files(planted)] == ["pretraining"]


@pytest.mark.parametrize("path", [p for p in FILES if p.name.endswith("_music2vec.py")], ids=lambda path: path.name)
def test_model_files_can_travel_to_the_hub(path):
    """`save_pretrained` copies files reached by `from .name import`, and only those."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module
            assert (LIBRARY / f"{node.module}.py").is_file()
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.startswith("music2vec_hf") for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path):
    assert path.read_text().count("\n") <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node) or ""
            lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines without its docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_global_random_state_and_no_catch_all(path):
    text = path.read_text()
    assert not re.search(r"np\.random\.(seed|rand|randn|randint|choice|shuffle|permutation)\(", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            assert not (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))


def test_public_functions_and_classes_say_what_they_are():
    silent = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            named = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                silent.append(f"{path.name}: {node.name}")
    assert silent == []


def test_the_readmes_verbs_exist():
    from music2vec_hf.cli import build_parser

    verbs = next(action.choices for action in build_parser()._actions if action.choices)
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^(?:\$ )?music2vec ([a-z]+)", text, flags=re.M))
    assert used and used <= set(verbs)
    for page in (ROOT / "docs").glob("*.md"):
        assert set(re.findall(r"^(?:\$ )?music2vec ([a-z]+)", page.read_text(), flags=re.M)) <= set(verbs)
