"""From logits of frames to beats, chords and melody."""

import numpy as np
import pytest

from music2vec_hf.model.events_music2vec import frame_events

TIMES = np.arange(200) * 0.02 + 0.0125


def bumps(places, height=3.0):
    values = np.full(len(TIMES), -6.0)
    for place in places:
        values[place - 1 : place + 2] = height - 1, height, height - 1
    return values


def test_beats_are_peaks_above_their_threshold_and_apart():
    beat, down = bumps([10, 40, 44, 80], 3.0), bumps([10, 80], 2.0)
    beat[44] = 4.0  # nearer than 150 ms to the one at 40, and higher
    down[79:82] = -1.0  # probability 0.27
    events = frame_events(np.stack([beat, down], 1), TIMES, "beats", [0.5, 0.5])
    expected = [(TIMES[frame], TIMES[frame], label) for frame, label in ((10, 0), (10, 1), (44, 0), (80, 0))]
    np.testing.assert_allclose(events, expected)
    lower = frame_events(np.stack([beat, down], 1), TIMES, "beats", [0.5, 0.2])
    assert [row[0] for row in lower if row[2] == 1] == [TIMES[10], TIMES[79]]  # of equal ones the first


@pytest.mark.parametrize("kind", ["chords", "melody"])
def test_classes_are_segments_from_the_start_to_the_end_without_what_is_too_short(kind):
    classes = np.repeat([3, 7, 3, 24], [60, 4, 36, 100])
    logits = np.eye(25)[classes] * 5
    events = frame_events(logits, TIMES, kind, [0.0])
    assert events[:, 2].tolist() == [3, 7, 3, 24] and events[0, 0] == 0
    np.testing.assert_allclose(events[1:, 0], events[:-1, 1])
    np.testing.assert_allclose(events[-1, 1], TIMES[-1] + 0.01)
    np.testing.assert_allclose(events[1, 0], (TIMES[59] + TIMES[60]) / 2)
    smooth = frame_events(logits, TIMES, kind, [0.4])
    assert smooth[:, 2].tolist() == [3, 24] and smooth[0, 1] == pytest.approx((TIMES[99] + TIMES[100]) / 2, abs=0.021)


@pytest.mark.parametrize("kind, settings", [("beats", [0.5, 0.5]), ("chords", [1.0]), ("melody", [1.0])])
def test_a_single_frame_is_a_track_too(kind, settings):
    events = frame_events(np.ones((1, 2)), TIMES[:1], kind, settings)
    assert len(events) and np.isfinite(events).all()
