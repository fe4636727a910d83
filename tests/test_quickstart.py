"""examples/quickstart.ipynb: its cells run one after the other, offline, and show what they say."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

NOTEBOOK = json.loads((Path(__file__).parents[1] / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    for number, text in enumerate(CODE):
        compile(text, f"cell {number}", "exec")


@pytest.mark.slow  # fine-tunes a tagger
def test_it_runs_from_a_folder_to_a_tagger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict = {}
    for number, text in enumerate(CODE):
        exec(compile(text, f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert names["vectors"].shape == (200, 5, 256) and np.isfinite(names["vectors"]).all()
    assert names["places"].shape == (200, 2) and len(names["axes"].collections) == len(set(names["genres"]))
    assert len(names["neighbours"]) == 5 and "query: " in printed
    assert names["scores"]["test_roc_auc"] > 0.6
    tags = {tag for row in names["labels"].tags for tag in row.split(";")}
    assert len(names["answers"]) == 5 and {answer["label"] for answer in names["answers"]} < tags
