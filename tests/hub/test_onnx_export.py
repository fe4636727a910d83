"""ONNX: what onnxruntime gives is what torch gives, at any length and batch size, and needs neither torch nor us."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from toy_model import SIZES, save_model

from music2vec_hf import (
    Music2VecConfig,
    Music2VecFeatureExtractor,
    Music2VecForAudioFrameClassification,
    Music2VecForPreTraining,
    Music2VecForSequenceClassification,
    Music2VecModel,
)
from music2vec_hf.cli import main
from music2vec_hf.hub import onnx_export as onnx_module
from music2vec_hf.hub.onnx_export import export_onnx, largest_difference, load_graph, open_session

pytest.importorskip("onnxscript")

TOY = SIZES | {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 2048,  # most weights are in products, which int8 makes smaller
    "num_conv_pos_embeddings": 16,
    # Fewer convolutions, which take long to export; receptive field and rate are the usual ones.
    "conv_dim": [8] * 3,
    "conv_kernel": [10, 7, 19],
    "conv_stride": [5, 4, 16],
    "layerdrop": 0.9,  # in training mode it would drop the layer most of the time
}
STATES = ("conv", "hidden_states_0", "hidden_states_1")
GENRES = {0: "blues", 1: "jazz", 2: "rock"}


def save(cls, folder, **config):
    torch.manual_seed(0)
    return save_model(cls(Music2VecConfig(**TOY, **config)), folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier's folder, its export, and what was said of it, measured on two clips and one broken file."""
    folder = tmp_path_factory.mktemp("classifier")
    head = {"classifier_layer": "weighted", "classifier_pooling": "attention", "id2label": GENRES}
    save(Music2VecForSequenceClassification, folder / "genres", **head, problem_type="single_label_classification")
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        soundfile.write(folder / "clips" / f"{name}.wav", 0.1 * rng.standard_normal(24_000), 16_000)
    (folder / "clips" / "broken.wav").write_bytes(b"RIFF")
    return folder / "genres", export_onnx(folder / "genres", folder / "onnx", "int8", folder / "clips")


@pytest.fixture
def exported(classifier, monkeypatch):
    """Exports within the test take the file of the classifier's, which took its time."""
    content = (classifier[1].folder / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_module, "write_onnx", lambda graph, path: path.write_bytes(content))


def outputs_of_torch(model, clips):
    """The outputs of a model by their names in ONNX."""
    encoder = model if isinstance(model, Music2VecModel) else model.data2vec_audio
    with torch.no_grad():
        states = encoder(torch.from_numpy(clips), output_hidden_states=True).hidden_states
        found = {f"hidden_states_{layer}": state for layer, state in enumerate(states)}
        found["conv"] = encoder.feature_extractor(torch.from_numpy(clips)).transpose(1, 2)
        if encoder is not model:
            found["logits"] = model(torch.from_numpy(clips)).logits
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("rows, length", [(1, 400), (1, 719), (2, 720), (5, 8_001), (1, 123_456)])
def test_onnxruntime_gives_what_torch_gives(classifier, rows, length):
    folder, export = classifier
    model = Music2VecForSequenceClassification.from_pretrained(folder).eval()
    session = open_session(export.folder / "model.onnx")
    assert export.outputs == tuple(output.name for output in session.get_outputs()) == ("logits", *STATES)
    clips = np.random.default_rng(length).standard_normal((rows, length)).astype(np.float32)
    ours = outputs_of_torch(model, clips)
    for name, values in zip(export.outputs, session.run(None, {"input_values": clips}), strict=True):
        np.testing.assert_allclose(values, ours[name], atol=1e-4, err_msg=name)


def test_labels_and_names_travel(classifier):
    _, export = classifier
    assert export.head == "Music2VecForSequenceClassification"
    assert json.loads((export.folder / "config.json").read_text())["id2label"]["2"] == "rock"
    shapes = {output.name: output.shape for output in open_session(export.folder / "model.onnx").get_outputs()}
    assert shapes["logits"] == ["batch_size", 3] and shapes["conv"] == ["batch_size", "num_frames", 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls, config, names",
    [
        (Music2VecForPreTraining, {}, STATES),  # its prediction head is left behind
        # Such a head does not run the encoder, so there are no hidden states to give.
        (Music2VecForAudioFrameClassification, {"classifier_layer": "conv", "num_labels": 4}, ("logits", "conv")),
    ],
)
def test_other_models_give_what_they_have(cls, config, names, tmp_path):
    folder = save(cls, tmp_path / "model", **config)
    export = export_onnx(folder, tmp_path / "onnx")
    assert export.outputs == names and export.int8 is None
    model = (Music2VecModel if cls is Music2VecForPreTraining else cls).from_pretrained(folder).eval()
    clips = np.random.default_rng(1).standard_normal((2, 5_000)).astype(np.float32)
    ours = outputs_of_torch(model, clips)
    values = open_session(export.folder / "model.onnx").run(None, {"input_values": clips})
    for name, value in zip(names, values, strict=True):
        np.testing.assert_allclose(value, ours[name], atol=1e-4, err_msg=name)


def test_int8_is_smaller_and_near(classifier):
    """Its cost is what a user finds who compares the two files."""
    _, export = classifier
    assert export.bytes["model_int8.onnx"] < 0.6 * export.bytes["model.onnx"]
    cost = export.int8
    assert cost.clips == "2 clips" and [path.rpartition("/")[2] for path, _ in cost.rejects] == ["broken.wav"]
    sessions = [open_session(export.folder / name) for name in ("model.onnx", "model_int8.onnx")]
    errors, differences, same = [], [], []
    for name in "ab":
        samples, _ = soundfile.read(export.folder.parent / "clips" / f"{name}.wav", dtype="float32")
        values = Music2VecFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="np").input_values
        (exact, last), (rough, last_rough) = (
            session.run(["logits", "hidden_states_1"], {"input_values": values}) for session in sessions
        )
        differences.append(np.abs(exact - rough).max())
        same.append(exact.argmax() == rough.argmax())
        mean = last.mean(1)
        errors.append(np.linalg.norm(last_rough.mean(1) - mean) / np.linalg.norm(mean))
    assert cost.errors["hidden_states_1"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert cost.logit_difference == pytest.approx(max(differences), rel=1e-4)
    assert cost.agreement == np.mean(same)
    assert 0 < cost.errors["hidden_states_1"] < 0.1


def test_the_difference_that_is_checked_sees_a_wrong_weight(classifier):
    """The law of the check: equal models differ by rounding, one changed weight is seen."""
    graph, _ = load_graph(classifier[0])
    session = open_session(classifier[1].folder / "model.onnx")
    assert largest_difference(graph, session) < 1e-4
    with torch.no_grad():
        graph.encoder.encoder.layers[0].feed_forward.output_dense.weight[0, 0] += 1.0
    assert largest_difference(graph, session) > 1e-3


def test_a_file_that_differs_is_not_kept(classifier, exported, tmp_path):
    """The file of one model beside the weights of another."""
    folder = save(Music2VecForSequenceClassification, tmp_path / "other", num_labels=3, classifier_layer="weighted")
    with pytest.raises(ValueError, match=r"differs from torch by .* so it is not kept"):
        export_onnx(folder, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_readmes_snippet_runs_without_this_library(classifier, tmp_path):
    folder = classifier[1].folder
    text = (folder / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    soundfile.write(tmp_path / "song.wav", 0.1 * np.random.default_rng(0).standard_normal((16_000, 2)), 16_000)
    code = snippet.replace('"model.onnx"', repr(str(folder / "model.onnx")))
    code = f"import sys\nsys.modules['torch'] = sys.modules['music2vec_hf'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "logits (1, 3)"
    for name in classifier[1].outputs:
        assert f"| output | `{name}` | float32 | `[batch_size, " in text


def test_no_path_of_this_machine_travels(classifier):
    folder = classifier[1].folder
    assert {file.name for file in folder.iterdir()} == {
        *("model.onnx", "model_int8.onnx", "config.json", "preprocessor_config.json", "README.md")
    }
    for file in folder.iterdir():
        for path in (sys.prefix, str(folder.parent), str(onnx_module.__file__), "site-packages"):
            assert path.encode() not in file.read_bytes(), f"{file.name} holds {path}"


def test_the_command_says_what_it_made_and_what_it_cost(classifier, exported, tmp_path, capsys):
    clips = classifier[0].parent / "clips"
    words = ["export", classifier[0], tmp_path / "onnx", "--format", "onnx", "--quantize", "int8", "--samples", clips]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert f"outputs logits, {', '.join(STATES)}" in said.out and "model_int8.onnx: 0." in said.out
    assert re.search(r"largest difference from torch: \d\.\de-\d\d of", said.out)
    assert re.search(r"int8: Over 2 clips, .* of `hidden_states_1` are off by \d\.\d%", said.out)
    assert f"left out: {clips / 'broken.wav'}: " in said.err


def test_without_samples_the_cost_is_that_on_synthetic_clips(classifier, monkeypatch):
    monkeypatch.setattr(onnx_module, "_SYNTHETIC_CLIPS", 2)
    both = [open_session(classifier[1].folder / name) for name in ("model.onnx", "model_int8.onnx")]
    cost = onnx_module.measure_int8(*both, Music2VecFeatureExtractor(), exclusive=False)
    assert cost.clips == "2 synthetic clips of 10 s" and cost.agreement is None and cost.logit_difference > 0
    same = onnx_module.measure_int8(both[0], both[0], Music2VecFeatureExtractor())
    assert (same.agreement, same.logit_difference, max(same.errors.values())) == (1.0, 0.0, 0.0)


def test_mistakes_get_a_sentence(classifier, tmp_path, capsys, monkeypatch):
    model = str(classifier[0])

    def refused(*words):
        assert main(["export", model, *map(str, words)]) == 1
        return capsys.readouterr().err

    new = tmp_path / "out"
    assert "exists and is not empty" in refused(model)  # a plain export
    assert "are of ONNX" in refused(new, "--quantize", "int8")
    assert "exists and is not empty" in refused(model, "--format", "onnx")
    assert "Ask for it (`--quantize int8`)" in refused(new, "--format", "onnx", "--samples", tmp_path)
    words = ["--format", "onnx", "--quantize", "int8", "--samples"]
    assert "holds no audio files" in refused(new, *words, tmp_path)
    monkeypatch.setattr(onnx_module, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert "pip install 'music2vec_hf[onnx]'" in refused(new, "--format", "onnx")
    assert not new.exists()
