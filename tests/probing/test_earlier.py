"""A run into a folder that holds results: nothing already made is lost."""

import logging

import numpy as np
import pytest

from music2vec_hf import Music2VecModel
from music2vec_hf.common.results import read_results
from music2vec_hf.probing import suite
from music2vec_hf.probing.report import write_report
from music2vec_hf.probing.scores import load_predictions


@pytest.fixture
def run(corpus, tmp_path):
    def run(sources, task, search="quick", seeds=(0,)):
        out = tmp_path / "out"
        suite.run_suite(sources, f"synthetic-{task}", corpus, out, search, seeds, layers=["1"], progress=False)
        return out

    return run


def test_the_same_run_again_takes_the_place_of_its_results(run):
    out = run(["chroma"], "key")
    before = read_results(out)
    run(["chroma"], "key")
    assert read_results(out)["records"] == before["records"]
    run(["chroma", "mfcc"], "key")  # measures all of it again, and more
    assert not (out / "earlier").exists()


def test_results_of_another_task_protocol_or_seed_are_kept_whole(run, tmp_path, caplog):
    out = run(["chroma", "mfcc"], "key")
    first, outputs = read_results(out), load_predictions(out, "mfcc")["synthetic-key"].outputs
    with caplog.at_level(logging.WARNING):
        run(["chroma"], "genre")
    assert f"{out} held results of another run; they are in {out / 'earlier' / '1'} now." in caplog.text
    assert read_results(out / "earlier" / "1") == first
    assert np.array_equal(load_predictions(out / "earlier" / "1", "mfcc")["synthetic-key"].outputs, outputs)
    predictions = {path.name for path in (out / "predictions").iterdir()}
    assert predictions == {"chroma--synthetic-genre.npz", "chance--synthetic-genre.npz"}
    run(["chroma"], "genre", "marble")
    run(["chroma"], "genre", "marble", seeds=(1,))
    kept = [read_results(out / "earlier" / number) for number in ("2", "3")]
    assert [content["protocol"] for content in kept] == ["quick", "marble"]
    assert [content["records"][0]["seeds"] for content in kept] == [[0], [0]]
    assert not list((out / "earlier").glob(".*"))
    write_report([out, out / "earlier" / "1"], tmp_path / "report")
    assert "mfcc" in (tmp_path / "report" / "report.md").read_text()  # which the last run has no score of


def test_scores_of_other_weights_of_the_same_name_are_kept(run, tiny_config, model_folder):
    run([model_folder], "key")
    Music2VecModel(tiny_config).save_pretrained(model_folder)
    out = run([model_folder], "key")
    now, earlier = (read_results(folder)["records"][0] for folder in (out, out / "earlier" / "1"))
    assert now["source"] == earlier["source"] and now["model_hash"] != earlier["model_hash"]


def test_a_file_that_is_no_results_file_is_kept_too(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    out = run(["chroma"], "key")
    assert (out / "earlier" / "1" / "results.json").read_text() == "mine" and read_results(out)["records"]
