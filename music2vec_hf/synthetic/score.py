"""Scores of the synthetic corpus: a clip specification is drawn, then turned into notes and drum hits.

Pitches are MIDI numbers, times are seconds from the start of the clip (notes that began before the clip have negative
onsets), velocities lie in [0, 1].
"""

import math
import re
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from music2vec_hf.common.events import TONICS


def _read(name: str) -> dict:
    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _rows(entries: dict[str, dict], defaults: dict) -> dict[str, SimpleNamespace]:
    return {name: SimpleNamespace(**{**defaults, **values}) for name, values in entries.items()}


_INSTRUMENTS, _STYLES = _read("instruments.yaml"), _read("styles.yaml")
POOLS: dict[str, list[str]] = _INSTRUMENTS["pools"]
TIMBRES = _rows(_INSTRUMENTS["timbres"], _INSTRUMENTS["timbre_defaults"])
DRUM_KITS = {kit: _rows(sounds, _INSTRUMENTS["drum_defaults"]) for kit, sounds in _INSTRUMENTS["kits"].items()}
STYLES = _rows(_STYLES["genres"], _STYLES["defaults"])
GENRES = tuple(STYLES)
HARMONY = _read("progressions.yaml")  # chords, scales, blues_scales, tonic_weights, progressions


# ---- scores ----

KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
CONTROLS = ("tempo", "dynamics", "articulation", "density", "brightness")


@dataclass(frozen=True)
class Chord:
    """A root (pitch class) and the intervals above it in semitones."""

    root: int
    intervals: list[int]

    @property
    def pitch_classes(self) -> list[int]:
        """The chord's notes as pitch classes, 0 for C."""
        return [(self.root + interval) % 12 for interval in self.intervals]


@dataclass(frozen=True)
class ClipSpec:
    """Everything that is decided before the first note. `controls` holds the five CONTROLS, each in [0, 1]."""

    style: SimpleNamespace  # row of the table of genres
    tonic: int  # pitch class
    mode: str  # "major" or "minor"
    clip_seconds: float
    controls: dict[str, float]
    bpm: float
    swing: float
    register_shift: int  # semitones, -6..6, independent of the key
    instruments: dict[str, str]  # role -> instrument
    kit: str | None
    family: str
    chord_beats: float
    start_seconds: float  # where in the first bar the clip starts


Note = namedtuple("Note", "onset seconds pitch velocity role")
DrumHit = namedtuple("DrumHit", "onset sound velocity")


@dataclass(frozen=True)
class Score:
    """A clip's specification with everything that is played in it.

    `chords` follow each other from the first bar line on, `spec.chord_beats` each.
    """

    spec: ClipSpec
    notes: list[Note]
    hits: list[DrumHit]
    chords: list[Chord] = field(default_factory=list)


def draw_spec(genre: str, key: str, clip_seconds: float, rng: np.random.Generator) -> ClipSpec:
    """Draw tempo, instruments and the other properties of a clip whose genre and key are given."""
    style = STYLES[genre]
    # One latent energy and five controls that follow it half-way: correlated as in real music, yet not one variable.
    energy = rng.random()
    controls = {}
    for name in CONTROLS:
        weight = rng.uniform(0.4, 0.55)
        controls[name] = float(weight * energy + (1 - weight) * rng.random())
    slowest, fastest = style.tempo
    # The controls crowd around 0.5; stretch them so that the whole range of tempos is used.
    bpm = slowest + (fastest - slowest) * float(np.clip(0.5 + 1.4 * (controls["tempo"] - 0.5), 0, 1))

    instruments = {"chords": _draw_instrument(POOLS["chords"], style, rng)}
    for role, chance in (("bass", 0.85), ("melody", 0.80), ("pad", 0.25)):
        instrument, sounds = _draw_instrument(POOLS[role], style, rng), rng.random() < chance
        if sounds:
            instruments[role] = instrument
    tonic, mode = key.split()
    kit = _draw(list(DRUM_KITS), rng)
    return ClipSpec(
        style=style,
        tonic=TONICS.index(tonic),
        mode=mode,
        clip_seconds=clip_seconds,
        controls=controls,
        bpm=bpm,
        swing=float(rng.uniform(*style.swing)),
        register_shift=int(rng.integers(-6, 7)),
        instruments=instruments,
        kit=kit if rng.random() < 0.7 else None,
        family=_draw(style.families, rng),
        chord_beats=_draw(style.chord_beats, rng),
        start_seconds=float(rng.uniform(0, style.bar_beats * 60 / bpm)) if rng.random() < 0.5 else 0.0,
    )


def parse_chord(symbol: str, tonic: int = 0) -> Chord:
    """Read a chord symbol such as "Bm7b5" or "Eb", written in C, and transpose it to a tonic (pitch class)."""
    root, quality = re.fullmatch(r"([A-G]b?)(.*)", symbol).groups()
    return Chord((TONICS.index(root) + tonic) % 12, HARMONY["chords"][quality])


def _draw(choices: list, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]


def _draw_instrument(pool: list[str], style: SimpleNamespace, rng: np.random.Generator) -> str:
    weights = np.array([2.0 if instrument in style.typical else 1.0 for instrument in pool])
    return pool[rng.choice(len(pool), p=weights / weights.sum())]


def _nearest(pitch_class: int, centre: int) -> int:
    """The pitch of class `pitch_class` in the octave [centre - 6, centre + 5]."""
    return centre - 6 + (pitch_class - (centre - 6)) % 12


class Composer:
    """Writes one score. Parts think in beats from the first bar line; `_seconds` turns beats into clip time."""

    def __init__(self, spec: ClipSpec, rng: np.random.Generator):
        self.spec, self.style, self.rng = spec, spec.style, rng
        beats = (spec.clip_seconds + spec.start_seconds) * spec.bpm / 60
        self.num_bars = math.ceil(beats / self.style.bar_beats)
        # A staccato note lasts about a third of its written length.
        self.hold = 1.0 - 0.65 * spec.controls["articulation"]
        self.notes: list[Note] = []
        self.hits: list[DrumHit] = []
        self.chords = self._progression()

    def score(self) -> Score:
        """Every note and drum hit that sounds between 0 and `spec.clip_seconds`."""
        for role in self.spec.instruments:
            getattr(self, f"_{role}")()
        if self.spec.kit is not None:
            self._drums()
        end = self.spec.clip_seconds
        notes = [note for note in self.notes if note.onset < end - 0.02 and note.onset + note.seconds > 0.02]
        hits = [hit for hit in self.hits if -0.02 < hit.onset < end - 0.02]
        return Score(self.spec, notes, hits, self.chords)

    def _seconds(self, beat: float) -> float:
        whole, part = divmod(beat, 1.0)
        swing = self.spec.swing
        part = part * 2 * swing if part < 0.5 else swing + (part - 0.5) * 2 * (1 - swing)
        return (whole + part) * 60 / self.spec.bpm - self.spec.start_seconds

    def _velocity(self, accent: float) -> float:
        level = (0.35 + 0.5 * self.spec.controls["dynamics"]) * accent
        return float(np.clip(level * (1 + 0.12 * self.rng.standard_normal()), 0.1, 1.0))

    def _add(self, role: str, beat: float, beats: float, pitch: int, accent: float = 1.0, jitter: float = 0.008):
        onset, end = self._seconds(beat), self._seconds(beat + beats)
        shift = float(np.clip(self.rng.normal(0, jitter), -0.025, 0.025))
        self.notes.append(Note(onset + shift, max(0.06, end - onset), int(pitch), self._velocity(accent), role))

    def _pick(self, variants: list):
        """A variant of a pattern: denser clips take later (denser) ones."""
        place = self.spec.controls["density"] + 0.25 * self.rng.standard_normal()
        return variants[int(np.clip(place, 0, 0.999) * len(variants))]

    def _onsets(self, pattern: str):
        """Yield (beat, beats to the next onset of the pattern, accent) over the whole clip."""
        bars, bar_beats = pattern.split("|"), self.style.bar_beats
        onsets = []
        for bar in range(self.num_bars):
            steps = bars[bar % len(bars)]
            step_beats = bar_beats / len(steps)
            for step, mark in enumerate(steps):
                if mark != ".":
                    accent = 1.15 if mark == "X" else 1.0 if (step * step_beats) % 1 < 1e-6 else 0.88
                    onsets.append((bar * bar_beats + step * step_beats, accent))
        ends = [beat for beat, _ in onsets[1:]] + [float(self.num_bars * bar_beats)]
        for (beat, accent), end in zip(onsets, ends, strict=True):
            yield beat, end - beat, accent

    def _progression(self) -> list[Chord]:
        """Chain progressions of the clip's family until the clip is full; one chord per `chord_beats`."""
        spec, rng = self.spec, self.rng
        templates = HARMONY["progressions"][spec.family][spec.mode]
        on_tonic = [template for template in templates if template.startswith("C")]
        elsewhere = [template for template in templates if not template.startswith("C")] or templates
        needed = math.ceil((self.num_bars + 1) * self.style.bar_beats / spec.chord_beats) + 1
        # Loops repeat one template; the other families go on with another one.
        looping = spec.family in ("rock", "loop")
        symbols: list[str] = []
        while len(symbols) < needed:
            template = _draw(on_tonic if rng.random() < 0.6 else elsewhere, rng).split()
            if not symbols and rng.random() < 0.25:
                turn = int(rng.integers(len(template)))
                template = template[turn:] + template[:turn]
            symbols += template * (math.ceil(needed / len(template)) if looping else 1)
        return [parse_chord(symbol, spec.tonic) for symbol in symbols[:needed]]

    def _chord_at(self, beat: float) -> Chord:
        return self.chords[min(int((beat + 1e-6) // self.spec.chord_beats), len(self.chords) - 1)]

    def _voicing(self, chord: Chord, centre: int) -> list[int]:
        """The close position around `centre`: pitch height then says nothing about the key."""
        return sorted(_nearest(pitch_class, centre) for pitch_class in chord.pitch_classes)

    def _scale_at(self, chord: Chord) -> set[int]:
        """Pitch classes a melody may use over `chord`: those of the key, bent to the notes of the chord."""
        scales = HARMONY["blues_scales" if self.spec.family == "blues" else "scales"]
        allowed = {(degree + self.spec.tonic) % 12 for degree in scales[self.spec.mode]}
        for pitch_class in chord.pitch_classes:
            if pitch_class not in allowed:
                neighbours = {(pitch_class + 1) % 12, (pitch_class - 1) % 12} - set(chord.pitch_classes)
                allowed = (allowed - neighbours) | {pitch_class}
        return allowed

    def _chords(self):
        style, centre = self.style, 60 + self.spec.register_shift
        pattern = self._pick(style.chords)
        order = self.rng.permutation(8) % 4 if self.rng.random() < 0.5 else np.array([0, 1, 2, 3, 2, 1, 2, 1])
        for index, (beat, beats, accent) in enumerate(self._onsets(pattern)):
            voices = self._voicing(self._chord_at(beat), centre)
            if style.broken_chords:
                voices = voices if len(voices) > 3 else [*voices, voices[0] + 12]
                self._add("chords", beat, beats * max(self.hold, 0.4), voices[order[index % 8]], accent)
                continue
            for pitch in voices:
                held = min(beats, self.spec.chord_beats) * style.chords_legato * self.hold
                self._add("chords", beat, held, pitch, accent, jitter=0.004)

    def _pad(self):
        beats = self.spec.chord_beats
        for index in range(math.ceil(self.num_bars * self.style.bar_beats / beats)):
            for pitch in self._voicing(self._chord_at(index * beats), 62 + self.spec.register_shift):
                self._add("pad", index * beats, 0.97 * beats, pitch, 0.8)

    def _bass(self):
        centre = 39 + self.spec.register_shift
        pattern = self._pick(self.style.bass)
        previous, count = None, 0
        for beat, beats, accent in self._onsets(pattern):
            chord, following = self._chord_at(beat), self._chord_at(beat + beats)
            count = 0 if chord is not previous else count + 1
            pitch = self._bass_pitch(chord, following, count, centre)
            previous = chord
            self._add("bass", beat, 0.92 * beats * max(self.hold, 0.45), pitch, accent)

    def _bass_pitch(self, chord: Chord, following: Chord, count: int, centre: int) -> int:
        """Pitch of the bass, `count` notes since the chord began; `following` is the chord at the next note."""
        motion, root, (_, third, fifth, *_) = self.style.bass_motion, _nearest(chord.root, centre), chord.intervals
        if count == 0 or motion == "root":
            return root
        if motion == "fifths":
            return root + (fifth - 12 if root > centre else fifth) * (count % 2)
        if motion == "boogie":
            sixth = 9 if third == 4 else 10
            return root + (0, third, fifth, sixth, 10, sixth, fifth, third)[count % 8]
        if motion == "walking" and following is not chord:
            return _nearest(following.root, root) + int(self.rng.choice([-1, 1, 2, -2]))
        steps = [third, fifth, third, fifth, 12, fifth - 12]
        if motion == "moving" and self.rng.random() < 0.4:
            scale = self._scale_at(chord)
            steps = [step for step in range(-5, 8) if (root + step) % 12 in scale]
        return root + int(_draw(steps, self.rng))

    def _melody(self):
        # Two one-bar rhythms for the clip, so that the melody repeats itself as tunes do.
        rhythms = [self._melody_bar() for _ in range(2)]
        rhythm = "|".join(_draw(rhythms, self.rng) for _ in range(self.num_bars))
        centre = 74 + self.spec.register_shift
        pitch = centre + int(self.rng.integers(-4, 5))
        for beat, beats, accent in self._onsets(rhythm):
            pitch = self._melody_pitch(pitch, centre, beat)
            self._add("melody", beat, min(beats, 0.5 * self.style.bar_beats) * 0.95 * self.hold, pitch, accent)

    def _melody_bar(self) -> str:
        """The rhythm string of one bar."""
        style = self.style
        on_beat, off_beat = style.melody_chance
        steps_per_beat = style.melody_steps // style.bar_beats
        scale = 0.55 + 0.9 * self.spec.controls["density"]
        chances = [on_beat if step % steps_per_beat == 0 else off_beat for step in range(style.melody_steps)]
        marks = "".join("x" if self.rng.random() < min(chance * scale, 0.98) else "." for chance in chances)
        return marks if "x" in marks else "x" + marks[1:]

    def _melody_pitch(self, previous: int, centre: int, beat: float) -> int:
        """On the beat a chord note near the last one, with weight on the tonic triad; between beats a step."""
        chord = self._chord_at(beat)
        allowed = set(chord.pitch_classes) if beat % 1 < 1e-6 else self._scale_at(chord)
        pitches = [pitch for pitch in range(centre - 9, centre + 10) if pitch % 12 in allowed]
        near = [math.exp(-abs(pitch - previous) / 3) * (0.35 if pitch == previous else 1.0) for pitch in pitches]
        tonal = [HARMONY["tonic_weights"].get((pitch - self.spec.tonic) % 12, 1.0) for pitch in pitches]
        weights = np.array(near) * np.array(tonal)
        return pitches[self.rng.choice(len(pitches), p=weights / weights.sum())]

    def _drums(self):
        for sound, pattern in self._pick(self.style.drums).items():
            for beat, _, accent in self._onsets(pattern):
                shift = float(np.clip(self.rng.normal(0, 0.006), -0.02, 0.02))
                self.hits.append(
                    DrumHit(self._seconds(beat) + shift, sound, self._velocity(accent * self.style.drum_level))
                )
