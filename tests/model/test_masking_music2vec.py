"""Laws of the masks, and the reference's statistics (tests/golden/mask_stats.npz)."""

from pathlib import Path

import numpy as np
import pytest

from music2vec_hf import sample_mask_group, sample_mask_time_indices

STATS = np.load(Path(__file__).parents[1] / "golden" / "mask_stats.npz", allow_pickle=False)
SETTINGS = list(zip(STATS["settings"].tolist(), STATS["mask_prob"], STATS["mask_length"], strict=True))


def draw(num_rows, num_frames, prob, length, seed=0):
    rngs = [np.random.default_rng([seed, row]) for row in range(num_rows)]
    return np.stack([sample_mask_time_indices(num_frames, float(prob), int(length), rng) for rng in rngs])


@pytest.mark.parametrize("num_frames", [249, 499, 749, 1499])
@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_masked_share_is_the_references(index, num_frames):
    _, prob, length = SETTINGS[index]
    column = STATS["T"].tolist().index(num_frames)
    mean, std = STATS["single/fraction_mean"][index, column], STATS["single/fraction_std"][index, column]
    shares = draw(400, num_frames, prob, length).mean(axis=1)
    # Four standard errors of both samples: 24 cases, a chance of 2e-3 that correct code fails one of them.
    assert shares.mean() == pytest.approx(mean, abs=4 * std * np.sqrt(1 / 400 + 1 / 2000))
    assert shares.std() == pytest.approx(std, rel=0.2)


def test_equal_counts_in_a_group_lower_the_share_as_in_the_reference():
    index, column = 0, STATS["T"].tolist().index(249)
    _, prob, length = SETTINGS[index]
    means = []
    for group in range(100):
        rngs = [np.random.default_rng([group, row]) for row in range(8)]
        masks = sample_mask_group(249, float(prob), int(length), rngs)
        assert len(set(masks.sum(axis=1))) == 1
        means.append(masks.mean())
    expected = STATS["batch8/fraction_mean"][index, column]
    assert np.mean(means) == pytest.approx(expected, abs=4 * np.std(means) / np.sqrt(100))


def test_the_last_frame_is_never_masked_and_the_first_seldom():
    masks = draw(500, 249, 0.65, 10)
    assert not masks[:, -1].any()
    assert masks[:, 0].mean() < 0.5 * masks[:, 100:150].mean()


def test_spans_have_at_least_the_asked_length():
    for mask in draw(100, 249, 0.2, 10):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        runs = edges[1::2] - edges[::2]
        assert runs.min() >= 10


def test_there_is_always_a_masked_frame():
    assert (draw(200, 20, 0.01, 5).sum(axis=1) >= 5).all()


def test_mask_dropout_shows_its_share_again():
    rngs = [[np.random.default_rng([1, row]) for row in range(4)] for _ in range(2)]
    full = sample_mask_group(499, 0.65, 10, rngs[0], require_same_masks=False)
    dropped = sample_mask_group(499, 0.65, 10, rngs[1], require_same_masks=False, mask_dropout=0.25)
    assert not (dropped & ~full).any()
    for before, after in zip(full.sum(axis=1), dropped.sum(axis=1), strict=True):
        assert after == before - round(0.25 * before)


@pytest.mark.parametrize(
    "num_frames, prob, length, sentence",
    [
        (10, 0.65, 10, "`mask_time_length` is 10 frames but the crop has only 10"),
        (249, 1.2, 10, "Use a probability from 0 to 1"),
        (249, 0.65, 0, "length of at least 1 frame"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(num_frames, prob, length, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample_mask_time_indices(num_frames, prob, length, np.random.default_rng(0))


def test_a_mask_of_everything_is_refused():
    with pytest.raises(ValueError, match="masks all 5 frames"):
        for seed in range(200):
            sample_mask_time_indices(5, 1.0, 3, np.random.default_rng(seed))
