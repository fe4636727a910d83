"""A clip that cannot be read: another stands in for it, always the same one; it is counted, named, and not fatal."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, Features
from toy_plan import PLAN

from music2vec_hf.audio.containers import CLIP
from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.crops import MIN_FAILED_CLIPS, UnreadableCorpus, read_crops
from music2vec_hf.corpus.loading import load_corpus, read_clip
from music2vec_hf.corpus.prepare import prepare_corpus

NUM_CLIPS, NUM_STEPS = 12, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("standins")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    for index in range(NUM_CLIPS):
        soundfile.write(root / "audio" / f"{index:02d}.wav", 0.1 * rng.standard_normal(40_000), 16_000)
    prepare_corpus(root / "audio", root / "corpus", progress=False)
    return load_corpus(root / "corpus")


def features_of(corpus):
    """Of a copy; `datasets.Audio` would want torchcodec to make one."""
    return Features({**corpus.features, "audio": CLIP})


def spoilt(corpus, clips, keep=300):
    """The corpus with the encoded audio of some clips cut off after `keep` bytes."""
    rows = corpus.to_list()
    for clip in clips:
        rows[clip]["audio"]["bytes"] = rows[clip]["audio"]["bytes"][:keep]
    return Dataset.from_list(rows, features=features_of(corpus))


def epoch_of(dataset):
    """The clips of the first epoch in their order."""
    return [dataset.locate(*divmod(number, PLAN.rows_per_update))[0] for number in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def broken(corpus):
    """Two clips that follow each other in the first epoch: one is damaged, one is shorter than its `duration`."""
    order = epoch_of(CropDataset(corpus, PLAN))
    rows = spoilt(corpus, [order[3]]).to_list()
    rows[order[4]]["duration"] = 30.0
    return Dataset.from_list(rows, features=features_of(corpus)), order


def test_the_next_clips_of_the_epoch_stand_in(corpus, broken):
    damaged, order = broken
    whole, ours = CropDataset(corpus, PLAN), CropDataset(damaged, PLAN)
    for number in range(NUM_CLIPS):
        address = divmod(number, PLAN.rows_per_update)
        crop = ours[address][1]
        if number not in (3, 4):
            np.testing.assert_array_equal(crop, whole[address][1])
            continue
        row = corpus[order[5]]
        clip = PLAN.normalised(read_clip(row), row["clip_mean"], row["clip_std"])
        assert any(np.array_equal(crop, clip[start:][:16_000]) for start in np.flatnonzero(clip[:24_001] == crop[0]))
    assert ours.failed.count == 2


def test_a_failure_is_named_once_and_counted(broken, caplog):
    damaged, order = broken
    dataset = CropDataset(damaged, PLAN)
    with caplog.at_level(logging.WARNING, "music2vec_hf"):
        list(training_batches(dataset, 0, NUM_STEPS))
    lines = [record.getMessage() for record in caplog.records]
    names = [damaged[clip]["audio"]["path"] for clip in order[3:5]]
    assert [line.split(": ")[0] for line in lines] == names
    assert "damaged" in lines[0] and "does not lie inside a clip of 40000 samples" in lines[1]
    assert lines[1].endswith("Another clip stands in for it; 2 of 12 clips failed so far.")


@pytest.mark.parametrize("crops_per_clip", [1, 3])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_stand_ins_and_their_count_do_not_depend_on_workers(broken, num_workers, crops_per_clip):
    plan = replace(PLAN, crops_per_clip=crops_per_clip)
    alone, dataset = (CropDataset(broken[0], plan) for _ in range(2))
    expected = list(training_batches(alone, 0, 12))
    found = list(training_batches(dataset, 0, 12, 2, num_workers=num_workers))
    for whole, first, second in zip(expected, found[::2], found[1::2], strict=True):
        assert torch.cat([first["input_values"], second["input_values"]]).equal(whole["input_values"])
    assert dataset.failed.count == alone.failed.count == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_failures_are_one_sentence(corpus, num_workers):
    clips = range(MIN_FAILED_CLIPS + 1)
    enough = CropDataset(spoilt(corpus, clips[1:]), PLAN)
    list(training_batches(enough, 0, NUM_STEPS, num_workers=num_workers))
    assert enough.failed.count == MIN_FAILED_CLIPS
    damaged = spoilt(corpus, clips)
    with pytest.raises(UnreadableCorpus) as caught:
        list(training_batches(CropDataset(damaged, PLAN), 0, NUM_STEPS, num_workers=num_workers))
    text = str(caught.value)
    assert text.startswith("11 of 12 clips cannot be read, more than `max_failed_share` 0.01 allows; the last is ")
    assert text.endswith("or raise `max_failed_share`.") and "\n" not in text
    list(training_batches(CropDataset(damaged, PLAN, max_failed_share=1.0), 0, NUM_STEPS, num_workers=num_workers))


def test_a_corpus_without_a_readable_clip_is_refused(corpus):
    dataset = CropDataset(spoilt(corpus, range(NUM_CLIPS)), PLAN, max_failed_share=1.0)
    with pytest.raises(UnreadableCorpus, match=r"^12 clips beside each other cannot be decoded, the last says: "):
        dataset[(0, 0)]


@pytest.mark.parametrize("keep", [0, 3, 30, 60, 200, 5_000, 20_000, 40_000])
def test_wherever_a_clip_is_cut_off_it_is_read_or_replaced(corpus, keep):
    dataset = CropDataset(spoilt(corpus, [7], keep), PLAN)
    for batch in training_batches(dataset, 0, NUM_STEPS):
        assert torch.isfinite(batch["input_values"]).all()
    assert dataset.failed.count == 1


def test_flipped_bytes_never_end_training(corpus):
    rng = np.random.default_rng(1)
    rows = corpus.to_list()
    for row in rows:
        data = bytearray(row["audio"]["bytes"])
        for place in rng.integers(len(data), size=3):
            data[place] ^= int(rng.integers(1, 256))
        row["audio"]["bytes"] = bytes(data)
    dataset = CropDataset(Dataset.from_list(rows, features=features_of(corpus)), PLAN, max_failed_share=1.0)
    try:
        for batch in training_batches(dataset, 0, 10):
            assert torch.isfinite(batch["input_values"]).all()
    except UnreadableCorpus:
        assert dataset.failed.count == NUM_CLIPS


def test_a_crop_does_not_depend_on_what_else_is_asked_for(corpus):
    """The second crop of three can be read in the first clip, the others cannot."""
    plan = replace(PLAN, crops_per_clip=3)
    dataset = CropDataset(corpus, plan)
    starts = plan.starts(np.random.default_rng(5), 400_000)

    def read(clip):
        def part(first, count):
            if clip == 0 and not first <= starts[1] < first + count:
                raise ValueError("no.")
            return np.full(count, clip + first / 1e6, np.float32)

        return replace(dataset._open(clip), length=400_000, mean=0.0, std=1.0, read=part)

    def crops(places):
        return read_crops(plan, np.random.default_rng(5), places, range(3), read, lambda *_: None)

    assert max(np.diff(sorted(starts))) > 16_000
    together = crops([0, 1, 2])
    assert together[1][0] < 0.9 < together[0][0]
    for place in range(3):
        np.testing.assert_array_equal(crops([place])[place], together[place])
