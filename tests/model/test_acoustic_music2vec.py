"""Acoustic targets and the front end's first weights: what they hear and where; a weight of 0 changes nothing."""

import math

import pytest
import torch
from toy_model import SIZES

from music2vec_hf.model.acoustic_music2vec import NUM_ACOUSTIC_BINS, acoustic_targets, log_frequency_filters
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher

SEMITONES, MEL_BANDS, PITCH_CLASSES = slice(0, 84), slice(84, 124), slice(124, 136)
HOP, FIELD = 320, 2528


def sine(hertz: float, seconds: float = 2.0) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * 16_000)) / 16_000)[None]


def student(**settings) -> Music2VecForPreTraining:
    torch.manual_seed(1)
    return Music2VecForPreTraining(Music2VecConfig(**SIZES, layerdrop=0.0, **settings)).eval()


@pytest.mark.parametrize(("semitone", "pitch_class"), [(0, 9), (12, 9), (27, 0), (36, 9), (43, 4), (60, 9)])
def test_a_sine_is_loudest_at_its_own_pitch(semitone, pitch_class):
    hertz = 55 * 2 ** (semitone / 12)
    spectra = acoustic_targets(sine(hertz), 80, HOP, FIELD)[0]
    assert set(spectra[10:70, SEMITONES].argmax(-1).tolist()) == {semitone}
    if 60 < hertz < 2000:
        assert set(spectra[10:70, PITCH_CLASSES].argmax(-1).tolist()) == {pitch_class}


@pytest.mark.parametrize("field", [400, 2528])
@pytest.mark.parametrize("frame", [0, 20, 60])
def test_a_click_is_where_the_frame_looks(frame, field):
    samples = torch.zeros(1, 32_000)
    samples[0, frame * HOP + field // 2] = 1.0
    loudness = acoustic_targets(samples, 80, HOP, field)[0, :, MEL_BANDS].mean(-1)
    assert abs(int(loudness.argmax()) - frame) <= 1


def test_each_kind_of_spectrum_has_unit_variance_and_loudness_does_not_count():
    torch.manual_seed(0)
    samples = torch.randn(2, 32_000)
    spectra = acoustic_targets(samples, 90, HOP, FIELD)
    assert spectra.shape == (2, 90, NUM_ACOUSTIC_BINS) and spectra.dtype == torch.float32
    for kind in (SEMITONES, MEL_BANDS, PITCH_CLASSES):
        torch.testing.assert_close(spectra[..., kind].mean((1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(spectra[..., kind].var((1, 2)), torch.ones(2), atol=1e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(acoustic_targets(samples, 90, HOP, FIELD), spectra)
    assert (acoustic_targets(2 * samples, 90, HOP, FIELD) - spectra).abs().mean() < 0.05
    assert torch.isfinite(acoustic_targets(torch.zeros(1, 32_000), 90, HOP, FIELD)).all()


def test_without_weight_there_is_no_head_and_no_second_loss(batch):
    input_values, mask = batch
    plain, heard = student(), student(acoustic_weight=2.0)
    added = heard.state_dict().keys() - plain.state_dict().keys()
    assert added == {"acoustic_head.weight", "acoustic_head.bias"}
    heard.load_state_dict(plain.state_dict(), strict=False)
    alone = plain(input_values, None, mask, EMATeacher(plain))
    both = heard(input_values, None, mask, EMATeacher(heard))
    assert alone.acoustic_loss is None
    torch.testing.assert_close(both.loss, alone.loss + 2.0 * both.acoustic_loss)
    assert heard(input_values, None, mask).acoustic_loss is None


@pytest.mark.parametrize("views", [1, 2])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(views):
    model = student(acoustic_weight=1.0)
    torch.manual_seed(2)
    input_values, mask = torch.randn(4, 16_000), torch.rand(4, views, 49) < 0.5
    teacher = EMATeacher(model)

    def gradient(*parts):
        model.zero_grad()
        for part in parts:
            output = model(input_values[part], None, mask[part], teacher)
            (output.loss * mask[part].sum()).backward()
        return model.acoustic_head.weight.grad.clone()

    whole = gradient(slice(0, 4))
    assert whole.abs().max() > 0
    torch.testing.assert_close(
        gradient(slice(0, 1), slice(1, 4)), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max())
    )


def test_the_front_end_starts_from_pairs_of_sines():
    filters = log_frequency_filters(168, 2048)
    assert filters.shape == (168, 1, 2048)
    torch.testing.assert_close(filters.square().sum((1, 2)), torch.ones(168))
    peaks = torch.fft.rfft(filters[:, 0], 16_000).abs().argmax(-1)
    wanted = 55 * 2 ** (torch.arange(168) // 2 / 12)
    assert ((peaks - wanted).abs() <= 0.03 * wanted + 2).all()
    assert (filters[0::2] * filters[1::2]).sum((1, 2)).abs().max() < 0.02  # a quarter of a period apart

    shape = {**SIZES, "conv_dim": [168, 16], "conv_kernel": [2048, 4], "conv_stride": [160, 2]}
    model = Music2VecModel(Music2VecConfig(**shape, frontend_init="log_frequency"))
    torch.testing.assert_close(model.feature_extractor.conv_layers[0].conv.weight, filters)
    plain = Music2VecModel(Music2VecConfig(**shape))
    assert not torch.equal(plain.feature_extractor.conv_layers[0].conv.weight, filters)
