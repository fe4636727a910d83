"""Weights travel: exported checkpoints load in a process that knows nothing of this library."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from music2vec_hf import Music2VecFeatureExtractor, Music2VecForPreTraining, Music2VecModel
from music2vec_hf.cli import main
from music2vec_hf.hub import export_data2vec_audio

STRANGER = """
import sys, numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel
assert "music2vec_hf" not in sys.modules
model = AutoModel.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "Data2VecAudioModel"
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1])
samples = np.load(sys.argv[2])
inputs = extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
with torch.no_grad():
    np.save(sys.argv[3], model(inputs).last_hidden_state.numpy())
"""


@pytest.fixture
def student_folder(tiny_student, tmp_path):
    tiny_student.save_pretrained(tmp_path / "student")
    Music2VecFeatureExtractor().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_an_exported_model_needs_only_transformers(student_folder, tmp_path):
    exported = export_data2vec_audio(student_folder, tmp_path / "plain")
    samples = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    np.save(tmp_path / "in.npy", samples)
    command = [sys.executable, "-c", STRANGER, exported, tmp_path / "in.npy", tmp_path / "out.npy"]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    inputs = Music2VecFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        ours = Music2VecModel.from_pretrained(student_folder).eval()(inputs).last_hidden_state
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), ours.numpy(), atol=1e-4)


def test_an_exported_model_comes_back(student_folder, tiny_student, tmp_path):
    export_data2vec_audio(student_folder, tmp_path / "plain")
    again = Music2VecModel.from_pretrained(tmp_path / "plain")
    for name, tensor in tiny_student.data2vec_audio.state_dict().items():
        assert again.state_dict()[name].equal(tensor)
    assert not Music2VecForPreTraining.from_pretrained(tmp_path / "plain").config.apply_spec_augment


def test_an_export_overwrites_nothing(student_folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose this")
    assert main(["export", str(student_folder), str(tmp_path / "mine")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
