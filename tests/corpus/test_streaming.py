"""Streamed batches: the same for any number of processes and workers, from any step on."""

import logging
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from toy_plan import PLAN

from music2vec_hf.corpus.batches import StreamingCrops, UpdateSampler, streaming_batches
from music2vec_hf.corpus.loading import load_corpus, read_clip, stream_corpus
from music2vec_hf.corpus.prepare import prepare_corpus

# Thirteen clips, five rows a step: epochs end within steps. Six steps reach into the third epoch.
NUM_CLIPS, NUM_STEPS = 13, 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same thirteen noises and a short one as a corpus of ours in several shards, and as files of 44.1 kHz."""
    root = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(0)
    for index in range(NUM_CLIPS + 1):
        seconds = 0.5 if index == NUM_CLIPS else 1.5 + 0.1 * index
        for folder, rate, suffix in (("mono", 16_000, "flac"), ("foreign", 44_100, "wav" if index % 2 else "flac")):
            (root / folder).mkdir(exist_ok=True)
            samples = 0.02 * index + 0.1 * rng.standard_normal((round(seconds * rate), 1 if folder == "mono" else 2))
            soundfile.write(root / folder / f"{index:02d}.{suffix}", samples, rate)
    prepare_corpus(root / "mono", root / "corpus", min_seconds=0.2, shard_megabytes=0.2, progress=False)
    return root


@pytest.fixture(params=["corpus", "foreign"])
def stream(request, folders, monkeypatch):
    monkeypatch.setattr("music2vec_hf.corpus.loading.FILES_PER_SHARD", 4)
    stream = stream_corpus(folders / request.param)
    assert stream.num_shards > 2
    return stream


def items(crops, number):
    """`(epoch, index, name, length)` of the first items."""
    found = []
    for _, (epoch, index, clips) in crops._items(0, report=False):
        row, length = clips[0]
        found.append((epoch, index, row["audio"]["path"], length))
        if len(found) == number:
            return found


def crops_of(stream, plan=PLAN, **settings):
    return StreamingCrops(stream, plan, UpdateSampler(plan.rows_per_update, 0, NUM_STEPS, 1), **settings)


def batches(stream, first_step=0, plan=PLAN, **settings):
    return list(streaming_batches(stream, plan, first_step, NUM_STEPS, buffer_size=6, **settings))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == {"input_values", "mask_time_indices"}
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].equal(other[name]), name


@pytest.mark.parametrize("buffer_size", [1, 6, 512])
def test_every_clip_is_read_once_per_epoch_and_the_order_changes(stream, buffer_size):
    found = items(crops_of(stream, buffer_size=buffer_size), 4 * NUM_CLIPS)
    epochs = [[name for epoch, _, name, _ in found if epoch == number] for number in range(4)]
    for names in epochs:
        assert len(names) == len(set(names)) == NUM_CLIPS and set(names) == set(epochs[0])
    assert len({tuple(names) for names in epochs}) == 4
    assert [index for _, index, _, _ in found] == list(range(NUM_CLIPS)) * 4
    assert all(length >= 24_000 for *_, length in found)


def test_another_seed_is_another_order(stream):
    other = replace(PLAN, seed=2)
    ours, theirs = items(crops_of(stream), NUM_CLIPS), items(crops_of(stream, other), NUM_CLIPS)
    assert ours != theirs and sorted(name for *_, name, _ in ours) == sorted(name for *_, name, _ in theirs)


@pytest.mark.parametrize("first_step, num_workers", [(1, 2), (3, 0), (5, 2)])
def test_a_resumed_run_reads_what_it_would_have_read(stream, first_step, num_workers):
    whole = batches(stream)
    assert_equal(batches(stream, first_step, num_workers=num_workers), whole[first_step:])


def test_a_late_step_is_reached_without_reading_the_epochs_between(stream):
    late, epochs = 1_000, []
    sampler = UpdateSampler(PLAN.rows_per_update, late, late + 1, 1)
    crops = StreamingCrops(stream, PLAN, sampler)
    shuffled = crops._shuffled
    crops._shuffled = lambda epoch, *rest: epochs.append(epoch) or shuffled(epoch, *rest)
    (batch,) = crops
    first, last = late * 5 // NUM_CLIPS, (late * 5 + 4) // NUM_CLIPS
    assert epochs == [0, *range(first, last + 1)]
    number, (epoch, index, _) = next(crops._items(late * 5, report=False))
    assert (number, epoch, index) == (late * 5, *divmod(late * 5, NUM_CLIPS))
    np.testing.assert_array_equal(batch["mask_time_indices"], PLAN.masks(late, list(range(5))))


SEVERAL = replace(PLAN, crops_per_clip=3, gain_db=3.0)


@pytest.mark.parametrize(
    "plan, num_processes, micro_steps, num_workers",
    [(PLAN, 1, 2, 1), (PLAN, 2, 2, 0), (PLAN, 2, 1, 2), (SEVERAL, 1, 2, 2), (SEVERAL, 2, 2, 0), (SEVERAL, 5, 1, 0)],
)
def test_any_cut_of_an_update_has_the_same_rows_and_masks(stream, plan, num_processes, micro_steps, num_workers):
    whole, order, parts = batches(stream, plan=plan)[3], [], []
    for process in range(num_processes):
        place = (2, 4, micro_steps, process, num_processes)
        loader = streaming_batches(stream, plan, *place, num_workers=num_workers, buffer_size=6)
        for addresses, ours in zip(UpdateSampler(5, *place), loader, strict=True):
            if addresses[0][0] == 3:
                order += [row for _, row in addresses]
                parts.append(ours)
    assert sorted(order) == list(range(5))
    for name in whole:
        assert torch.cat([part[name] for part in parts]).equal(whole[name][order])


def test_several_crops_of_a_clip_open_it_once_and_are_its_slices_from_everywhere(stream, monkeypatch):
    plan, opened = replace(PLAN, crops_per_clip=5), []
    openly = StreamingCrops._open
    monkeypatch.setattr(StreamingCrops, "_open", lambda self, clip: opened.append(clip[0]) or openly(self, clip))
    loader = streaming_batches(stream, plan, 0, NUM_CLIPS, buffer_size=6)
    found = torch.stack([batch["input_values"] for batch in loader])
    assert len(opened) == NUM_CLIPS and len({row["audio"]["path"] for row in opened}) == NUM_CLIPS
    starts = []
    for row, crops in zip(opened, found, strict=True):
        whole = read_clip(row).astype(np.float64)
        whole = ((whole - whole.mean()) / np.sqrt(whole.var() + 1e-5)).astype(np.float32)
        for crop in crops.numpy():
            places = np.flatnonzero(np.abs(whole[: len(whole) - 15_999] - crop[0]) < 1e-4)
            (start,) = [place for place in places if np.allclose(whole[place : place + 16_000], crop, atol=1e-4)]
            starts.append(start / (len(whole) - 16_000))
    assert min(starts) < 0.2 and max(starts) > 0.8


def test_a_stream_cannot_mix_rows(stream):
    with pytest.raises(ValueError, match=r"`mix_prob` is 0.5, but a stream does not keep"):
        crops_of(stream, replace(PLAN, mix_prob=0.5))


def test_our_own_clips_are_never_decoded_whole(folders, monkeypatch):
    monkeypatch.setattr("music2vec_hf.corpus.batches.read_clip", None)
    assert len(batches(stream_corpus(folders / "corpus"))) == NUM_STEPS


def test_rows_of_others_are_not_decoded(stream, monkeypatch):
    decoded = []
    opened = StreamingCrops._open
    monkeypatch.setattr(StreamingCrops, "_open", lambda self, clip: decoded.append(1) or opened(self, clip))
    batches(stream, 3, process_index=1, num_processes=2)
    assert len(decoded) == 3 * 2


def test_what_is_left_out_is_named_and_counted_once(folders, tmp_path, caplog):
    folder = shutil.copytree(folders / "foreign", tmp_path / "music")
    (folder / "03a.flac").write_text("a letter")
    with caplog.at_level(logging.WARNING, "music2vec_hf"):
        ours = batches(stream_corpus(folder))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "03a.flac: no decoder reads it" in lines[0] and lines[0].endswith("It is left out.")
    assert lines[1] == "An epoch of the stream has 13 clips; left out: 1 undecodable, 1 shorter than a crop."
    caplog.clear()
    second = batches(stream_corpus(folder), process_index=1, num_processes=2)
    assert not caplog.records
    assert_equal([{name: value[3:] for name, value in batch.items()} for batch in ours], second)


def test_another_clip_stands_in_for_one_that_turns_out_damaged(folders, tmp_path, caplog):
    folder = shutil.copytree(folders / "foreign", tmp_path / "music")
    broken = folder / "06.flac"
    broken.write_bytes(broken.read_bytes()[:30_000])  # the header states 2.1 s, far less can be decoded
    with caplog.at_level(logging.WARNING, "music2vec_hf"), pytest.warns(UserWarning, match="06.flac: only 0"):
        whole = batches(stream_corpus(folder))
        assert "06.flac: only 0" in caplog.text and "Another clip stands in for it." in caplog.text
        for first_step in range(NUM_STEPS):
            assert_equal(batches(stream_corpus(folder), first_step), whole[first_step:])
    assert all(torch.isfinite(batch["input_values"]).all() for batch in whole)
    # It may come first in an epoch as well.
    seeds = (crops_of(stream_corpus(folder), replace(PLAN, seed=seed)) for seed in range(40))
    crops = next(crops for crops in seeds if items(crops, 1)[0][2].endswith("06.flac"))
    with pytest.warns(UserWarning):
        next(iter(crops))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:30_000])
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="clips beside each other cannot be decoded, the last"),
    ):
        batches(stream_corpus(folder))


def test_a_stream_of_short_clips_and_impossible_settings_are_refused(stream):
    plan = replace(PLAN, num_samples=160_000)
    with pytest.raises(ValueError, match=r"as long as a crop \(10 s; left out: 14 shorter than a crop\)"):
        next(iter(crops_of(stream, plan)))
    with pytest.raises(ValueError, match="An update has 5 crops but 3 processes with 2 micro-steps"):
        streaming_batches(stream, PLAN, 0, 1, micro_steps=2, num_processes=3)
    with pytest.raises(ValueError, match="`buffer_size` is 0"):
        streaming_batches(stream, PLAN, 0, 1, buffer_size=0)


def test_the_stream_holds_the_clips_of_the_corpus(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    corpus = load_corpus(folders / "corpus")
    streamed = list(stream_corpus(folders / "corpus"))
    assert [row["duration"] for row in streamed] == corpus["duration"][:]
    assert [row["audio"] for row in streamed] == corpus["audio"][:]
