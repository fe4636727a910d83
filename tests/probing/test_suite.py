"""The suite: chain from audio files to results.json; nothing that an earlier run made is lost."""

import logging
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from toy_datasets import build_emomusic, gtzan_subset
from toy_tasks import SEARCH, toy_task

from music2vec_hf import Music2VecModel
from music2vec_hf.common.files import read_results
from music2vec_hf.probing import suite
from music2vec_hf.probing.evaluation import probe
from music2vec_hf.probing.probes import SEARCHES
from music2vec_hf.probing.report import write_report
from music2vec_hf.probing.scores import Predictions, load_predictions, paired_difference
from music2vec_hf.probing.tasks.loading import TASK_GROUPS, TASKS


def test_mistakes_get_a_sentence():
    features, task_data = toy_task("synthetic-genre")
    with pytest.raises(ValueError, match=r"rows in the order of `task_data.paths`"):
        probe({"0": features["0"][:-1]}, task_data, SEARCH)
    with pytest.raises(ValueError, match="NaN or infinite"):
        probe({"0": np.full_like(features["0"], np.nan)}, task_data, SEARCH)
    with pytest.raises(ValueError, match="one or more different seeds"):
        probe(features, task_data, SEARCH, seeds=(1, 1))


@pytest.mark.parametrize("cores", [1, 3])
def test_tasks_side_by_side_have_the_scores_of_one_after_the_other(probed, tmp_path, monkeypatch, cores):
    monkeypatch.setitem(
        SEARCHES, "quick", replace(SEARCHES["quick"], settings=SEARCHES["quick"].settings[2:4], max_steps=40)
    )
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    suite.run_suite({"chroma": "chroma"}, "synthetic", probed / "corpus", tmp_path, seeds=(0, 1), progress=False)
    keys = ("source", "task", "metric", "value", "validation_by_layer")
    before = read_results(probed / "probes")["records"]
    before = [[record[key] for key in keys] for record in before if record["source"] == "chroma"]
    found = read_results(tmp_path)["records"]
    assert [[record[key] for key in keys] for record in found if record["source"] == "chroma"] == before


def test_suite_goes_from_audio_files_to_results(probed):
    content = read_results(probed / "probes")
    metrics = [(task, metric) for task in TASK_GROUPS["synthetic"] for metric in TASKS[task].metrics]
    keys = {"value", "spread", "interval", "split_sizes", "layer", "probe_settings", "seeds", "model_hash", "ensemble"}
    for source in ("pretrained", "random-init", "chroma", "chance"):
        records = [record for record in content["records"] if record["source"] == source]
        assert [(record["task"], record["metric"]) for record in records] == metrics
        for record in records:
            assert keys <= set(record)
            assert record["layers"] == ["conv", "2"] and record["window_seconds"] == 30.0
            assert record["row_seconds"] is None and record["ensemble"] is None
            assert source == "chance" or record["num_rows"] == record["split_sizes"]
            assert record["protocol"] == "quick"
            stored = Predictions.load(probed / "probes" / record["predictions"])
            assert np.mean(stored.scores(record["metric"])) == pytest.approx(record["value"])
    by_pair = {(row["baseline"], row["task"]): row for row in content["comparisons"]}
    tasks = (*TASK_GROUPS["synthetic"], "task_mean")
    assert set(by_pair) == {(name, task) for name in ("random-init", "chroma", "chance") for task in tasks}
    again = paired_difference(probed / "probes" / "results.json", probed / "probes", "pretrained", "chroma")
    assert again["task_mean"].value == pytest.approx(by_pair["chroma", "task_mean"]["value"])
    assert content["averages"][0]["source"] == "pretrained"


def test_a_pilot_leaves_one_layer_to_the_search(corpus, tmp_path, encoder_folder, cache, short_searches):
    options = {"seeds": (0,), "layers": "pilot", "progress": False, "cache_dir": cache}
    path = suite.run_suite([encoder_folder, "mel"], "synthetic-genre", corpus, tmp_path / "out", **options)
    content = read_results(path)
    assert content["layers"] == "pilot"
    model, mel, _ = content["records"]
    assert list(model["pilot_by_layer"]) == ["conv", "0", "1", "2", "3"]
    assert list(model["validation_by_layer"]) == [model["layer"]] and model["layers"] == "pilot"
    assert model["pilot_by_layer"][model["layer"]] == max(model["pilot_by_layer"].values())
    assert mel["layer"] == "mel" and mel["pilot_by_layer"] == {}


def test_mistakes_are_told_before_any_audio_is_read(corpus, tmp_path, encoder_folder):
    def run(output="out", **changes):
        suite.run_suite([encoder_folder], "synthetic-genre", corpus, tmp_path / output, progress=False, **changes)

    with pytest.raises(ValueError, match="There is no layer 9 to try under 'quick': conv, 0, 1, 2, 3"):
        run(layers=["9"])
    with pytest.raises(ValueError, match="There is no layer conv to try under 'marble': 0, 1, 2, 3, weighted"):
        run(layers=["conv"], search="marble")
    with pytest.raises(ValueError, match="No layer is named to try under 'quick': conv, 0, 1, 2, 3"):
        run(layers=[])
    with pytest.raises(ValueError, match="one or more different seeds"):
        run(seeds=(1, 1))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file' is a file; name a folder for the results"):
        run("file")
    assert not (tmp_path / "out").exists()


def test_marble_probes_windows_and_the_weighted_sum(corpus, tmp_path, encoder_folder, short_searches):
    """Of 2 s clips in windows of 1 s every track has two rows; nothing else tells marble from the other protocols."""
    options = {"seeds": (0,), "window_seconds": 1.0, "progress": False, "cache_dir": tmp_path / "cache"}
    records = {}
    for search in ("quick", "marble"):
        path = suite.run_suite([encoder_folder], "synthetic-genre", corpus, tmp_path / search, search, **options)
        records[search] = read_results(path)["records"][0]
    quick, marble = records["quick"], records["marble"]
    assert quick["row_seconds"] is None and marble["row_seconds"] == 1.0
    assert marble["num_rows"] == {split: 2 * size for split, size in marble["split_sizes"].items()}
    assert quick["num_rows"] == quick["split_sizes"] == marble["split_sizes"]
    assert set(quick["validation_by_layer"]) == {"conv", "0", "1", "2", "3"}
    assert set(marble["validation_by_layer"]) == {"0", "1", "2", "3", "weighted"}
    stored = Predictions.load(tmp_path / "marble" / marble["predictions"])
    assert len(stored.track_ids) == marble["split_sizes"]["test"]
    assert len(list((tmp_path / "cache").glob("*/*.parquet"))) == 1  # both protocols read the same windows


def test_the_whole_giantsteps_goes_from_songs_of_two_minutes_to_song_scores(short_searches, toy, tmp_path):
    root = toy / "giantsteps"
    path = suite.run_suite(["chroma"], "giantsteps", root, tmp_path / "out", seeds=(0,), progress=False)
    record = read_results(path)["records"][0]
    assert record["split_sizes"] == {"train": 923, "validation": 236, "test": 604}
    assert record["num_rows"] == {"train": 3_687, "validation": 942, "test": 2_406} and record["differences"] == []
    assert record["row_seconds"] == 30.0 and record["ensemble"][0] in ("vote", "max", "gmean", "mean")
    assert Predictions.load(tmp_path / "out" / record["predictions"]).outputs.shape == (1, 604, 24)
    with pytest.raises(ValueError, match="windows of 25 s do not divide"):
        suite.run_suite(["chroma"], "giantsteps", root, tmp_path / "out", window_seconds=25.0, progress=False)


def test_official_layouts_go_to_results_under_jukemir(tmp_path, monkeypatch):
    """Two settings and few steps; the grid itself is tested with the searches."""
    full = SEARCHES["jukemir"]
    monkeypatch.setitem(SEARCHES, "jukemir", replace(full, settings=full.settings[-2:], max_steps=40))
    gtzan_subset(tmp_path / "gtzan")
    build_emomusic(tmp_path / "emomusic")
    whole = ["mfcc"], ["gtzan", "emomusic"], tmp_path, tmp_path / "out", "jukemir", (0,)
    with pytest.raises(FileNotFoundError, match="810 of 930 audio files are missing"):
        suite.run_suite(*whole, progress=False)
    results = read_results(suite.run_suite(*whole, progress=False, allow_missing=True))
    records = {(record["source"], record["metric"]): record for record in results["records"]}
    assert set(records) == set(product(("mfcc", "chance"), ("accuracy", "r2_arousal", "r2_valence")))
    assert records["mfcc", "r2_arousal"]["split_sizes"] == {"train": 504, "validation": 115, "test": 125}
    for (source, metric), record in records.items():
        assert record["protocol"] == "jukemir" and record["row_seconds"] is None
        assert source == "chance" or record["probe_settings"]["dropout_input"] == 0.75
        if metric == "accuracy":
            assert record["value"] == pytest.approx({"mfcc": 1.0, "chance": 0.1}[source])
            assert record["split_sizes"] == dict.fromkeys(("train", "validation", "test"), 40)
            assert "train: 40 tracks, the benchmark has 443." in record["differences"]
            assert all(len(sentence) < 300 for sentence in record["differences"])
    affected = results["affected_tracks"]["gtzan"].items()
    assert [len(tracks) for said, tracks in affected if said.startswith("train: the audio of 403 of 443")] == [403]


@pytest.fixture
def run(corpus, tmp_path, cache, short_searches):
    def run(sources, task, search="quick", seeds=(0,)):
        out, options = tmp_path / "out", {"layers": ["1"], "progress": False, "cache_dir": cache}
        suite.run_suite(sources, f"synthetic-{task}", corpus, out, search, seeds, **options)
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


def test_scores_of_other_weights_of_the_same_name_are_kept(run, tiny_config, encoder_folder, tmp_path):
    run([encoder_folder], "key")
    other = shutil.copytree(encoder_folder, tmp_path / "model")
    torch.manual_seed(1)
    Music2VecModel(tiny_config).save_pretrained(other)
    out = run([other], "key")
    now, earlier = (read_results(folder)["records"][0] for folder in (out, out / "earlier" / "1"))
    assert now["source"] == earlier["source"] and now["model_hash"] != earlier["model_hash"]


def test_a_file_that_is_no_results_file_is_kept_too(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    out = run(["chroma"], "key")
    assert (out / "earlier" / "1" / "results.json").read_text() == "mine" and read_results(out)["records"]
