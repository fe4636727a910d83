"""Labels of the synthetic corpus: which genre, key and split a clip has, and what its score says about it.

All labels are parameters of the generator, not human ratings. None depends on the absolute level of the audio.
"""

import numpy as np

from music2vec_hf.synthetic.score import KEYS, Score
from music2vec_hf.synthetic.tables import GENRES, TIMBRES

SPLITS = ("train", "validation", "test")
OTHER_TAGS = ("drums", "fast", "slow", "staccato", "minor", "triple_or_compound", "swung", "dense", "no_melody")
TAGS = (*TIMBRES, *OTHER_TAGS)

# Splits over 20 consecutive clips of a genre: 12 train, 3 validation, 5 test. The first four hold every split, so that
# forty clips already give each genre a place in each split.
SPLIT_PATTERN = "TETVTTETTTETVTTETTVE"
# Mean and spread of the generator's parameters, measured over 2,000 clips; they turn parameters into z-scores.
TEMPO_STATS = (112.5, 26.0)  # beats per minute
DENSITY_STATS = (2.85, 0.72)  # log2 of onsets per second
CONTROL_STATS = (0.5, 0.21)
REGISTER_SPREAD = 3.74  # semitones, uniform over -6..6
DISSONANCE = {"blues": 1.0, "jazz": 0.6, "sevenths": 0.6}  # by family of progressions; the others 0


def place_of(index: int, tonic_order: np.ndarray) -> dict[str, str]:
    """The split, genre and key of clip number `index`.

    Genres take turns. Within each genre every split walks through all 24 keys before one comes back, major and minor
    in alternation, so that no label tells anything about another one. `tonic_order` is a permutation of 0..11.
    """
    block, genre = divmod(index, len(GENRES))
    # Genres start at different places of the pattern's first four, so that even ten clips hold all three splits.
    turn = genre % 4
    pattern = SPLIT_PATTERN[turn:4] + SPLIT_PATTERN[:turn] + SPLIT_PATTERN[4:]
    mark = pattern[block % 20]
    split, shift = {"T": ("train", 0), "V": ("validation", 7), "E": ("test", 14)}[mark]
    rank = block // 20 * pattern.count(mark) + pattern[: block % 20].count(mark)
    # 10 x rank runs through the even residues of 24; `rank // 12` moves on to the odd ones after twelve.
    residue = (10 * rank + genre + rank // 12 + shift) % 24
    minor, tonic = residue // 2 % 2, residue // 4 * 2 + residue % 2
    return {"split": split, "genre": GENRES[genre], "key": KEYS[12 * minor + tonic_order[tonic]]}


def onsets_per_second(score: Score) -> float:
    """Onsets per second, over the roles and the drums; what one role starts within 30 ms (a chord) counts once."""
    onsets = {}
    for note in score.notes:
        onsets.setdefault(note.role, []).append(note.onset)
    if score.hits:
        onsets["drums"] = [hit.onset for hit in score.hits]
    gaps = [np.diff(np.sort([onset for onset in role if onset >= 0])) for role in onsets.values()]
    return sum(1 + int(np.sum(gap > 0.03)) for gap in gaps) / score.spec.clip_seconds


def tags_of(score: Score) -> list[str]:
    """The tags of a score, in the order of `TAGS`."""
    spec, style = score.spec, score.spec.style
    roles = {note.role for note in score.notes}
    facts = {
        "drums": bool(score.hits),
        "fast": spec.bpm > 135,
        "slow": spec.bpm < 90,
        "staccato": spec.controls["articulation"] > 0.66,
        "minor": spec.mode == "minor",
        "triple_or_compound": style.bar_beats == 3 or style.beat_thirds,
        "swung": spec.swing > 0.55,
        "dense": onsets_per_second(score) > 10,
        "no_melody": "melody" not in roles,
    }
    tags = {name for name, holds in facts.items() if holds}
    tags |= {instrument for role, instrument in spec.instruments.items() if role in roles}
    return [tag for tag in TAGS if tag in tags]


def affect_of(score: Score, rng: np.random.Generator) -> dict[str, float]:
    """Proxies of arousal and valence in (-1, 1): weighted z-scores of the parameters, a little noise, and a tanh."""
    spec = score.spec

    def z_score(value, stats):
        return (value - stats[0]) / stats[1]

    tempo = z_score(spec.bpm, TEMPO_STATS)
    density = z_score(np.log2(max(onsets_per_second(score), 0.5)), DENSITY_STATS)
    dynamics, staccato, brightness = (
        z_score(spec.controls[name], CONTROL_STATS) for name in ("dynamics", "articulation", "brightness")
    )
    arousal = 0.34 * tempo + 0.26 * density + 0.20 * dynamics + 0.12 * staccato + 0.12 * brightness
    mode = 1.0 if spec.mode == "major" else -1.0
    dissonance = DISSONANCE.get(spec.family, 0.0) - 0.3
    valence = 0.50 * mode + 0.38 * spec.register_shift / REGISTER_SPREAD + 0.20 * tempo - 0.35 * dissonance
    valence += 0.16 * staccato + 0.16 * brightness - 0.10 * dynamics
    noise = rng.normal(0, 0.1, size=2)
    # Six digits, as metadata.csv holds them: a clip and its row in a corpus carry the same labels.
    values = {"arousal": np.tanh(0.6 * arousal + noise[0]), "valence": np.tanh(0.6 * valence + noise[1])}
    return {name: round(float(value), 6) for name, value in values.items()}
