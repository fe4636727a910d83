"""Crops, masks and micro-batches are functions of (seed, epoch or step, index) alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_plan import PLAN

from music2vec_hf.corpus.batches import CropDataset, UpdateSampler, training_batches
from music2vec_hf.corpus.loading import load_corpus, read_clip, read_crop


@pytest.fixture(scope="module")
def dataset(toy_corpus):
    return CropDataset(load_corpus(toy_corpus), PLAN)


def test_an_epoch_reads_every_clip_once(dataset):
    rows = [divmod(item, PLAN.rows_per_update) for item in range(24)]
    clips = [dataset.locate(*row)[0] for row in rows]
    assert sorted(clips[:12]) == sorted(clips[12:]) == list(range(12))
    assert clips[:12] != clips[12:]


def test_a_crop_is_the_slice_of_the_normalised_clip(dataset):
    clip, start = dataset.locate(3, 2)
    whole = torch.tensor(read_clip(dataset.corpus[clip]))
    expected = torch.nn.functional.layer_norm(whole, whole.shape)[start : start + 16_000]
    torch.testing.assert_close(torch.tensor(dataset[(3, 2)][1]), expected, atol=1e-5, rtol=1e-5)


def test_crop_normalisation_uses_the_crop(toy_corpus):
    plan = replace(PLAN, normalize="crop")
    samples = CropDataset(load_corpus(toy_corpus), plan)[(0, 0)][1]
    assert samples.mean() == pytest.approx(0, abs=1e-5) and samples.std() == pytest.approx(1, abs=1e-3)


def test_starts_cover_the_clip(dataset):
    starts = np.array([dataset.locate(step, 0)[1] for step in range(400)])
    assert starts.min() < 1_500 and starts.max() > 24_000 - 1_500 and starts.max() <= 24_000


@pytest.fixture(scope="module", params=["plain", "several crops", "mixed", "all"])
def optional(toy_corpus, request):
    mixed = {"mix_prob": 0.5, "mix_snr_db": (0.0, 10.0), "gain_db": 6.0}
    several = {"crops_per_clip": 3}
    changes = {"plain": {}, "several crops": several, "mixed": mixed, "all": several | mixed}[request.param]
    return CropDataset(load_corpus(toy_corpus), replace(PLAN, **changes))


@pytest.mark.parametrize(
    "num_processes, micro_steps, num_workers", [(1, 2, 0), (2, 1, 0), (2, 2, 0), (5, 1, 0), (1, 3, 2)]
)
def test_any_cut_of_an_update_has_the_same_rows_and_masks(optional, num_processes, micro_steps, num_workers):
    whole, masks = [optional[(2, row)][1] for row in range(5)], optional.plan.masks(2, list(range(5)))
    order = []
    for process in range(num_processes):
        place = (2, 3, micro_steps, process, num_processes)
        loader = training_batches(optional, *place, num_workers=num_workers)
        for addresses, batch in zip(UpdateSampler(5, *place), loader, strict=True):
            for (_, row), samples, mask in zip(addresses, *batch.values(), strict=True):
                order.append(row)
                np.testing.assert_array_equal(samples, whole[row])
                np.testing.assert_array_equal(mask, masks[row])
    assert sorted(order) == list(range(5))


def test_several_crops_of_a_clip_are_read_once(toy_corpus, monkeypatch):
    dataset = CropDataset(load_corpus(toy_corpus), replace(PLAN, crops_per_clip=3))
    rows = [divmod(number, 5) for number in range(36)]
    places = [dataset.locate(*row) for row in rows]
    clips = [clip for clip, _ in places]
    assert clips[::3] == clips[1::3] == clips[2::3] and sorted(clips[::3]) == list(range(12))
    assert len({start for _, start in places}) > 30
    reads = []
    batches = "music2vec_hf.corpus.batches.read_crop"
    monkeypatch.setattr(batches, lambda *part: reads.append(part[1:]) or read_crop(*part))
    crops = dict(dataset.__getitems__(rows[:3]))
    starts = sorted(start for _, start in places[:3])
    covered = np.zeros(40_000, int)
    for first, count in reads:
        covered[first : first + count] += 1
    wanted = {sample for start in starts for sample in range(start, start + 16_000)}
    assert covered.max() == 1 and set(np.flatnonzero(covered)) == wanted
    row = dataset.corpus[clips[0]]
    whole = PLAN.normalised(read_clip(row), row["clip_mean"], row["clip_std"])
    for address, (_, start) in zip(rows[:3], places[:3], strict=True):
        np.testing.assert_array_equal(crops[address], whole[start : start + 16_000])


def test_a_mixed_row_is_a_sum_with_its_partner_at_the_drawn_level(toy_corpus):
    plain = CropDataset(load_corpus(toy_corpus), PLAN)
    plan = replace(PLAN, mix_prob=1.0, mix_snr_db=(6.0, 6.0))
    mixed = CropDataset(plain.corpus, plan)
    partners = [plan.augmentation(3, row).partner for row in range(5)]
    assert all(partner not in (row, None) for row, partner in enumerate(partners))
    for row, partner in enumerate(partners):
        places = ((mixed, row), (plain, row), (plain, partner))
        ours, own, other = (dataset[(3, at)][1].astype(float) for dataset, at in places)
        (weight, other_weight), error, *_ = np.linalg.lstsq(np.stack([own, other], 1), ours)
        assert error == pytest.approx(0, abs=1e-5)
        ratio = (weight * own).std() / (other_weight * other).std()
        assert 20 * np.log10(ratio) == pytest.approx(6, abs=0.05)
        assert np.square(ours).mean() == pytest.approx(np.square(own).mean(), rel=1e-4)


def test_gain_comes_after_normalisation_and_changes_nothing_else(toy_corpus):
    plain = CropDataset(load_corpus(toy_corpus), PLAN)
    loud = CropDataset(plain.corpus, replace(PLAN, gain_db=12.0))
    gains = [20 * np.log10(loud[(step, 0)][1].std() / plain[(step, 0)][1].std()) for step in range(30)]
    assert -12 <= min(gains) < -6 and 6 < max(gains) <= 12
    ratios = loud[(1, 0)][1] / plain[(1, 0)][1]
    assert np.nanmax(ratios) == pytest.approx(np.nanmin(ratios), rel=1e-5)


def test_the_share_of_mixed_rows_is_mix_prob():
    plan = replace(PLAN, mix_prob=0.3)
    partners = [plan.augmentation(step, row).partner for step in range(400) for row in range(5)]
    assert np.mean([partner is not None for partner in partners]) == pytest.approx(0.3, abs=0.04)
    assert {partner for partner in partners[::5]} == {None, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="another row of the update, which has only one"):
        replace(PLAN, mix_prob=0.3, rows_per_update=1)


@pytest.mark.parametrize("masks_per_crop", [1, 3])
def test_equal_counts_hold_over_all_views_of_a_mask_group(masks_per_crop):
    counts = replace(PLAN, masks_per_crop=masks_per_crop).masks(0, list(range(5))).sum(axis=-1)
    assert len(set(counts[:3].flat)) == 1 and len(set(counts[3:].flat)) == 1


def test_too_short_clips_are_counted_and_all_too_short_is_an_error(toy_corpus):
    corpus = load_corpus(toy_corpus)
    with pytest.raises(ValueError, match="None of the corpus' 12 clips is as long as a crop \\(3 s\\)"):
        CropDataset(corpus, replace(PLAN, num_samples=48_000))
    assert CropDataset(corpus, PLAN).num_too_short == 0


def test_more_processes_than_rows_are_refused(dataset):
    with pytest.raises(ValueError, match="An update has 5 crops but 3 processes with 2 micro-steps"):
        training_batches(dataset, 0, 1, micro_steps=2, num_processes=3)
