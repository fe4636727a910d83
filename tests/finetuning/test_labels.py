"""Labels as targets, metrics of whole clips, class weights, corpora of every kind, settings from YAML."""

import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import roc_auc_score

from music2vec_hf import Music2VecFeatureExtractor
from music2vec_hf.audio.labels import Labels, find_labels
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.finetuning.clips import RandomCrops, Windows, load_labelled_corpus
from music2vec_hf.finetuning.fitting import class_weights, parse_arguments, score_clips
from music2vec_hf.synthetic.generator import load_synthetic_labels

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    ("values", "feature", "stated", "problem", "names", "targets"),
    [
        (["b", "a", "b"], None, None, SINGLE, ("a", "b"), [1, 0, 1]),
        ([2, 0, 2], ClassLabel(names=["x", "y", "z"]), None, SINGLE, ("x", "y", "z"), [2, 0, 2]),
        ([10, 20, 10], None, None, SINGLE, ("10", "20"), [0, 1, 0]),
        ([["a"], [], ["b", "a"]], None, None, MULTI, ("a", "b"), [[1, 0], [0, 0], [1, 1]]),
        ([[1], [0, 1]], List(ClassLabel(names=["x", "y"])), None, MULTI, ("x", "y"), [[0, 1], [1, 1]]),
        (["a;b", "b", ""], None, MULTI, MULTI, ("a", "b"), [[1, 1], [0, 1], [0, 0]]),
        ([1.5, 2.0], None, None, "regression", ("label",), [[1.5], [2.0]]),
        ([1, 2], None, "regression", "regression", ("label",), [[1.0], [2.0]]),
    ],
)
def test_problem_and_targets_follow_the_column(values, feature, stated, problem, names, targets):
    dataset = Dataset.from_dict({"label": values}, features=feature and Features({"label": feature}))
    labels = find_labels(dataset, ["label"], stated)
    assert (labels.problem_type, labels.names) == (problem, names)
    np.testing.assert_array_equal(labels.targets(dataset, "train"), targets)


def test_labels_that_are_missing_or_unknown_are_named():
    labels = find_labels(Dataset.from_dict({"label": ["a", "b"]}), ["label"])
    with pytest.raises(ValueError, match="1 labels of validation are unknown to the training split: c"):
        labels.targets(Dataset.from_dict({"label": ["a", "c"]}), "validation")
    features = Features({"label": Value("string")})
    with pytest.raises(ValueError, match=r"1 of the 2 clips of test have no label, the first is number 1"):
        labels.targets(Dataset.from_dict({"label": ["a", None]}, features=features), "test")
    with pytest.raises(ValueError, match="has 1 labels, too few"):
        find_labels(Dataset.from_dict({"label": ["a", "a"]}), ["label"])


def test_class_weights_make_classes_count_alike():
    classes = np.array([0, 0, 0, 1])
    weights = class_weights(classes, 2)
    assert weights[0] * 3 == pytest.approx(weights[1] * 1)
    assert weights[classes].mean() == pytest.approx(1.0)
    np.testing.assert_allclose(class_weights(np.array([[1, 0], [0, 0], [0, 1], [1, 0]]), 2), [1.0, 3.0])


def test_tags_that_cannot_be_scored_are_left_out_and_counted():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]], dtype=np.float32)
    logits = np.random.default_rng(0).standard_normal((3, 3))
    scores = score_clips(Labels(("tags",), MULTI, tuple("abc")), logits, targets)
    expected = np.mean([roc_auc_score(targets[:, k], logits[:, k]) for k in (0, 2)])
    assert scores["tags_left_out"] == 1 and scores["roc_auc"] == scores["score"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="No tag has both"):
        score_clips(Labels(("tags",), MULTI, tuple("abc")), logits, np.ones((3, 3)))


def test_regression_is_scored_by_dimension():
    targets = np.array([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]])
    outputs = np.stack([targets[:, 0], np.full(3, 6.0)], 1)
    scores = score_clips(Labels(("a", "v"), "regression", ("a", "v")), outputs, targets)
    assert (scores["r2_a"], scores["r2_v"], scores["score"]) == (1.0, 0.0, 0.5)


def test_a_folder_of_audio_has_labels_by_metadata_or_by_folder(synthetic, tmp_path):
    rows = load_synthetic_labels(synthetic)
    dataset = load_labelled_corpus(synthetic, "validation")
    wanted = {row["track_id"]: row["genre"] for row in rows if row["split"] == "validation"}
    assert dict(zip(dataset["track_id"][:], dataset["genre"][:], strict=True)) == wanted
    assert load_labelled_corpus(synthetic / "metadata.csv", "validation")["genre"][:] == dataset["genre"][:]
    for row in rows:
        place = tmp_path / "folders" / row["split"] / row["genre"]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(synthetic / row["file_name"], place)
    dataset = load_labelled_corpus(tmp_path / "folders", "validation")
    assert sorted(dataset["label"][:]) == sorted(wanted.values())


def test_a_data_set_of_parquet_files(synthetic, tmp_path):
    dataset = load_labelled_corpus(synthetic, "train")
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    again = load_labelled_corpus(tmp_path / "parquet", "train")
    assert again["genre"][:] == dataset["genre"][:]
    dataset.select([]).to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"The split test of .* is empty"):
        load_labelled_corpus(tmp_path / "parquet", "test")
    with pytest.raises(ValueError, match="has no split 'validation', only train, test"):
        load_labelled_corpus(tmp_path / "parquet", "validation")


def test_metadata_that_lacks_a_file_is_refused(synthetic, tmp_path):
    shutil.copytree(synthetic, tmp_path / "synthetic")
    lines = (tmp_path / "synthetic" / "metadata.csv").read_text().splitlines()
    (tmp_path / "synthetic" / "metadata.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="does not name 1 of the files"):
        load_labelled_corpus(tmp_path / "synthetic", "train")


def test_crops_are_a_function_of_seed_epoch_and_clip(synthetic):
    dataset, extractor = load_labelled_corpus(synthetic, "train"), Music2VecFeatureExtractor()
    targets = np.arange(len(dataset))
    crops, again = (RandomCrops(dataset, targets, extractor, 0.5, seed=3) for _ in range(2))
    first = crops[4]["input_values"]
    assert first.shape == (8_000,) and crops[4]["labels"] == 4
    _ = again[0], again[1]  # what was read before has no say
    np.testing.assert_array_equal(again[4]["input_values"], first)
    crops.epoch = 1
    assert not np.array_equal(crops[4]["input_values"], first)
    clip = extractor.normalize(read_audio(dataset[4]["audio"]["path"]))
    starts = np.flatnonzero(np.isclose(clip[: -len(first) + 1], first[0], atol=1e-4))
    assert any(np.allclose(clip[start : start + len(first)], first, atol=1e-3) for start in starts)


def test_windows_cover_every_clip_once(synthetic, tiny_config):
    dataset, extractor = load_labelled_corpus(synthetic, "test"), Music2VecFeatureExtractor()
    windows = Windows(dataset, np.arange(len(dataset)), extractor, 0.8, tiny_config)
    together = np.concatenate([windows[row]["input_values"] for row in np.flatnonzero(windows.clips == 2)])
    logits = np.arange(len(windows))[:, None] * np.ones(4)
    expected = np.average(logits[windows.clips == 2, 0], weights=windows.num_frames[windows.clips == 2])
    np.testing.assert_allclose(windows.clip_logits(logits)[2], np.full(4, expected))
    clip = extractor.normalize(read_audio(dataset[2]["audio"]["path"]))
    np.testing.assert_allclose(together, clip, atol=1e-3)
    assert list(np.bincount(windows.clips)) == [3] * len(dataset)


def test_settings_come_from_yaml_and_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: M\ncorpus: C\nlabel: genre\nlearning_rate: 1e-3\nclassifier_layer: 2\nmode: lora\n"
        "logging_strategy: no\n"
    )
    args = parse_arguments([str(path), "--mode", "frozen", "--output_dir", str(tmp_path / "out"), "--resume"])
    assert (args.mode, args.label, args.learning_rate, args.head_layer) == ("frozen", ["genre"], 1e-3, 2)
    assert args.resume and args.load_best_model_at_end and args.logging_strategy == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: M\ncorpus: C\nlabel: g\nlearnin_rate: 1\n", "'learnin_rate'.* Did you mean learning_rate"),
        ("corpus: C\nlabel: g\n", "`model` is not set"),
        ("model: M\ncorpus: C\nlabel: g\nmode: half\n", "`mode` is 'half'. Use one of frozen, lora, last_k, full"),
        ("model: M\ncorpus: C\nlabel: g\ncrop_seconds: 0\n", "`crop_seconds` is 0"),
        ("model: M\ncorpus: C\nlabel: g\nlearning_rate: .nan\n", "`learning_rate` is nan"),
        ("model: M\ncorpus: C\nlabel: g\nlearning_rate: -1\n", "`learning_rate` is -1"),
        ("just words", "must hold lines of"),
    ],
)
def test_bad_settings_get_one_sentence(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(path), "--output_dir", str(tmp_path)])
