"""Rows of features: what a protocol makes of the windows of a track."""

from dataclasses import replace

import numpy as np
import pytest
from toy_tasks import splits_of

from music2vec_hf.features.store import FeatureRows
from music2vec_hf.model.feature_extraction_music2vec import cut_windows
from music2vec_hf.probing.evaluation import row_seconds, select_rows
from music2vec_hf.probing.tasks.declarations import SPLITS, TaskData
from music2vec_hf.probing.tasks.loading import TASKS

FRAMES_PER_SECOND = 50


def cut(track, window):
    return [track[start:stop] for start, stop in cut_windows(len(track), window, shortest=1)]


def windows_of(lengths, window=30.0, width=4):
    """Windows of tracks of these lengths in seconds: the frames themselves, and their means per window."""
    rng = np.random.default_rng(0)
    frames, means, counts, seconds, sizes = [], [], [], [], []
    for length in lengths:
        track = rng.standard_normal((round(length * FRAMES_PER_SECOND), width)).astype(np.float32)
        pieces = cut(track, round(window * FRAMES_PER_SECOND))
        frames.append(track)
        means += [piece.mean(axis=0) for piece in pieces]
        counts += [len(piece) for piece in pieces]
        seconds += [len(piece) / FRAMES_PER_SECOND for piece in pieces]
        sizes.append(len(pieces))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return frames, FeatureRows({"0": np.stack(means)}, offsets, np.array(counts), np.array(seconds))


def task_of(name, lengths, num_clips=()):
    """A task with one track of each length, the first in train, the second in validation, the rest in test."""
    sizes = {"train": 1, "validation": 1, "test": len(lengths) - 2}
    splits = splits_of(sizes, np.zeros(len(lengths), np.int64), num_clips)
    return TaskData(replace(TASKS[name], labels=("a", "b")), splits)


def test_a_track_is_the_mean_of_all_its_frames():
    frames, windows = windows_of([45.0, 10.0, 95.5])
    track = windows.merged(None)
    assert track.offsets.tolist() == [0, 1, 2, 3] and track.seconds.tolist() == [45.0, 10.0, 95.5]
    for number, each in enumerate(frames):
        np.testing.assert_allclose(track.features["0"][number], each.mean(axis=0), atol=1e-6)
    assert track.num_frames.tolist() == [len(each) for each in frames]


def test_a_clip_is_the_mean_of_its_frames():
    frames, windows = windows_of([65.0, 20.0], window=10.0)
    clips = windows.merged(3)
    assert clips.rows_per_track.tolist() == [3, 1] and clips.seconds.tolist() == [30.0, 30.0, 5.0, 20.0]
    for row, each in enumerate([*cut(frames[0], 1500), frames[1]]):
        np.testing.assert_allclose(clips.features["0"][row], each.mean(axis=0), atol=1e-6)


def test_tracks_are_taken_and_joined_with_all_their_rows():
    _, windows = windows_of([45.0, 10.0, 95.5])
    taken = windows.take([2, 0, 2])
    assert taken.rows_per_track.tolist() == [4, 2, 4] and taken.tracks.tolist() == [0] * 4 + [1] * 2 + [2] * 4
    np.testing.assert_array_equal(taken.features["0"], windows.features["0"][[3, 4, 5, 6, 0, 1, 3, 4, 5, 6]])
    joined = FeatureRows.joined([windows.take([0]), windows.take([1, 2])])
    for name in ("offsets", "num_frames", "seconds"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(windows, name))
    np.testing.assert_array_equal(joined.features["0"], windows.features["0"])


def test_45_seconds_are_two_rows_of_equal_weight_under_marble_and_one_under_jukemir():
    frames, windows = windows_of([45.0] * 4)
    data = task_of("emomusic", [45.0] * 4)
    seconds = row_seconds(data.task, "marble", 30.0)
    marble = select_rows(windows.merged(1), data, seconds)
    assert seconds == 30.0 and marble.rows.rows_per_track.tolist() == [2] * 4
    assert marble.rows.seconds.tolist() == [30.0, 15.0] * 4 and marble.dropped == dict.fromkeys(SPLITS, 0)
    assert marble.split(data, "test").rows_per_track.tolist() == [2, 2]
    for protocol in ("jukemir", "quick"):
        assert row_seconds(data.task, protocol, 30.0) is None
    jukemir = select_rows(windows.merged(None), data, None)
    np.testing.assert_allclose(jukemir.rows.features["0"][0], frames[0].mean(axis=0), atol=1e-6)
    equal = marble.rows.features["0"][:2].mean(axis=0)
    assert np.abs(equal - jukemir.rows.features["0"][0]).max() > 1e-3


def test_marble_drops_a_rest_below_one_second_and_counts_it():
    lengths = [60.98, 61.0, 30.02, 0.5, 29.0]
    _, windows = windows_of(lengths)
    selected = select_rows(windows, task_of("gtzan", lengths), 30.0)
    # A track that is shorter than a second as a whole stays.
    assert selected.rows.rows_per_track.tolist() == [2, 3, 1, 1, 1]
    assert selected.dropped == {"train": 1, "validation": 0, "test": 1} and selected.affected == {}
    assert selected.rows.seconds.tolist() == [30, 30, 30, 30, 1, 30, 0.5, 29]


def test_a_song_is_its_whole_clips_under_every_protocol():
    lengths, stated = [120.06, 89.9, 20.0, 119.92], (4, 2, 1, 4)
    data = task_of("giantsteps", lengths, stated)
    for protocol in ("quick", "jukemir", "marble"):
        assert row_seconds(data.task, protocol, 30.0) == row_seconds(data.task, protocol, 10.0) == 30.0
    for window in (30.0, 10.0):
        frames, windows = windows_of(lengths, window)
        selected = select_rows(windows.merged(round(30 / window)), data, 30.0)
        # A clip that decodes a little short of 30 s is a whole clip; what remains after whole clips is dropped.
        assert selected.rows.rows_per_track.tolist() == list(stated) and selected.affected == {}
        assert selected.dropped == {"train": 1, "validation": 1, "test": 0}
        np.testing.assert_allclose(selected.rows.features["0"][3], frames[0][4500:6000].mean(axis=0), atol=1e-6)
        assert selected.rows.seconds.min() == 20.0  # the song that is shorter than a clip


def test_songs_that_break_off_are_named():
    stated = (4, 4, 4, *[2] * 7)
    _, windows = windows_of([120.0, 95.0, 80.0, 60.0, *[45.0] * 6])
    selected = select_rows(windows, task_of("giantsteps", [0] * 10, stated), 30.0)
    assert selected.rows.rows_per_track.tolist() == [4, 4, 3, *[2] * 7]
    ((sentence, songs),) = selected.affected.items()
    assert sentence.startswith("8 songs decode to fewer whole clips than their headers state: track-1, track-2, ")
    assert sentence.endswith(" and 3 more.") and songs == tuple(f"track-{number}" for number in (1, 2, *range(4, 10)))


@pytest.mark.parametrize("window", [25.0, 60.0, 29.9])
def test_windows_that_do_not_divide_the_clip_are_refused(window):
    with pytest.raises(
        ValueError, match=f"clips of 30 s, which windows of {window:g} s do not divide; use windows of"
    ):
        row_seconds(TASKS["giantsteps"], "quick", window)
    assert row_seconds(TASKS["gtzan"], "quick", window) is None
