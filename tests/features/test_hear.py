"""The API of HEAR 2021: shapes and times as its validator asks for them, values those of `embed`."""

import numpy as np
import pytest
import torch
from toy_audio import noise

from music2vec_hf.features import hear
from music2vec_hf.features.embeddings import embed


@pytest.fixture(scope="module")
def model(encoder_folder):
    return hear.load_model(str(encoder_folder))


def sounds(count, seconds):
    return torch.from_numpy(np.stack([noise(seconds, number) for number in range(count)]))


def test_the_model_is_a_module_that_names_its_sizes(model, encoder_folder):
    assert isinstance(model, torch.nn.Module) and model.to("cpu") is model
    sizes = (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size)
    assert sizes == (16_000, 16, 16) and all(type(size) is int for size in sizes)
    assert hear.load_model(str(encoder_folder), layer="conv").scene_embedding_size == 8
    assert hear.load_model().scene_embedding_size == hear.load_model("").scene_embedding_size == 256


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_frames_have_regular_times_in_milliseconds(model, seconds):
    """The checks of the validator, and each time is the centre of what its frame sees: 400 samples every 320."""
    audio = sounds(2, seconds)
    frames, times = hear.get_timestamp_embeddings(audio, model)
    assert frames.dtype == torch.float32 and frames.shape == (2, times.shape[1], 16) and times.shape[0] == 2
    centres = (np.arange(times.shape[1]) * 320 + 399 / 2) / 16
    np.testing.assert_allclose(times.numpy(), np.stack([centres] * 2), atol=0.04)
    assert 1000 * seconds - 50 < times.max() < 1000 * seconds
    np.testing.assert_allclose(frames[1].numpy(), embed(model.encoder, audio[1], layers=3, pool="none"), atol=1e-5)


def test_seams_of_windows_do_not_show_in_the_times(model):
    frames, times = hear.get_timestamp_embeddings(sounds(1, 31), model)
    assert frames.shape[1] == (31 * 16_000 - 400) // 320 + 1
    np.testing.assert_allclose(np.diff(times[0].double()), 20.0, atol=0.01)


@pytest.mark.parametrize("count, seconds, layer", [(4, 2.74, None), (1, 31.0, 1), (2, 0.5, "conv")])
def test_scenes_are_what_embed_gives(encoder_folder, count, seconds, layer):
    model, audio = hear.load_model(str(encoder_folder), layer), sounds(count, seconds)
    found = hear.get_scene_embeddings(audio, model)
    assert found.dtype == torch.float32 and found.shape == (count, model.scene_embedding_size)
    expected = [embed(model.encoder, sound.numpy(), 3 if layer is None else layer) for sound in audio]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(16_000,), (0, 16_000), (1, 1, 16_000)])
def test_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"`audio` has shape .* Give `\(n_sounds, n_samples\)`."):
        hear.get_scene_embeddings(torch.zeros(shape), model)
