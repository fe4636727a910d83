"""The suite: choice without test labels, chance on shuffled labels, chain from audio files to results.json."""

import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from music2vec_hf.probing import sources, suite
from music2vec_hf.probing.baselines import chroma_frames, mfcc_frames, time_statistics
from music2vec_hf.probing.results import (
    Predictions,
    averages,
    paired_difference,
    paired_difference_of_predictions,
    read_results,
)
from music2vec_hf.probing.searches import ProbeSettings, Search
from music2vec_hf.probing.tasks import (
    SPLITS,
    TASK_GROUPS,
    TASKS,
    Split,
    TaskData,
    check_files,
    load_task,
    resolve_tasks,
)

SIZES = {"train": 160, "validation": 100, "test": 200}
SEARCH = Search(
    "tiny",
    (ProbeSettings("linear", learning_rate=1e-2), ProbeSettings("mlp", learning_rate=3e-3, hidden_size=16)),
    max_steps=60,
    eval_every=10,
    patience=3,
)
LABELS = {
    "synthetic-genre": tuple("abcde"),
    "synthetic-key": TASKS["synthetic-key"].labels,
    "synthetic-tags": tuple("uvwxyz"),
    "synthetic-emotion": ("arousal", "valence"),
}


def toy_task(name, seed=0):
    """Features of two layers and a task whose labels lie in layer "1"; the track ids are those of every toy task."""
    rng = np.random.default_rng(seed)
    total, labels = sum(SIZES.values()), LABELS[name]
    features = {"0": rng.standard_normal((total, 10)), "1": rng.standard_normal((total, 30))}
    hidden = features["1"][:, : len(labels)]
    targets = {
        "synthetic-genre": hidden.argmax(1),
        "synthetic-key": hidden.argmax(1),
        "synthetic-tags": (hidden > 0.5).astype(np.float32),
        "synthetic-emotion": hidden.astype(np.float32),
    }[name]
    splits, start = {}, 0
    for split, size in SIZES.items():
        ids = tuple(f"track-{number}" for number in range(start, start + size))
        paths = tuple(Path(f"{track_id}.flac") for track_id in ids)
        splits[split] = Split(ids, paths, targets[start : start + size])
        start += size
    return {layer: values.astype(np.float32) for layer, values in features.items()}, TaskData(
        replace(TASKS[name], labels=labels), splits
    )


def with_targets(task_data, split, targets):
    changed = replace(task_data.splits[split], targets=targets)
    return replace(task_data, splits=task_data.splits | {split: changed})


@pytest.mark.parametrize("name", LABELS)
def test_probe_finds_the_layer_and_reports_every_metric(name):
    features, task_data = toy_task(name)
    result = suite.probe(features, task_data, SEARCH, seeds=(0, 1))
    assert result.choice.layer == "1" and set(result.choice.by_layer) == {"0", "1"}
    assert tuple(result.scores) == TASKS[name].metrics
    chance = suite.chance_result(task_data).scores
    for metric, score in result.scores.items():
        assert score["value"] == pytest.approx(np.mean(score["per_seed"])) and len(score["per_seed"]) == 2
        assert score["interval"][0] < score["value"] < score["interval"][1]
        # 24 keys from 160 tracks are hard; the other tasks are easy.
        assert score["value"] > chance[metric]["value"] + (0.03 if name == "synthetic-key" else 0.1)
    assert result.split_sizes == SIZES


@pytest.mark.parametrize("name", LABELS)
def test_corrupting_test_labels_and_test_features_changes_no_choice(name):
    features, task_data = toy_task(name)
    before = suite.probe(features, task_data, SEARCH, seeds=(0,))
    targets = task_data.splits["test"].targets
    corrupted = with_targets(task_data, "test", np.roll(targets, 7, axis=0))
    after = suite.probe(features, corrupted, SEARCH, seeds=(0,))
    assert after.choice == before.choice
    np.testing.assert_array_equal(after.predictions.outputs, before.predictions.outputs)
    assert after.scores != before.scores
    spoiled = {layer: values.copy() for layer, values in features.items()}
    for values in spoiled.values():
        values[task_data.rows("test")] = 0
    assert suite.probe(spoiled, task_data, SEARCH, seeds=(0,)).choice == before.choice


def test_only_the_chosen_layer_meets_test_features(monkeypatch):
    features, task_data = toy_task("synthetic-genre")
    seen = []
    train = suite.train_probes

    def spy(jobs, data, *arguments):
        probes = train(jobs, data, *arguments)
        seen.append({job.layer for job in jobs})
        assert all(len(values) == SIZES["train"] for values in data.features.values())
        assert all(len(values) == SIZES["validation"] for values in data.validation_features.values())
        return probes

    monkeypatch.setattr(suite, "train_probes", spy)
    suite.probe(features, task_data, SEARCH, seeds=(0, 1))
    assert seen == [{"0", "1"}, {"1"}]


def test_shuffled_labels_score_chance():
    features, task_data = toy_task("synthetic-genre")
    rng = np.random.default_rng(1)
    for split in SPLITS:
        task_data = with_targets(task_data, split, rng.permutation(task_data.splits[split].targets))
    score = suite.probe(features, task_data, SEARCH, seeds=(0, 1, 2)).scores["accuracy"]["value"]
    assert score == pytest.approx(0.2, abs=0.09)  # 200 tracks, 5 classes: standard deviation 0.028


def test_chance_is_what_the_training_targets_give():
    _, genre = toy_task("synthetic-genre")
    most = np.bincount(genre.splits["train"].targets).argmax()
    assert suite.chance_result(genre).scores["accuracy"]["value"] == np.mean(genre.splits["test"].targets == most)
    _, tags = toy_task("synthetic-tags")
    scores = suite.chance_result(tags).scores
    assert scores["roc_auc"]["value"] == 0.5
    assert scores["average_precision"]["value"] == pytest.approx(tags.splits["test"].targets.mean())


def test_both_averages_have_their_definition():
    scores = {
        "synthetic-genre": {"accuracy": 0.4},
        "synthetic-tags": {"roc_auc": 0.8, "average_precision": 0.4},
        "synthetic-emotion": {"r2_arousal": 0.3, "r2_valence": 0.1},
    }
    assert averages(scores) == {"task_mean": pytest.approx((0.4 + 0.6 + 0.2) / 3), "flat_mean": pytest.approx(2 / 5)}


def noisy_predictions(noise, seed):
    """Predictions of two tasks on the same 300 tracks, right but for noise."""
    rng = np.random.default_rng(0)
    ids = tuple(f"track-{number}" for number in range(300))
    classes, values = rng.integers(0, 5, 300), rng.standard_normal((300, 2))
    rng = np.random.default_rng(seed)
    logits = np.eye(5)[classes] + noise * rng.standard_normal((2, 300, 5))
    guesses = values + noise * rng.standard_normal((2, 300, 2))
    emotion = Predictions("synthetic-emotion", ("arousal", "valence"), ids, values, guesses)
    return {
        "synthetic-genre": Predictions("synthetic-genre", tuple("abcde"), ids, classes, logits),
        "synthetic-emotion": emotion,
    }


def test_paired_difference_of_equal_sources_is_zero_and_of_unequal_ones_is_found():
    good, bad = noisy_predictions(0.4, 1), noisy_predictions(0.8, 2)
    for difference in paired_difference_of_predictions(good, good).values():
        assert difference.value == 0 and difference.interval == (0, 0)
    there, back = paired_difference_of_predictions(good, bad), paired_difference_of_predictions(bad, good)
    for name in ("synthetic-genre", "synthetic-emotion", "task_mean"):
        assert there[name].interval[0] > 0 and back[name].value == pytest.approx(-there[name].value)
    expected = np.mean([there[name].value for name in ("synthetic-genre", "synthetic-emotion")])
    assert there["task_mean"].value == pytest.approx(expected)


def test_paired_interval_is_narrower_than_an_unpaired_one():
    good = noisy_predictions(0.6, 1)
    item = good["synthetic-genre"]
    shifted = item.outputs + 0.2 * np.random.default_rng(3).standard_normal(item.outputs.shape)
    near = good | {"synthetic-genre": replace(item, outputs=shifted)}
    low, high = paired_difference_of_predictions(good, near)["synthetic-genre"].interval
    single = suite.score_predictions(item, ["accuracy"])["accuracy"]["interval"]
    assert high - low < single[1] - single[0]


def test_predictions_in_another_order_are_paired_by_track():
    good, bad = noisy_predictions(0.4, 1), noisy_predictions(0.8, 2)
    order = np.random.default_rng(4).permutation(300)
    mixed = {
        task: replace(
            item,
            track_ids=tuple(item.track_ids[row] for row in order),
            references=item.references[order],
            outputs=item.outputs[:, order],
        )
        for task, item in bad.items()
    }
    assert paired_difference_of_predictions(good, mixed) == paired_difference_of_predictions(good, bad)
    fewer = {"synthetic-genre": replace(bad["synthetic-genre"], track_ids=("x",) * 300)}
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference_of_predictions(good, fewer)


def test_mistakes_get_a_sentence(tmp_path):
    features, task_data = toy_task("synthetic-genre")
    with pytest.raises(ValueError, match="no task 'gtzam'; use one of synthetic, paper, synthetic-genre"):
        resolve_tasks("gtzam")
    with pytest.raises(ValueError, match=r"rows in the order of `task_data.paths`"):
        suite.probe({"0": features["0"][:-1]}, task_data, SEARCH)
    with pytest.raises(ValueError, match="NaN or infinite"):
        suite.probe({"0": np.full_like(features["0"], np.nan)}, task_data, SEARCH)
    with pytest.raises(ValueError, match="one or more different seeds"):
        suite.probe(features, task_data, SEARCH, seeds=(1, 1))
    with pytest.raises(ValueError, match="takes the shape of a model"):
        sources.resolve_sources(["random-init"])
    with pytest.raises(FileNotFoundError, match=r"2 of 2 audio files are missing: a.flac, b.flac"):
        check_files([Path("a.flac"), Path("b.flac")])
    with pytest.raises(FileNotFoundError, match="no synthetic corpus; make one with `music2vec synth"):
        load_task("synthetic-key", tmp_path)
    with pytest.raises(FileNotFoundError, match="There are no results"):
        read_results(tmp_path)


def test_every_task_has_terms_and_a_known_metric():
    for task in TASKS.values():
        assert task.license and task.citation and task.source and task.split_rule and task.loss
        assert set(task.value_metrics) <= set(task.metrics)
    assert resolve_tasks(["synthetic", "synthetic-key"]) == tuple(TASKS)[:4]


def test_chroma_hears_the_pitch_class_and_not_the_level():
    times = np.arange(32_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    assert chroma_frames(tone).mean(axis=0).argmax() == 9  # A
    np.testing.assert_allclose(chroma_frames(0.1 * tone), chroma_frames(tone), atol=1e-3)
    assert mfcc_frames(tone).shape[1] == 20 and chroma_frames(tone[:100]).shape[1] == 12
    statistics = time_statistics(np.arange(10.0)[:, None])
    np.testing.assert_allclose(statistics, [4.5, np.std(np.arange(10)), 1, 0, 0, 0], atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from music2vec_hf.data.synthetic import synthesize_corpus

    folder = tmp_path_factory.mktemp("probing") / "corpus"
    synthesize_corpus(folder, 80, seed=3, clip_seconds=2.0)
    return folder


def fake_model_features(source, paths, *arguments, **options):
    rng = np.random.default_rng(0 if source.kind == "model" else 1)
    return {layer: rng.standard_normal((len(paths), 8)).astype(np.float32) for layer in ("conv", "0", "1")}, "hash"


def test_suite_goes_from_audio_files_to_results(corpus, tmp_path, monkeypatch):
    real = suite.source_features

    def features(source, *arguments, **options):
        make = real if source.kind in sources.SPECTRAL_SOURCES else fake_model_features
        return make(source, *arguments, **options)

    monkeypatch.setattr(suite, "source_features", features)
    names = {"pretrained": "some/model", "random-init": "random-init", "chroma": "chroma"}
    path = suite.run_suite(names, "synthetic", corpus, tmp_path, seeds=(0, 1), progress=False)
    content = read_results(path)
    metrics = [(task, metric) for task in TASK_GROUPS["synthetic"] for metric in TASKS[task].metrics]
    for source in ("pretrained", "random-init", "chroma", "chance"):
        records = [record for record in content["records"] if record["source"] == source]
        assert [(record["task"], record["metric"]) for record in records] == metrics
        for record in records:
            assert {
                "value",
                "spread",
                "interval",
                "split_sizes",
                "layer",
                "probe_settings",
                "seeds",
                "model_hash",
            } <= set(record)
            assert (tmp_path / record["predictions"]).is_file() and record["protocol"] == "quick"
            stored = Predictions.load(tmp_path / record["predictions"])
            assert np.mean(stored.scores(record["metric"])) == pytest.approx(record["value"])
    by_pair = {(row["baseline"], row["task"]): row for row in content["comparisons"]}
    assert set(by_pair) == {
        (name, task)
        for name in ("random-init", "chroma", "chance")
        for task in (*TASK_GROUPS["synthetic"], "task_mean")
    }
    again = paired_difference(path, tmp_path, "pretrained", "chroma")
    assert again["task_mean"].value == pytest.approx(by_pair["chroma", "task_mean"]["value"])
    assert json.loads(path.read_text())["averages"][0]["source"] == "pretrained"


def test_a_killed_run_resumes_from_the_cache(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FILES_PER_PART", 30)
    paths = load_task("synthetic-genre", corpus).paths
    calls, real = [], sources.SPECTRAL_SOURCES["chroma"]

    def counted(chosen):
        calls.append(len(chosen))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(chosen)

    monkeypatch.setitem(sources.SPECTRAL_SOURCES, "chroma", counted)
    source = sources.FeatureSource("chroma", "chroma")
    with pytest.raises(KeyboardInterrupt):
        sources.source_features(source, paths, cache_dir=tmp_path, progress=False)
    features, _ = sources.source_features(source, paths, cache_dir=tmp_path, progress=False)
    assert calls == [30, 30, 30, 20]
    np.testing.assert_array_equal(features["chroma"], real(paths))
    sources.source_features(source, paths, cache_dir=tmp_path, progress=False)
    assert len(calls) == 4


def test_model_features_are_cached_by_weights(corpus, tmp_path, monkeypatch):
    """The model itself is made up: what counts is which weights are asked for and when they are run."""
    calls = []

    class Extractor:
        def to_json_string(self):
            return "{}"

    class Model:
        def __init__(self, digest):
            self.digest = digest

        def to(self, device):
            return self

    def embed_files(model, feature_extractor, paths, window_seconds, precision, progress=True):
        calls.append((model.digest, len(paths), window_seconds, precision))
        return {layer: np.ones((len(paths), 4)) for layer in ("conv", "0", "1")}

    module = types.ModuleType("music2vec_hf.embeddings")
    module.load_model = lambda name, random_init=False, seed=0: (Model(f"{name} {random_init} {seed}"), Extractor())
    module.model_hash = lambda model: model.digest
    module.embed_files = embed_files
    monkeypatch.setitem(sys.modules, "music2vec_hf.embeddings", module)
    paths = load_task("synthetic-genre", corpus).paths
    trained, random = sources.resolve_sources({"a": "folder/model", "b": "random-init"}, random_init_seed=7)
    for _ in range(2):
        for source in (trained, random):
            features, digest = sources.source_features(source, paths, cache_dir=tmp_path, progress=False)
            assert features["0"].shape == (len(paths), 4) and features["0"].dtype == np.float32
            assert digest == f"folder/model {source is random} {7 if source is random else 0}"
    sources.source_features(trained, paths, cache_dir=tmp_path, window_seconds=5.0, progress=False)
    sources.source_features(trained, paths, cache_dir=tmp_path, precision="bf16", progress=False)
    expected = [
        ("folder/model False 0", 80, 30.0, "fp32"),
        ("folder/model True 7", 80, 30.0, "fp32"),
        ("folder/model False 0", 80, 5.0, "fp32"),
        ("folder/model False 0", 80, 30.0, "bf16"),
    ]
    assert calls == expected


def test_a_track_in_two_splits_is_refused(corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    lines = (copy / "metadata.csv").read_text().splitlines()
    lines.append(next(line for line in lines if ",train," in line).replace(",train,", ",test,"))
    (copy / "metadata.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="is in 'train' and again in 'test'"):
        load_task("synthetic-key", copy)
