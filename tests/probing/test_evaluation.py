"""One source on one task: choice without test data, chance on shuffled labels, songs scored as songs."""

from dataclasses import replace

import numpy as np
import pytest
from toy_tasks import LABELS, SEARCH, SIZES, probe_data, song_task, toy_task, with_targets

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.probing import evaluation
from music2vec_hf.probing.evaluation import SelectedRows, choose_probe, select_rows
from music2vec_hf.probing.probes import combine
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import TASKS


@pytest.mark.parametrize("name", LABELS)
def test_probe_finds_the_layer_and_reports_every_metric(name):
    features, task_data = toy_task(name)
    result = evaluation.probe(features, task_data, SEARCH, seeds=(0, 1))
    assert result.choice.layer == "1" and set(result.choice.by_layer) == {"0", "1"}
    assert tuple(result.scores) == TASKS[name].metrics
    chance = evaluation.chance_result(task_data).scores
    for metric, score in result.scores.items():
        assert score["value"] == pytest.approx(np.mean(score["per_seed"])) and len(score["per_seed"]) == 2
        assert score["interval"][0] < score["value"] < score["interval"][1]
        # 24 keys from 160 tracks are hard; the other tasks are easy.
        assert score["value"] > chance[metric]["value"] + (0.03 if name == "synthetic-key" else 0.1)
    assert result.split_sizes == SIZES


@pytest.mark.parametrize("name", [*LABELS, "songs"])
def test_corrupting_test_labels_and_test_features_changes_no_choice(name):
    selected, task_data = song_task() if name == "songs" else one_row_per_track(name)
    before = evaluation.probe(selected, task_data, SEARCH, seeds=(0,))
    targets = task_data.splits["test"].targets
    corrupted = with_targets(task_data, "test", np.roll(targets, 7, axis=0))
    after = evaluation.probe(selected, corrupted, SEARCH, seeds=(0,))
    assert after.choice == before.choice
    np.testing.assert_array_equal(after.predictions.outputs, before.predictions.outputs)
    assert after.scores != before.scores
    rows = selected.rows
    of_test = rows.tracks >= task_data.rows("test").start
    spoiled = {layer: np.where(of_test[:, None], 0, values) for layer, values in rows.features.items()}
    spoiled = replace(selected, rows=replace(rows, features=spoiled))
    after = evaluation.probe(spoiled, task_data, SEARCH, seeds=(0,))
    assert after.choice == before.choice and after.probes[0].ensemble == before.probes[0].ensemble


def test_only_the_chosen_layer_meets_test_features(trained):
    evaluation.probe(*toy_task("synthetic-genre"), SEARCH, seeds=(0, 1))
    assert trained == [(["0", "1"], 4), (["1"], 2)]


def test_shuffled_labels_score_chance():
    features, task_data = toy_task("synthetic-genre")
    rng = np.random.default_rng(1)
    for split in SPLITS:
        task_data = with_targets(task_data, split, rng.permutation(task_data.splits[split].targets))
    score = evaluation.probe(features, task_data, SEARCH, seeds=(0, 1, 2)).scores["accuracy"]["value"]
    assert score == pytest.approx(0.2, abs=0.09)  # 200 tracks, 5 classes: standard deviation 0.028


def test_chance_is_what_the_training_targets_give():
    _, genre = toy_task("synthetic-genre")
    most = np.bincount(genre.splits["train"].targets).argmax()
    assert evaluation.chance_result(genre).scores["accuracy"]["value"] == np.mean(genre.splits["test"].targets == most)
    _, tags = toy_task("synthetic-tags")
    scores = evaluation.chance_result(tags).scores
    assert scores["roc_auc"]["value"] == 0.5
    assert scores["average_precision"]["value"] == pytest.approx(tags.splits["test"].targets.mean())


def test_a_song_is_scored_as_a_song_with_the_ensemble_that_validation_chose():
    selected, task_data = song_task(clips=6)
    result = evaluation.probe(selected, task_data, SEARCH, seeds=(0, 1))
    assert result.choice.layer == "1" and result.rows["num_rows"] == {"train": 1200, "validation": 720, "test": 895}
    assert {trained.ensemble for trained in result.probes} != {"gmean"}  # which every other task takes
    assert result.predictions.outputs.shape == (2, 150, 24)  # one output per song, and so the bootstrap draws songs
    test = selected.split(task_data, "test")
    for trained, outputs in zip(result.probes, result.predictions.outputs, strict=True):
        clip_outputs = trained.predict(test.features["1"])
        np.testing.assert_array_equal(outputs, combine(clip_outputs, test.tracks, trained.ensemble))
        references = task_data.splits["test"].targets
        song = get_metric("weighted_key_score")(references, outputs)
        clip = get_metric("weighted_key_score")(references[test.tracks], clip_outputs)
        assert song > clip + 0.1
    assert np.mean(result.scores["weighted_key_score"]["per_seed"]) == result.scores["weighted_key_score"]["value"]


def test_windows_of_unequal_length_weigh_alike_where_outputs_are_averaged():
    """Under marble a 45 s clip is a window of 30 s and one of 15 s; the test output is the plain mean of both."""
    features, task_data = toy_task("synthetic-emotion")
    total = sum(SIZES.values())
    rng = np.random.default_rng(5)
    windows = {name: np.repeat(values, 2, axis=0) for name, values in features.items()}
    windows = {name: values + 0.1 * rng.standard_normal(values.shape) for name, values in windows.items()}
    seconds = np.tile([30.0, 15.0], total)
    rows = FeatureRows(windows, np.arange(total + 1) * 2, seconds * 50, seconds)
    result = evaluation.probe(select_rows(rows, task_data, 30.0), task_data, SEARCH, seeds=(0,))
    of_test = windows[result.choice.layer][2 * task_data.rows("test").start :].astype(np.float32)
    outputs = result.probes[0].predict(of_test)
    np.testing.assert_allclose(result.predictions.outputs[0], (outputs[::2] + outputs[1::2]) / 2, atol=1e-5)
    assert result.rows["num_rows"] == {split: 2 * size for split, size in SIZES.items()}


def one_row_per_track(name):
    """The rows of a toy task, and the task."""
    features, task_data = toy_task(name)
    return SelectedRows(FeatureRows.one_per_track(features)), task_data


@pytest.fixture
def data():
    """Two layers of the toy genre task."""
    return probe_data(*one_row_per_track("synthetic-genre"))


@pytest.fixture
def trained(monkeypatch):
    """Layers and number of probes of every call of `train_probes`."""
    calls, train = [], evaluation.train_probes

    def spy(jobs, *arguments, **options):
        calls.append((list(dict.fromkeys(job.layer for job in jobs)), len(jobs)))
        return train(jobs, *arguments, **options)

    monkeypatch.setattr(evaluation, "train_probes", spy)
    return calls


def test_a_kept_outcome_is_the_same_choice_without_training(data, trained, tmp_path, capsys):
    first = choose_probe(data, ["0", "1"], SEARCH, kept_in=tmp_path, progress="toy probes")
    total = 2 * len(SEARCH.settings)
    assert f"{total}/{total}" in capsys.readouterr().err  # the bar counts every probe
    trained.clear()
    assert first == choose_probe(data, ["0", "1"], SEARCH, trained_together=1)
    assert trained == [(["0"], 2), (["1"], 2)]
    trained.clear()
    assert choose_probe(data, ["0", "1"], SEARCH, kept_in=tmp_path) == first
    assert choose_probe(data, ["1"], SEARCH, kept_in=tmp_path).by_layer == {"1": first.by_layer["1"]}
    assert trained == []


CHANGES = {
    "seed": lambda data: (data, SEARCH, 1),
    "patience": lambda data: (data, replace(SEARCH, patience=SEARCH.patience + 1), 0),
    "settings": lambda data: (data, replace(SEARCH, settings=SEARCH.settings[1:]), 0),
    "targets": lambda data: (replace(data, targets=np.roll(data.targets, 1)), SEARCH, 0),
    "held out": lambda data: (replace(data, validation_targets=np.roll(data.validation_targets, 1)), SEARCH, 0),
    "feature": lambda data: (replace(data, features=data.features | {"1": data.features["1"] + 1e-3}), SEARCH, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_searched_anew(data, trained, tmp_path, change):
    choose_probe(data, ["1"], SEARCH, kept_in=tmp_path)
    trained.clear()
    changed, search, seed = CHANGES[change](data)
    choice = choose_probe(changed, ["1"], search, seed, kept_in=tmp_path)
    assert trained == [(["1"], len(search.settings))] and choice == choose_probe(changed, ["1"], search, seed)


@pytest.mark.parametrize("ended", range(1, 2 * len(SEARCH.settings)))
def test_a_stopped_search_goes_on_with_the_probes_it_lacks(ended, data, trained, tmp_path, monkeypatch):
    whole, append, kept = choose_probe(data, ["0", "1"], SEARCH), evaluation._keep_score, []
    trained.clear()

    def stop(*probe):
        if len(kept) == ended:
            raise KeyboardInterrupt
        kept.append(append(*probe))

    monkeypatch.setattr(evaluation, "_keep_score", stop)
    with pytest.raises(KeyboardInterrupt):
        choose_probe(data, ["0", "1"], SEARCH, kept_in=tmp_path)
    monkeypatch.setattr(evaluation, "_keep_score", append)
    assert choose_probe(data, ["0", "1"], SEARCH, kept_in=tmp_path) == whole
    assert [number for _, number in trained] == [2 * len(SEARCH.settings), 2 * len(SEARCH.settings) - ended]


def test_a_line_that_a_kill_has_cut_is_one_probe_trained_anew(data, trained, tmp_path):
    whole = choose_probe(data, ["0"], SEARCH, kept_in=tmp_path)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    path.write_text(text[:-5])
    trained.clear()
    for expected in ([(["0"], 1)], []):
        assert choose_probe(data, ["0"], SEARCH, kept_in=tmp_path) == whole and trained == expected
        trained.clear()


def test_a_run_keeps_outcomes_only_where_it_is_told(tmp_path):
    features, task_data = toy_task("synthetic-genre")
    result = evaluation.probe(features, task_data, SEARCH, seeds=(0,), kept_in=tmp_path / "searches")
    assert len(list((tmp_path / "searches").glob("*.jsonl"))) == 2
    assert result.choice == evaluation.probe(features, task_data, SEARCH, seeds=(0,)).choice
