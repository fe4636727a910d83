"""Weights travel: exported checkpoints load in a process that knows nothing of this library."""

import logging
import warnings

import numpy as np
import pytest
import torch
from toy_hub import save_published
from toy_model import save_model
from transformers import Data2VecAudioModel
from transformers.utils import logging as transformers_logging

from music2vec_hf import Music2VecConfig, Music2VecFeatureExtractor, Music2VecModel
from music2vec_hf.hub.conversion import export_data2vec_audio

STRANGER = """
import sys, numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel
assert "music2vec_hf" not in sys.modules
model = AutoModel.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "Data2VecAudioModel" and not model.config.apply_spec_augment
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1])
samples = np.load(sys.argv[2])
inputs = extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
with torch.no_grad():
    np.save(sys.argv[3], model(inputs).last_hidden_state.numpy())
"""


def test_an_exported_model_needs_only_transformers(offline, tiny_student, tmp_path):
    student_folder = save_model(tiny_student, tmp_path / "student")
    exported = export_data2vec_audio(student_folder, tmp_path / "plain")
    samples = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    np.save(tmp_path / "in.npy", samples)
    offline.succeed(STRANGER, exported, tmp_path / "in.npy", tmp_path / "out.npy", folder=tmp_path)
    inputs = Music2VecFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        ours = Music2VecModel.from_pretrained(student_folder).eval()(inputs).last_hidden_state
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), ours.numpy(), atol=1e-4)


@pytest.fixture
def published(tmp_path):
    """A folder laid out as the published model, and the plain model that it holds."""
    return tmp_path / "music2vec-v1", save_published(tmp_path / "music2vec-v1").eval()


@pytest.fixture
def no_warning():
    """Whatever Python, transformers or this library warns of is an error."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(), transformers_logging.get_logger()]
    for logger in loggers:
        logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    for logger in loggers:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


@pytest.mark.parametrize("padded", [False, True])
def test_the_published_layout_loads_silently_and_is_the_plain_model(published, padded, no_warning):
    folder, plain = published
    config = Music2VecConfig.from_pretrained(folder)
    assert (config.vocab_size, config.layerdrop, config.mask_time_prob) == (32, 0.1, 0.05)
    model = Music2VecModel.from_pretrained(folder).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in model.state_dict().items())

    torch.manual_seed(1)
    inputs = {"input_values": torch.randn(2, 16_000)}
    if padded:
        inputs["attention_mask"] = (torch.arange(16_000) < torch.tensor([[16_000], [9_000]])).long()

    def difference():
        with torch.no_grad():
            ours, theirs = (m(**inputs, output_hidden_states=True).hidden_states for m in (model, plain))
        assert len(ours) == len(theirs) == 4
        return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))

    # The front end adds in another order: rounding in float32, nothing in double precision; all else is the same.
    assert difference() < 1e-4
    inputs["input_values"] = inputs["input_values"].double()
    model.double(), plain.double()
    assert difference() < 1e-12
    model.float(), plain.float()
    inputs["input_values"] = inputs["input_values"].float()
    model.feature_extractor = plain.feature_extractor
    assert difference() == 0.0


def test_the_published_feature_extractor_loads_silently(published, no_warning):
    extractor = Music2VecFeatureExtractor.from_pretrained(published[0])
    assert (extractor.do_normalize, extractor.return_attention_mask, extractor.sampling_rate) == (True, True, 16_000)
    values = extractor(np.arange(800.0), sampling_rate=16_000, return_tensors="np").input_values
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-5)


def test_the_published_layout_can_be_exported_again(published, tmp_path, no_warning):
    """The repaired folder is one that transformers itself takes."""
    again = Data2VecAudioModel.from_pretrained(export_data2vec_audio(published[0], tmp_path / "repaired"))
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in published[1].state_dict().items())
