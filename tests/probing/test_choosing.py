"""The score of every probe of a search is kept, and taken only for the very same search."""

from dataclasses import replace

import numpy as np
import pytest
from toy_tasks import SEARCH, toy_task

from music2vec_hf.probing import evaluation
from music2vec_hf.probing.evaluation import choose_probe
from music2vec_hf.probing.probes import ProbeData


@pytest.fixture
def data():
    """Two layers of the toy genre task."""
    features, task_data = toy_task("synthetic-genre")
    parts = {
        split: ({layer: values[task_data.rows(split)] for layer, values in features.items()}, task_data.splits[split])
        for split in ("train", "validation")
    }
    (train, seen), (validation, held_out) = parts["train"], parts["validation"]
    return ProbeData(train, seen.targets, validation, held_out.targets, "single_label_classification", 10, "accuracy")


@pytest.fixture
def trained(monkeypatch):
    """Layers and number of probes of every call of `train_probes`."""
    calls, train = [], evaluation.train_probes

    def spy(jobs, *arguments, **options):
        calls.append((list(dict.fromkeys(job.layer for job in jobs)), len(jobs)))
        return train(jobs, *arguments, **options)

    monkeypatch.setattr(evaluation, "train_probes", spy)
    return calls


def test_a_kept_outcome_is_the_same_choice_without_training(data, trained, tmp_path):
    first = choose_probe(data, ["0", "1"], SEARCH, kept_in=tmp_path)
    assert first == choose_probe(data, ["0", "1"], SEARCH)
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


def test_the_progress_bar_counts_every_probe(data, capsys):
    choose_probe(data, ["0", "1"], SEARCH, progress="toy probes")
    total = 2 * len(SEARCH.settings)
    assert f"{total}/{total}" in capsys.readouterr().err


def test_a_run_keeps_outcomes_only_where_it_is_told(tmp_path):
    features, task_data = toy_task("synthetic-genre")
    result = evaluation.probe(features, task_data, SEARCH, seeds=(0,), kept_in=tmp_path / "searches")
    assert len(list((tmp_path / "searches").glob("*.jsonl"))) == 2
    assert result.choice == evaluation.probe(features, task_data, SEARCH, seeds=(0,)).choice
