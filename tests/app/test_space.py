"""examples/space: what is pushed as a Space is whole, and its page builds."""

import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_its_requirements_are_those_of_the_library():
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["dependencies"]


def test_its_front_matter_names_what_is_there():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio" and (SPACE / settings["app_file"]).is_file()
    low, high = (tuple(map(int, part.split("."))) for part in ("6.31", "7"))
    assert PROJECT["optional-dependencies"]["app"] == ["gradio>=6.31,<7"]
    assert low <= tuple(map(int, settings["sdk_version"].split("."))) < high
    assert PROJECT["requires-python"] == ">=" + settings["python_version"]
    assert len(settings["short_description"]) <= 60  # the Hub refuses longer ones


def test_its_page_builds(monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'music2vec_hf[app]'")
    from music2vec_hf.app import make_page

    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.delenv("LIBRARY", raising=False)
    listener = runpy.run_path(str(SPACE / "app.py"))["listener"]
    assert listener.name == "tiny" and listener.limits.max_minutes == 10
    page = make_page(listener)
    assert [function.api_name for function in page.fns.values()] == ["hear"]
