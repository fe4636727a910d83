"""The embedded synthetic corpus: labelled music made by rule, for the demo, for tests and for offline trials.

Everything is a pure function of (GENERATOR_VERSION, seed, index): clip number `index` is the same in every corpus of a
seed, however many clips it has and however many processes write it. Score, sounds, mix and label noise have separate
random streams, so that a change in one does not shift the others.

The labels are parameters of the generator. They are not human ratings.
"""

import csv
import json
import math
import multiprocessing
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from music2vec_hf.synthetic.card import corpus_card
from music2vec_hf.synthetic.labels import SPLITS, TAGS, affect_of, place_of, tags_of
from music2vec_hf.synthetic.render import SAMPLING_RATE, render, silent_share
from music2vec_hf.synthetic.score import KEYS, Score, compose, draw_spec
from music2vec_hf.synthetic.styles import GENRES

GENERATOR_VERSION = 1  # a change of any sample or label in any clip asks for a new number
MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = 2.0, 120.0
MARKER = ".synth-in-progress"  # tells our unfinished output from a folder of somebody else
COLUMNS = (
    "file_name",
    "split",
    "track_id",
    "composition_id",
    "genre",
    "key",
    "arousal",
    "valence",
    "tags",
    "duration",
)
_STREAMS = {"score": 1, "program": 2, "mix": 3, "labels": 4, "keys": 5}


def synthesize_clip(seed: int, index: int, clip_seconds: float = 10.0) -> tuple[np.ndarray, dict]:
    """Make one clip of the synthetic corpus.

    Args:
        seed: seed of the corpus, 0 or more.
        index: number of the clip, 0 or more.
        clip_seconds: length of the clip in seconds, 2 to 120.

    Returns:
        The float32 samples `[N]` at 16 kHz in (-1, 1), N = clip_seconds x 16,000 rounded, and a dictionary with the
        columns of metadata.csv except file_name: split, track_id, composition_id, genre, key, arousal, valence
        (floats in (-1, 1)), tags (a list) and duration (seconds).

    Raises:
        ValueError: if the seed, the index or the length is out of range.
    """
    samples, _, labels = _make_clip(seed, index, clip_seconds)
    return samples, labels


def synthesize_score(seed: int, index: int, clip_seconds: float = 10.0) -> Score:
    """The score behind `synthesize_clip(seed, index, clip_seconds)`: its specification, notes and drum hits."""
    return _make_clip(seed, index, clip_seconds)[1]


def synthesize_corpus(
    out: str | os.PathLike, num_clips: int, seed: int, clip_seconds: float = 10.0, num_proc: int = 1
) -> dict:
    """Write a labelled synthetic corpus: audio, metadata.csv, synth.json and a data set card.

    The corpus is written beside `out` as `<out>.partial` and renamed at the end, so a killed run never leaves an `out`
    that looks complete. Equal seeds give equal bytes, for any `num_proc`. Where `out` already holds this very corpus,
    nothing is written.

    Args:
        out: folder to create. It must not exist, be empty, or hold the same corpus.
        num_clips: number of clips, 1 or more. Multiples of 200 are split exactly 60/15/25 %.
        seed: seed of the corpus, 0 or more.
        clip_seconds: length of every clip in seconds, 2 to 120.
        num_proc: number of processes.

    Returns:
        The contents of synth.json: generator_version, seed, num_clips, clip_seconds, sampling_rate, splits (clips per
        split) and the vocabularies genres, keys and tags.

    Raises:
        ValueError: if an argument is out of range or `out` holds something else.
    """
    out = Path(out)
    _check_range("num_clips", num_clips, 1, 10_000_000)
    _check_range("num_proc", num_proc, 1, 1024)
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("clip_seconds", clip_seconds, MIN_CLIP_SECONDS, MAX_CLIP_SECONDS)
    settings = {
        "generator_version": GENERATOR_VERSION,
        "seed": int(seed),
        "num_clips": int(num_clips),
        "clip_seconds": float(clip_seconds),
    }
    if out.exists() and (summary := _finished_corpus(out, settings)) is not None:
        return summary

    partial_out = _fresh_partial(out)
    write = partial(_write_clip, partial_out, settings["seed"], settings["clip_seconds"])
    rows = list(_in_order(write, settings["num_clips"], num_proc))
    _write_metadata(partial_out / "metadata.csv", rows)
    counts = Counter(row["split"] for row in rows)
    summary = {
        **settings,
        "sampling_rate": SAMPLING_RATE,
        "splits": {split: counts[split] for split in SPLITS},
        "genres": list(GENRES),
        "keys": list(KEYS),
        "tags": list(TAGS),
    }
    (partial_out / "README.md").write_text(corpus_card(summary), encoding="utf-8")
    (partial_out / "synth.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (partial_out / MARKER).unlink()
    if out.exists():
        out.rmdir()  # empty: anything else was refused above
    partial_out.rename(out)
    return summary


def load_synthetic_labels(folder: str | os.PathLike) -> list[dict]:
    """Read the labels of a synthetic corpus.

    Args:
        folder: what `synthesize_corpus` wrote.

    Returns:
        One dictionary per clip with the columns of metadata.csv: arousal, valence and duration are floats, tags is a
        list, all others are strings; file_name is relative to `folder`.

    Raises:
        FileNotFoundError: if metadata.csv, or an audio file that it names, is missing.
        ValueError: if metadata.csv has other columns.
    """
    folder = Path(folder)
    path = folder / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"`{folder}` has no metadata.csv, so it is not a synthetic corpus. "
            f"Make one with `music2vec synth {folder} --clips 600 --seed 0`."
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"`{path}` has the columns {list(reader.fieldnames or ())}, "
                f"but a synthetic corpus has {list(COLUMNS)}. Write the corpus again with `music2vec synth`."
            )
        rows = list(reader)
    missing = [row["file_name"] for row in rows if not (folder / row["file_name"]).is_file()]
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
    return np.random.default_rng([GENERATOR_VERSION, seed, index, _STREAMS[stream], attempt])


def _make_clip(seed: int, index: int, clip_seconds: float) -> tuple[np.ndarray, Score, dict]:
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("index", index, 0, 2**31 - 1)
    _check_range("clip_seconds", clip_seconds, MIN_CLIP_SECONDS, MAX_CLIP_SECONDS)
    seed, index, clip_seconds = int(seed), int(index), float(clip_seconds)
    tonic_order = _rng(seed, 0, "keys").permutation(12)
    genre, key, split = place_of(index, tonic_order)
    for attempt in range(20):
        rng = _rng(seed, index, "score", attempt)
        score = compose(draw_spec(genre, key, clip_seconds, rng), rng)
        # Too little music to carry the labels: draw again. The number of notes follows the length of the clip.
        if len(score.notes) < 1.2 * clip_seconds:
            continue
        samples = render(score, _rng(seed, index, "program", attempt), _rng(seed, index, "mix", attempt))
        if silent_share(samples) <= 0.3:
            break
    else:
        raise RuntimeError(f"Clip {index} of seed {seed} stayed nearly silent in 20 draws; please report this.")
    arousal, valence = affect_of(score, _rng(seed, index, "labels"))
    name = f"synth-{seed}-{index:06d}"
    labels = {
        "split": split,
        "track_id": name,
        "composition_id": f"composition-{seed}-{index:06d}",  # one clip per composition, so no split shares one
        "genre": genre,
        "key": key,
        # What metadata.csv holds, digit for digit: a clip and its row in a corpus carry the same labels.
        "arousal": round(arousal, 6),
        "valence": round(valence, 6),
        "tags": tags_of(score),
        "duration": len(samples) / SAMPLING_RATE,
    }
    return samples, score, labels


def _write_clip(folder: Path, seed: int, clip_seconds: float, index: int) -> dict:
    samples, labels = synthesize_clip(seed, index, clip_seconds)
    file_name = f"audio/{labels['split']}/{labels['track_id']}.flac"
    soundfile.write(folder / file_name, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {"file_name": file_name, **labels}


def _in_order(write, num_clips: int, num_proc: int):
    """Call `write` for every index and yield the rows in the order of the index, with a progress bar."""
    progress = partial(tqdm, total=num_clips, desc="synth", unit="clip")
    if min(num_proc, num_clips) == 1:
        yield from progress(map(write, range(num_clips)))
        return
    # Spawned processes start clean: a forked one may inherit threads of torch in the middle of their work.
    with multiprocessing.get_context("spawn").Pool(min(num_proc, num_clips)) as pool:
        yield from progress(pool.imap(write, range(num_clips), chunksize=max(1, min(16, num_clips // num_proc))))


def _write_metadata(path: Path, rows: list[dict]):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "tags": ";".join(row["tags"])} for row in rows)


def _finished_corpus(out: Path, settings: dict) -> dict | None:
    """The summary of the same corpus at `out`, None if `out` is an empty folder; anything else is refused."""
    if not out.is_dir():
        raise ValueError(f"`{out}` is a file, but a corpus is a folder. Name another output folder.")
    if not any(out.iterdir()):
        return None
    try:
        summary = json.loads((out / "synth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    if not isinstance(summary, dict) or any(summary.get(name) != value for name, value in settings.items()):
        raise ValueError(
            f"`{out}` already holds something else than this corpus ({settings}). Name another folder, or remove it."
        )
    load_synthetic_labels(out)
    return summary


def _fresh_partial(out: Path) -> Path:
    """An empty `<out>.partial` with folders for the splits. What a killed run left there is removed."""
    partial_out = out.with_name(out.name + ".partial")
    marker = partial_out / MARKER
    if partial_out.exists():
        if not marker.is_file():
            raise ValueError(
                f"`{partial_out}` is needed for unfinished output but holds something else. Remove it or name another "
                "output folder."
            )
        shutil.rmtree(partial_out)
    partial_out.mkdir(parents=True)
    marker.touch()
    for split in SPLITS:
        (partial_out / "audio" / split).mkdir(parents=True)
    return partial_out


def _check_range(name: str, value: float, low: float, high: float):
    whole = isinstance(low, int)
    fits = isinstance(value, int | np.integer if whole else int | float | np.number) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        kind = "a whole number" if whole else "a number of seconds"
        raise ValueError(f"`{name}` is {value!r}, but it must be {kind} from {low} to {high}. Give another value.")
