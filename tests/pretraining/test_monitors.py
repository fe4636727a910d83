"""Monitors: equal to their definitions on data where those are computed directly, however the batch is cut."""

import pytest
import torch

from music2vec_hf.model.modeling_music2vec import Music2VecForPreTrainingOutput, channel_std
from music2vec_hf.pretraining.monitors import FrameMoments, effective_rank, position_share

CLIPS, FRAMES, CHANNELS = 12, 20, 6


def batch(targets, mask):
    generator = torch.Generator().manual_seed(1)
    return Music2VecForPreTrainingOutput(
        targets=targets[mask],
        predictions=torch.randn(int(mask.sum()), CHANNELS, generator=generator),
        projected_features=torch.randn(len(mask), FRAMES, CHANNELS, generator=generator) * 3 + 1,
    )


@pytest.fixture
def mask():
    return torch.rand(CLIPS, FRAMES, generator=torch.Generator().manual_seed(0)) < 0.5


def monitors_of(parts):
    moments = FrameMoments(FRAMES, parts[0][0])
    for output, mask in parts:
        moments.add(output, mask)
    return moments.monitors(lambda sums: sums)


def test_deviations_are_the_references(mask):
    output = batch(torch.randn(CLIPS, FRAMES, CHANNELS) * 2 + 5, mask)
    monitors = monitors_of([(output, mask)])
    assert monitors["target_std"] == pytest.approx(float(channel_std(output.targets)), rel=1e-4)
    assert monitors["prediction_std"] == pytest.approx(float(channel_std(output.predictions)), rel=1e-4)
    features = output.projected_features.flatten(0, 1)
    assert monitors["feature_std"] == pytest.approx(float(channel_std(features)), rel=1e-4)
    assert monitors["target_rank"] == pytest.approx(effective_rank(torch.cov(output.targets.T)), rel=1e-3)


def test_the_cut_of_a_batch_changes_nothing(mask):
    targets = torch.randn(CLIPS, FRAMES, CHANNELS)
    whole = monitors_of([(batch(targets, mask), mask)])
    parts = monitors_of([(batch(targets[rows], mask[rows]), mask[rows]) for rows in (slice(0, 5), slice(5, CLIPS))])
    for name in ("target_std", "target_rank", "position_share"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)


def test_rank_counts_the_dimensions_that_are_filled():
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.ones(8, 8)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))) == pytest.approx(2)
    assert effective_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_position_share_is_the_power_of_the_mean_over_clips(share):
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(1, FRAMES, 64, generator=generator)
    content = torch.randn(200, FRAMES, 64, generator=generator)
    targets = share**0.5 * position + (1 - share) ** 0.5 * content
    found = position_share(torch.full((FRAMES,), 200.0), targets.sum(0), targets.square().sum((0, 2)))
    assert found == pytest.approx(share, abs=0.03)


def test_frames_that_one_clip_alone_masks_say_nothing_about_position():
    assert position_share(torch.ones(3), torch.ones(3, 2), torch.ones(3)) == 0
