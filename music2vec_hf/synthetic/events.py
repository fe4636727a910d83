"""Where the beats, chords and notes of the melody of a synthetic clip lie: exact, as the score has them."""

import math

from music2vec_hf.common.events import TONICS
from music2vec_hf.synthetic.score import Score

# Intervals above the root -> quality in the syntax of Harte et al. 2005, which `.lab` files and mir_eval use.
QUALITIES = {
    (0, 4, 7): "maj",
    (0, 3, 7): "min",
    (0, 3, 6): "dim",
    (0, 4, 7, 10): "7",
    (0, 4, 7, 11): "maj7",
    (0, 3, 7, 10): "min7",
    (0, 3, 6, 10): "hdim7",
}


def events_of(score: Score) -> dict[str, list]:
    """Beats, chords and melody of a clip, in seconds from its start, to the microsecond.

    Returns:
        `dict[str, list]`: `beats` and `downbeats`: times in [0, clip_seconds), downbeats are beats, too; `chords`:
        `[start, end, label]` without gaps from 0 to clip_seconds, labels such as `Db:min7`, neighbours differ;
        `melody`: `[start, end, MIDI note]` like chords, the note `None` where none is held.
    """
    spec, beat_seconds = score.spec, 60 / score.spec.bpm
    beats, downbeats, chords = [], [], []
    for beat in range(math.ceil((spec.clip_seconds + spec.start_seconds) / beat_seconds) + 1):
        time = round(beat * beat_seconds - spec.start_seconds, 6)
        if 0 <= time < spec.clip_seconds:
            beats.append(time)
            downbeats += [time] if beat % spec.style.bar_beats == 0 else []
    for number, chord in enumerate(score.chords):
        start, end = (
            round(place * spec.chord_beats * beat_seconds - spec.start_seconds, 6) for place in (number, number + 1)
        )
        start, end = max(0.0, start), min(end, spec.clip_seconds)
        label = f"{TONICS[chord.root]}:{QUALITIES[tuple(chord.intervals)]}"
        if start < end and chords and chords[-1][2] == label:
            chords[-1][1] = end
        elif start < end:
            chords.append([start, end, label])
    return {"beats": beats, "downbeats": downbeats, "chords": chords, "melody": _melody(score)}


def _melody(score: Score) -> list[list]:
    """As written, without what rings on; a note ends where the next one starts."""
    length, now = score.spec.clip_seconds, 0.0
    notes = sorted((note for note in score.notes if note.role == "melody"), key=lambda note: note.onset)
    segments: list[list] = []
    for note, following in zip(notes, [*(note.onset for note in notes), length][1:], strict=True):
        start = max(0.0, round(note.onset, 6))
        end = max(start, round(min(note.onset + note.seconds, following, length), 6))
        segments += [[now, start, None], [start, end, note.pitch]]
        now = end
    return [one for one in [*segments, [now, length, None]] if one[0] < one[1]]
