"""The embedded synthetic corpus: labelled music made by rule, for the demo, for tests and for offline trials.

Everything is a pure function of (GENERATOR_VERSION, seed, index): clip number `index` is the same in every corpus of a
seed, however many clips it has and however many processes write it. Score, sounds, mix and label noise have separate
random streams, so that a change in one does not shift the others.

The labels are parameters of the generator. They are not human ratings.
"""

import csv
import json
import multiprocessing
import os
from collections import Counter
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from music2vec_hf.common.files import check_new_folder, read_json, write_json, write_text, written_aside
from music2vec_hf.common.render import render as render_template
from music2vec_hf.synthetic.events import events_of
from music2vec_hf.synthetic.render import SAMPLING_RATE, render, silent_share
from music2vec_hf.synthetic.score import GENRES, KEYS, TIMBRES, Composer, Score, draw_spec

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


# ---- the corpus ----

GENERATOR_VERSION = 1  # a change of any sample or label in any clip asks for a new number
EVENTS = "events.json"  # track_id -> what `events_of` says of the clip
COLUMNS = tuple("file_name split track_id composition_id genre key arousal valence tags duration".split())
_RANGES = {
    "num_clips": (1, 10_000_000),
    "num_proc": (1, 1024),
    "seed": (0, 2**63 - 1),
    "index": (0, 2**31 - 1),
    "clip_seconds": (2.0, 120.0),
}
_STREAMS = {"score": 1, "program": 2, "mix": 3, "labels": 4, "keys": 5}


def synthesize_clip(seed: int, index: int, clip_seconds: float = 10.0) -> tuple[np.ndarray, dict]:
    """Make one clip of the synthetic corpus.

    Args:
        clip_seconds: length of the clip in seconds, 2 to 120.

    Returns:
        The float32 samples `[N]` at 16 kHz in (-1, 1), N = clip_seconds x 16,000 rounded, and the columns of
        metadata.csv except file_name as a dictionary: arousal and valence in (-1, 1), tags as a list.

    Raises:
        ValueError: if the seed, the index or the length is out of range.
    """
    return _clip(seed, index, clip_seconds)[:2]


def _clip(seed: int, index: int, clip_seconds: float) -> tuple[np.ndarray, dict, dict]:
    """Samples and labels as [`synthesize_clip`] gives them, and the clip's events."""
    place, score, samples = _play(seed, index, clip_seconds)
    labels = {
        "split": place["split"],
        "track_id": f"synth-{seed}-{index:06d}",
        "composition_id": f"composition-{seed}-{index:06d}",  # one clip per composition, so no split shares one
        "genre": place["genre"],
        "key": place["key"],
        **affect_of(score, _rng(seed, index, "labels")),
        "tags": tags_of(score),
        "duration": len(samples) / SAMPLING_RATE,
    }
    return samples, labels, events_of(score)


def synthesize_score(seed: int, index: int, clip_seconds: float = 10.0) -> Score:
    """The score behind `synthesize_clip(seed, index, clip_seconds)`: its specification, notes and drum hits."""
    return _play(seed, index, clip_seconds)[1]


def synthesize_corpus(
    out: str | os.PathLike, num_clips: int, seed: int, clip_seconds: float = 10.0, num_proc: int = 1
) -> dict:
    """Write a labelled synthetic corpus: audio, metadata.csv, events.json, synth.json and a data set card.

    The corpus is written aside and renamed at the end. Equal seeds give equal bytes, for any `num_proc`. Where `out`
    already holds this very corpus, nothing is written but an events.json that is missing or has no melody.

    Args:
        out: folder to create. It must not exist, be empty, or hold the same corpus.
        num_clips: number of clips, 1 or more. Multiples of 200 are split exactly 60/15/25 %.
        seed, clip_seconds: as for [`synthesize_clip`].

    Returns:
        The contents of synth.json: the settings, the clips per split, and the vocabularies genres, keys and tags.

    Raises:
        ValueError: if an argument is out of range or `out` holds something else.
    """
    out = Path(out)
    _check_ranges(num_clips=num_clips, num_proc=num_proc, seed=seed, clip_seconds=clip_seconds)
    settings = {
        "generator_version": GENERATOR_VERSION,
        "seed": int(seed),
        "num_clips": int(num_clips),
        "clip_seconds": float(clip_seconds),
    }
    if (summary := _finished_corpus(out, settings)) is not None:
        if not _has_all_events(out / EVENTS):
            find = partial(_events_of_clip, settings["seed"], settings["clip_seconds"])
            write_json(out / EVENTS, dict(_in_order(find, num_clips, num_proc)), indent=None)
        return summary
    check_new_folder(out, f"this corpus ({settings})")
    with written_aside(out) as aside:
        for split in SPLITS:
            (aside / "audio" / split).mkdir(parents=True)
        write = partial(_write_clip, aside, settings["seed"], settings["clip_seconds"])
        clips = tqdm(_in_order(write, num_clips, num_proc), total=num_clips, desc="synth", unit="clip")
        rows, events = zip(*clips, strict=True)
        counts = Counter(row["split"] for row in rows)
        summary = {
            **settings,
            "sampling_rate": SAMPLING_RATE,
            "splits": {split: counts[split] for split in SPLITS},
            "genres": list(GENRES),
            "keys": list(KEYS),
            "tags": list(TAGS),
        }
        with (aside / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, "tags": ";".join(row["tags"])} for row in rows)
        write_text(aside / "README.md", render_template(Path(__file__).with_name("card.md.jinja"), **summary))
        by_track = {row["track_id"]: found for row, found in zip(rows, events, strict=True)}
        write_json(aside / EVENTS, by_track, indent=None)
        write_json(aside / "synth.json", summary)
    return summary


def _has_all_events(path: Path) -> bool:
    """Whether there is the file, and with the melody, which the first versions did not write."""
    known = read_json(path, "delete it and run `music2vec synth` again") if path.is_file() else {}
    return bool(known) and all("melody" in events for events in known.values())


def load_synthetic_labels(folder: str | os.PathLike) -> list[dict]:
    """The rows of a synthetic corpus's metadata.csv: arousal, valence and duration as floats, tags as a list.

    Raises:
        FileNotFoundError: if metadata.csv, or an audio file that it names, is missing.
        ValueError: if metadata.csv has other columns.
    """
    path = Path(folder) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` has no metadata.csv. Make a synthetic corpus with `music2vec synth`.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    if columns != COLUMNS:
        raise ValueError(f"`{path}` has the columns {columns}, but a synthetic corpus has {COLUMNS}. Write it again.")
    missing = [row["file_name"] for row in rows if not (path.parent / row["file_name"]).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(rows)} audio files named in `{path}` are missing, the first is {missing[0]}. "
            "Write the corpus again with `music2vec synth`."
        )
    for row in rows:
        row.update({name: float(row[name]) for name in ("arousal", "valence", "duration")})
        row["tags"] = row["tags"].split(";") if row["tags"] else []
    return rows


def _rng(seed: int, index: int, stream: str, attempt: int = 0) -> np.random.Generator:
    return np.random.default_rng([GENERATOR_VERSION, int(seed), int(index), _STREAMS[stream], attempt])


def _play(seed: int, index: int, clip_seconds: float) -> tuple[dict, Score, np.ndarray]:
    """The clip's split, genre and key, its score and its samples."""
    _check_ranges(seed=seed, index=index, clip_seconds=clip_seconds)
    place = place_of(int(index), _rng(seed, 0, "keys").permutation(12))
    for attempt in range(20):
        rng = _rng(seed, index, "score", attempt)
        score = Composer(draw_spec(place["genre"], place["key"], float(clip_seconds), rng), rng).score()
        # Too little music to carry the labels: draw again. The number of notes follows the length of the clip.
        if len(score.notes) < 1.2 * clip_seconds:
            continue
        samples = render(score, _rng(seed, index, "program", attempt), _rng(seed, index, "mix", attempt))
        if silent_share(samples) <= 0.3:
            return place, score, samples
    raise RuntimeError(f"Clip {index} of seed {seed} stayed nearly silent in 20 draws; please report this.")


def _events_of_clip(seed: int, clip_seconds: float, index: int) -> tuple[str, dict]:
    _, labels, events = _clip(seed, index, clip_seconds)
    return labels["track_id"], events


def _write_clip(folder: Path, seed: int, clip_seconds: float, index: int) -> tuple[dict, dict]:
    """The clip's row of metadata.csv and its events."""
    samples, labels, events = _clip(seed, index, clip_seconds)
    file_name = f"audio/{labels['split']}/{labels['track_id']}.flac"
    soundfile.write(folder / file_name, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {"file_name": file_name, **labels}, events


def _in_order(write, num_clips: int, num_proc: int):
    """Call `write` for every index and yield the rows in the order of the index."""
    processes = min(num_proc, num_clips)
    if processes == 1:
        yield from map(write, range(num_clips))
        return
    # Spawned processes start clean: a forked one may inherit threads of torch in the middle of their work.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(write, range(num_clips), chunksize=max(1, min(16, num_clips // num_proc)))


def _finished_corpus(out: Path, settings: dict) -> dict | None:
    """The summary of the same corpus at `out`, `None` if there is something else or nothing."""
    try:
        summary = json.loads((out / "synth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict) or any(summary.get(name) != value for name, value in settings.items()):
        return None
    load_synthetic_labels(out)  # every file is there
    return summary


def _check_ranges(**values: float):
    for name, value in values.items():
        low, high = _RANGES[name]
        kinds, words = ((int, np.integer), "a whole number") if isinstance(low, int) else (Real, "a number of seconds")
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(
                f"`{name}` is {value!r}, but it must be {words} from {low} to {high}. Give another value."
            )
