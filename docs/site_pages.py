"""What `mkdocs.yml` adds to the pages of docs/: pages that lie elsewhere in the repository, and the reference.

A page of the repository keeps its path on the site, except that docs/ is the site's root, and README.md its first
page. Links between pages are written for the repository, as GitHub shows them, and are rewritten here.
"""

import ast
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

from music2vec_hf.cli import build_parser

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files, config):
    """Add README, model cards, examples and benchmarks, and the reference."""
    pages = [ROOT / "README.md", ROOT / "MODEL_CARD.md", ROOT / "examples" / "README.md"]
    pages += [*(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "examples" / "results").glob("*.md")]
    pages += (ROOT / "music2vec_hf" / "weights").glob("*/*.md")
    for page in pages:
        name = page.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, content=page.read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/commands.md", content=command_reference()))
    files.append(File.generated(config, "reference/python.md", content=python_reference()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the repository -> links of the site; of what is no page of the site only the text stays."""
    name = page.file.src_uri
    outside = not (ROOT / "docs" / name).is_file()
    folder = posixpath.dirname(name if outside else f"docs/{name}")

    def moved(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["target"])).removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return match["text"].strip("[]")
        return f"{match['text']}({posixpath.relpath(target, posixpath.dirname(name) or '.')}{match['anchor'] or ''})"

    return markdown if name.startswith("reference/") else LINK.sub(moved, markdown)


def command_reference() -> str:
    """The help of every verb."""
    os.environ["COLUMNS"] = "110"
    parser = build_parser()
    verbs = next(action.choices for action in parser._actions if action.choices)
    parts = [f"# Commands\n\n```text\n{parser.format_help()}```\n"]
    parts += [f"## {name}\n\n```text\n{verb.format_help()}```\n" for name, verb in verbs.items()]
    return "\n".join(parts)


def python_reference() -> str:
    """Every module with public names (`__all__`), by folder; the docstrings come from mkdocstrings."""
    parts, heading = ["# Python\n"], None
    for path in sorted((ROOT / "music2vec_hf").glob("*/**/*.py")):
        names = public_names(path)
        if names and path.name != "__init__.py":
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            wing = module.split(".")[1]
            if wing != heading:
                heading = wing
                parts.append(f"## {wing}\n")
            parts += [f"::: {module}.{name}\n" for name in names]
    return "\n".join(parts)


def public_names(path: Path) -> list[str]:
    """Classes and functions in a module's `__all__`, in its order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            if isinstance(node.value, ast.List):
                return [name for name in ast.literal_eval(node.value) if name in defined]
    return []
