"""Checkpoints, corpora, caches and results of version 0.1.0 are read by this one (tests/before)."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import music2vec_hf
from music2vec_hf.cli import main
from music2vec_hf.corpus.loading import load_corpus
from music2vec_hf.pretraining.loop import pretrain

BEFORE = Path(__file__).parent / "before"
sys.path.insert(0, str(BEFORE))
from made import RECIPE, write_songs  # noqa: E402

MODEL = str(BEFORE / "run" / "checkpoint-4")


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    write_songs(tmp_path_factory.mktemp("before") / "songs")
    return tmp_path_factory.getbasetemp() / "before0" / "songs"


def losses(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_corpus_is_loaded():
    corpus = load_corpus(BEFORE / "corpus")
    assert len(corpus) == 6 and set(corpus["duration"]) == {0.6}
    assert {"track_id", "source", "clip_start", "clip_mean", "clip_std"} <= set(corpus.column_names)


def test_a_run_is_resumed_with_the_losses_that_it_had(tmp_path):
    shutil.copytree(BEFORE / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4"))
    recipe = music2vec_hf.load_recipe("crop5s", **RECIPE)
    pretrain(recipe, BEFORE / "corpus", tmp_path / "run", resume=True)
    expected = losses(BEFORE / "run")
    assert sorted(expected) == [1, 2, 3, 4] and losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


def test_the_feature_cache_serves_a_probe_that_gives_the_scores_it_gave(songs, tmp_path, monkeypatch):
    shutil.copytree(BEFORE / "probes" / "cache", tmp_path / "probes" / "cache")

    def forward(*args, **kwargs):
        raise AssertionError("the features are in the cache")

    monkeypatch.setattr(music2vec_hf.Music2VecModel, "forward", forward)
    command = ["probe", MODEL, "--task", "custom", "--data", str(songs), "--output", str(tmp_path / "probes")]
    assert main([*command, "--seeds", "0", "--baselines", "mfcc"]) == 0
    found, expected = (
        {
            (record["source"], record["metric"]): (record["value"], record["layer"])
            for record in json.loads((folder / "results.json").read_text())["records"]
        }
        for folder in (tmp_path / "probes", BEFORE / "probes")
    )
    assert found == expected


def test_results_and_a_run_are_reported(tmp_path):
    assert main(["report", str(BEFORE / "probes"), str(BEFORE / "run"), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "checkpoint-4" in page and "mfcc" in page


def test_a_table_of_embeddings_is_searched(songs, capsys):
    query = songs / "test" / "low" / "2.wav"
    assert main(["similar", str(BEFORE / "embeddings.parquet"), str(query), "--model", MODEL]) == 0
    nearest = capsys.readouterr().out.splitlines()[0]
    assert "low/2.wav" in nearest and "1.000" in nearest
