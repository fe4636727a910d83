"""Crops, masks and micro-batches are functions of (seed, epoch or step, index) alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_plan import PLAN

from music2vec_hf.data.batches import CropDataset, UpdateSampler, training_batches
from music2vec_hf.data.corpus import load_corpus, read_clip


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


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(dataset, num_workers):
    alone = list(training_batches(dataset, 0, 3))
    for ours, theirs in zip(training_batches(dataset, 0, 3, num_workers=num_workers), alone, strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=0, rtol=0)


def test_a_resumed_run_reads_what_it_would_have_read(dataset):
    whole, rest = list(training_batches(dataset, 0, 4)), list(training_batches(dataset, 2, 4))
    for ours, theirs in zip(rest, whole[2:], strict=True):
        torch.testing.assert_close(ours["input_values"], theirs["input_values"], atol=0, rtol=0)
        assert ours["mask_time_indices"].equal(theirs["mask_time_indices"])


@pytest.mark.parametrize("num_processes, micro_steps", [(1, 1), (1, 2), (2, 1), (2, 2), (5, 1)])
def test_any_cut_of_an_update_has_the_same_rows_and_masks(dataset, num_processes, micro_steps):
    whole = next(iter(training_batches(dataset, 2, 3)))
    order, parts = [], []
    for process in range(num_processes):
        sampler = UpdateSampler(5, 2, 3, micro_steps, process, num_processes)
        order += [row for batch in sampler for _, row in batch]
        parts += list(training_batches(dataset, 2, 3, micro_steps, process, num_processes))
    assert sorted(order) == list(range(5))
    for name in whole:
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, whole[name][order], atol=0, rtol=0)


def test_equal_counts_hold_within_a_mask_group():
    counts = PLAN.masks(0, list(range(5))).sum(axis=1)
    assert len(set(counts[:3])) == 1 and len(set(counts[3:])) == 1


def test_too_short_clips_are_counted_and_all_too_short_is_an_error(toy_corpus):
    corpus = load_corpus(toy_corpus)
    with pytest.raises(ValueError, match="None of the corpus' 12 clips is as long as a crop \\(3 s\\)"):
        CropDataset(corpus, replace(PLAN, num_samples=48_000))
    assert CropDataset(corpus, PLAN).num_too_short == 0


def test_more_processes_than_rows_are_refused(dataset):
    with pytest.raises(ValueError, match="An update has 5 crops but 3 processes with 2 micro-steps"):
        training_batches(dataset, 0, 1, micro_steps=2, num_processes=3)
