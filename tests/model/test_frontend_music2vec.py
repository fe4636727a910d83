"""Laws of the front end: equal to transformers' convolutions for any shape of them, and every clip for itself."""

import pytest
import torch
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioFeatureEncoder

from music2vec_hf import Music2VecConfig
from music2vec_hf.model.frontend_music2vec import Music2VecFeatureEncoder

SHAPES = {
    "the paper's": ([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]),
    "taps that reach two blocks ahead": ([8, 5, 7], [4, 2, 3]),
    "gaps between the taps": ([2, 2, 1], [3, 4, 2]),
    "stride one": ([3, 3], [1, 1]),
}


def encoders(kernels, strides, **values):
    """Ours and transformers', with the same weights, in double precision."""
    config = Music2VecConfig(conv_dim=[6] * len(kernels), conv_kernel=kernels, conv_stride=strides, **values)
    torch.manual_seed(0)
    ours, theirs = Music2VecFeatureEncoder(config).double(), Data2VecAudioFeatureEncoder(config).double()
    theirs.load_state_dict(ours.state_dict())
    return config, ours.eval(), theirs.eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("further", [0, 1, 7, 12])
def test_any_kernels_and_strides_give_transformers_features_and_gradients(shape, further):
    config, ours, theirs = encoders(*SHAPES[shape], conv_bias=True)
    num_samples = config.receptive_field + further * config.inputs_to_logits_ratio + further % 5
    results = []
    for encoder in (ours, theirs):
        torch.manual_seed(1)
        input_values = torch.randn(3, num_samples, dtype=torch.float64, requires_grad=True)
        features = encoder(input_values)
        assert features.shape == (3, 6, config.num_frames(num_samples))
        (features * torch.randn_like(features)).sum().backward()
        results.append([features, *(parameter.grad for parameter in encoder.parameters())])
    for mine, yours in zip(*results, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clip_is_not_changed_by_the_next_one(shape):
    config, encoder, _ = encoders(*SHAPES[shape])
    input_values = torch.randn(3, config.receptive_field + 3 * config.inputs_to_logits_ratio + 1, dtype=torch.float64)
    alone = encoder(input_values)
    input_values[1] = torch.nan
    beside = encoder(input_values)
    assert torch.equal(beside[[0, 2]], alone[[0, 2]]) and beside[1].isnan().all()


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients():
    config, encoder, _ = encoders(*SHAPES["the paper's"])
    encoder = encoder.float()
    input_values = torch.randn(2, config.receptive_field + 5_000)
    exact = encoder(input_values)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(input_values)
    features.float().square().sum().backward()
    assert 0 < (features - exact).abs().max() < 0.2
    assert all(parameter.grad.dtype == torch.float32 for parameter in encoder.parameters())
