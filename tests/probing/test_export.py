"""An exported probe answers as the probe did, on real files, through transformers' own classes."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from toy_model import save_model
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from music2vec_hf import Music2VecModel
from music2vec_hf.features.encoders import open_source, resolve_sources
from music2vec_hf.features.store import FeatureStore
from music2vec_hf.probing.export import export_probe, plan_exports
from music2vec_hf.probing.probes import ProbeJob, ProbeSettings, TrainedProbe
from music2vec_hf.probing.scores import load_predictions
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tasks.loading import TASKS, load_task

SECONDS = (0.7, 1.0, 2.6)
TASK = TASKS["gtzan"]


@pytest.fixture
def model(encoder_folder):
    return encoder_folder


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for seconds in SECONDS:
        paths.append(tmp_path / f"{seconds}.wav")
        # Louder towards the end: a mean over windows is not one over the file.
        samples = rng.standard_normal(round(16_000 * seconds)) * np.linspace(0.01, 0.2, round(16_000 * seconds))
        soundfile.write(paths[-1], samples, 16_000)
    return paths


def trained_probe(layer, width, num_outputs, kind="mlp", regression=False):
    rng = np.random.default_rng(0)
    sizes = [width, 32, num_outputs] if kind == "mlp" else [width, num_outputs]
    shapes = [shape for pair in pairwise(sizes) for shape in (pair, pair[1:])]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    mean, scale = rng.standard_normal(width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32)
    targets = [4.756, 4.974, 1.386, 1.255] if regression else [0.0] * num_outputs + [1.0] * num_outputs
    target_mean, target_scale = np.split(np.float32(targets), 2)
    job = ProbeJob(layer, ProbeSettings(kind, hidden_size=32, dropout=0.5), 0)
    return TrainedProbe(job, 0.5, 8, arrays, mean, scale, target_mean, target_scale)


def features_of(model, paths, row_seconds=None, **changes):
    (source,) = resolve_sources([str(model)])
    return FeatureStore(None, open_source(source), **changes).rows(paths, row_seconds).features


def logits_of(folder, path):
    loaded = AutoModelForAudioClassification.from_pretrained(folder).eval()
    samples, rate = soundfile.read(path, dtype="float32")
    inputs = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        return loaded, loaded(inputs["input_values"]).logits.numpy()


@pytest.mark.parametrize("layer, kind", [("conv", "linear"), ("conv", "mlp"), ("0", "linear"), ("2", "mlp")])
def test_logits_are_the_probes_own(model, clips, tmp_path, layer, kind):
    features = features_of(model, clips)[layer]
    probe = trained_probe(layer, features.shape[1], 10, kind)
    folder = export_probe(probe, TASK, model, tmp_path / "out")
    for path, expected in zip(clips, probe.predict(features), strict=True):
        loaded, logits = logits_of(folder, path)
        np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)
    assert tuple(loaded.config.id2label.values()) == TASK.labels
    assert loaded.config.problem_type == "single_label_classification"


def test_a_weighted_sum_leaves_the_encoders_input_out(model, clips, tmp_path):
    features = features_of(model, clips)
    probe = trained_probe("weighted", 16, 10)
    probe.layer_weights = np.array([0.7, 0.3, 0.0], dtype=np.float32)  # of the layers 1 to 3
    probe.feature_mean = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    folder = export_probe(probe, TASK, model, tmp_path / "out", "marble")
    for number, path in enumerate(clips):
        expected = probe.predict({layer: values[[number]] for layer, values in features.items()})
        np.testing.assert_allclose(logits_of(folder, path)[1], expected, rtol=1e-4, atol=1e-4)
    probe.feature_scale = np.arange(1, 49, dtype=np.float32).reshape(3, 16)
    with pytest.raises(ValueError, match="scales each layer by its own deviation"):
        export_probe(probe, TASK, model, tmp_path / "other")


def test_emotion_answers_on_its_own_scale(model, clips, tmp_path):
    features = features_of(model, clips)["3"]
    probe = trained_probe("3", features.shape[1], 2, regression=True)
    folder = export_probe(probe, TASKS["emomusic"], model, tmp_path / "out")
    loaded, logits = logits_of(folder, clips[0])
    np.testing.assert_allclose(logits, probe.predict(features[:1]), rtol=1e-4, atol=1e-4)
    assert loaded.config.target_mean == pytest.approx([4.756, 4.974])
    assert (loaded.config.problem_type, loaded.config.id2label) == ("regression", {0: "arousal", 1: "valence"})


@pytest.mark.parametrize("protocol, task", [("jukemir", "gtzan"), ("marble", "gtzan"), ("quick", "giantsteps")])
def test_a_long_track_is_heard_in_the_windows_of_the_protocol(model, clips, tmp_path, protocol, task):
    """The pipeline answers as the probe: by the mean of a track's features, or by the mean of the windows' answers."""
    task = TASKS[task]
    seconds = 1.0 if task.clip_seconds is None else task.clip_seconds
    path = clips[2]
    if protocol != "jukemir":  # windows of equal length, which weighting by frames and equal weights agree on
        path = tmp_path / "whole.wav"
        samples = np.random.default_rng(1).standard_normal(round(2 * seconds * 16_000))
        soundfile.write(path, samples * np.linspace(0.01, 0.2, len(samples)), 16_000)
    row_seconds = None if protocol == "jukemir" else seconds
    features = features_of(model, [path], window_seconds=seconds, row_seconds=row_seconds)["2"]
    probe = trained_probe("2", features.shape[1], len(task.labels))
    folder = export_probe(probe, task, model, tmp_path / "out", protocol, window_seconds=seconds)
    expected = probe.predict(features).mean(axis=0)
    classify = pipeline("audio-classification", model=str(folder))
    answer = {row["label"]: row["score"] for row in classify(str(path), top_k=None, function_to_apply="none")}
    np.testing.assert_allclose([answer[label] for label in task.labels], expected, rtol=1e-4, atol=2e-4)
    assert len(features) == (1 if protocol == "jukemir" else 2)


def test_the_readme_names_task_protocol_and_score(model, tmp_path):
    scores = {"accuracy": {"value": 0.7412, "interval": [0.69, 0.79]}}
    folder = export_probe(trained_probe("3", 16, 10, "linear"), TASK, model, tmp_path / "out", "jukemir", scores)
    text = (folder / "README.md").read_text()
    for part in ("`model`,", "`gtzan`", "Layer `3`", "`jukemir`", "accuracy on test: 0.741 (95 % 0.690 to 0.790)"):
        assert part in text
    assert str(tmp_path) not in text and str(tmp_path) not in (folder / "config.json").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert json.loads((folder / "config.json").read_text())["window_average"] == "features"


def test_a_run_exports_what_it_scored(model, corpus, tmp_path, short_searches):
    """Every task of a model: the exported model gives the stored outputs of the first seed for the test tracks."""
    tasks, out = ["synthetic-genre", "synthetic-emotion"], tmp_path / "exported"
    options = {"layers": ["2"], "progress": False, "export": out}
    path = run_suite([str(model)], tasks, corpus, tmp_path / "run", "quick", (3, 4), **options)
    assert sorted(folder.name for folder in out.iterdir()) == sorted(tasks)
    for name in tasks:
        stored = load_predictions(path, "model")[name]
        data = load_task(name, corpus)
        answers = np.concatenate([logits_of(out / name, path)[1] for path in data.splits["test"].paths[:5]])
        np.testing.assert_allclose(answers, stored.outputs[0, :5], rtol=1e-4, atol=1e-4)
        config = json.loads((out / name / "config.json").read_text())
        assert list(config["id2label"].values()) == list(data.task.labels)
        assert config["problem_type"] == data.task.problem_type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_probed_and_exported_in_float32(model, clips, tmp_path, dtype):
    for name, stored in (("half", dtype), ("whole", torch.float32)):
        save_model(Music2VecModel.from_pretrained(model).to(dtype).to(stored), tmp_path / name)
    half, whole = features_of(tmp_path / "half", clips), features_of(tmp_path / "whole", clips)
    for layer, values in half.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, whole[layer])
    probe = trained_probe("2", half["2"].shape[1], 10)
    folder = export_probe(probe, TASK, tmp_path / "half", tmp_path / "out")
    loaded, logits = logits_of(folder, clips[0])
    assert loaded.dtype == torch.float32
    np.testing.assert_allclose(logits, probe.predict(half["2"][:1]), rtol=1e-4, atol=1e-4)


def test_exports_are_checked_before_anything_is_computed(model, tmp_path):
    sources = resolve_sources([str(model), "mfcc"])
    assert plan_exports(sources, ["gtzan"], None) == {}
    assert plan_exports(sources, ["gtzan"], tmp_path / "out") == {("model", "gtzan"): tmp_path / "out"}
    (tmp_path / "out" / "gtzan").mkdir(parents=True)
    (tmp_path / "out" / "gtzan" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="gtzan' exists and is not empty"):
        plan_exports(sources, ["gtzan", "emomusic"], tmp_path / "out")
    with pytest.raises(ValueError, match="There are 2 models"):
        plan_exports(resolve_sources({"a": str(model), "b": str(model)}), ["gtzan"], tmp_path / "new")


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    probe = trained_probe("3", 16, 10)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"exists and is not empty\. Name a new folder"):
        export_probe(probe, TASK, model, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    HubertModel(HubertConfig(**sizes, conv_dim=[8] * 7)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    with pytest.raises(ValueError, match="is a hubert model; a probe is exported with a music2vec or"):
        export_probe(probe, TASK, tmp_path / "hubert", tmp_path / "out")
