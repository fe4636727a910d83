"""Data sets of songs: emoMusic and GiantSteps with values and keys, MagnaTagATune and MTG-Jamendo with tags."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.audio.labels import name_some
from music2vec_hf.probing.tasks.declarations import (
    SPLITS,
    Example,
    Found,
    Task,
    find_one,
    index_audio,
    list_path,
    read_table,
)

FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
CONFIDENT = "2"
_OFFICIAL_STEM = re.compile(r"0*(\d+)(\.LOFI)?")
# GiantSteps+ and mirdata's beatport_key: "1004923 Kaiserdisco - Carachillo (Original Mix)".
_RENAMED_STEM = re.compile(r"0*(\d+) .*")

SET_COLUMN = "Mediaeval 2013 set"
MEAN_COLUMNS = ("mean_arousal", "mean_valence")
# Of emoMusic's 619 development songs: mean and population standard deviation of arousal and of valence.
EMOMUSIC_STATISTICS = ((4.756063, 4.973865), (1.386010, 1.254618))


def split_differences(split_of: Mapping[str, str], list_name: str) -> dict[str, list[str]]:
    """Sentences, to their tracks, on tracks that a split rule does not put where the published list of `lists/` does.

    `split_of` maps each track of this copy's metadata to its split by the rule.
    """
    published = benchmark_split(list_name)
    groups = {
        "in another split than in the benchmark": [
            track for track, split in split_of.items() if published.get(track, split) != split
        ],
        "not in the benchmark": [track for track in split_of if track not in published],
        "in the benchmark but not in these annotations": [track for track in published if track not in split_of],
    }
    return {f"tracks {what}: {name_some(tracks)}.": tracks for what, tracks in groups.items() if tracks}


def benchmark_split(list_name: str) -> dict[str, str]:
    """Track id to split, as published, of a list such as `emomusic_split.tsv`."""
    rows = read_table(list_path(list_name), "\t", ("track_id", "split"))
    return {row["track_id"]: row["split"] for row in rows}


def split_by_artists(artists: Mapping[str, str]) -> dict[str, str]:
    """Train or validation for every song, by song to its artists, so that artists who work together are in one split.

    An artist's hash decides first; then, twice over all songs in their order, every co-artist of a validation artist
    becomes one. The hash looks at all 1,486 songs, before any is left out for its annotation.
    """
    names = {song: [artist.strip() for artist in text.split(",")] for song, text in artists.items()}
    in_validation = {
        artist: int(hashlib.sha1(artist.lower().encode("utf-8")).hexdigest(), 16) % 116 >= 100
        for together in names.values()
        for artist in together
    }
    for _ in range(2):
        for together in names.values():
            if any(in_validation[artist] for artist in together):
                in_validation.update(dict.fromkeys(together, True))
    return {
        song: "validation" if any(in_validation[artist] for artist in together) else "train"
        for song, together in names.items()
    }


def flat_key(text: str) -> str:
    """A key as `KEY_LABELS` spell it: `F# minor` becomes `Gb minor`."""
    tonic, _, mode = " ".join(text.split()).partition(" ")
    return f"{FLATS.get(tonic, tonic)} {mode}"


def read_giantsteps(task: Task, folder: Path) -> Found:
    """Read GiantSteps key: 24 keys of electronic dance music, two repositories in one folder.

    Official layout: the repositories giantsteps-key-dataset (test) and giantsteps-mtg-key-dataset (train and
    validation), each in a folder of any name below the given one, told apart by `annotations/annotations.txt`, which
    only the second has. The mp3 files `<id>.LOFI.mp3` lie anywhere below, in one folder or in each `audio/`.

    A track is a song. Its clips are the non-overlapping windows of 30 s from its start, a rest is dropped
    (`Split.num_clips`). A protocol that scores songs by an ensemble of their clips cuts them so.
    """
    mtg = "giantsteps-mtg-key-dataset"
    table = find_one(
        folder, "*/annotations/annotations.txt", f"folder with annotations/annotations.txt, that is {mtg}", task.source
    )
    test_keys = _test_keys(folder, table.parents[1], task)
    artists = read_table(table.with_name("beatport_metadata.txt"), "\t", ("ID", "ARTIST"), task.source)
    artist_split = split_by_artists({row["ID"]: row["ARTIST"] for row in artists})
    keys = {
        row["ID"]: flat_key(row["MANUAL KEY"])
        for row in read_table(table, "\t", ("ID", "MANUAL KEY", "C"), task.source)
        if row["C"] == CONFIDENT and "/" not in row["MANUAL KEY"]
    }
    unknown = sorted(keys.keys() - artist_split.keys())
    if unknown:
        raise ValueError(f"Songs {name_some(unknown)} of '{table}' have no row in beatport_metadata.txt beside it.")
    split_of = {song: artist_split[song] for song in keys} | dict.fromkeys(test_keys, "test")
    keys |= test_keys
    found, renamed, others = _songs(folder, artist_split | split_of)
    examples = [
        Example(split_of[song], song, found.get(song, folder / "audio" / f"{song}.LOFI.mp3"), key)
        for song, key in keys.items()
    ]
    differences = split_differences(split_of, "giantsteps_split.tsv")
    if renamed:
        sentence = (
            f"{len(renamed)} audio files are named as in GiantSteps+ (Zenodo 1095691) or Beatport key, whose audio "
            f"is not the benchmark's: {name_some(renamed)}."
        )
        differences[sentence] = renamed
    return Found(task, examples, folder, differences, others)


def _test_keys(folder: Path, train_repository: Path, task: Task) -> dict[str, str]:
    """Song to key of the test repository."""
    test = "giantsteps-key-dataset"
    roots = [path.parents[1] for path in sorted(folder.glob("*/annotations/key"))]
    roots = [root for root in roots if root != train_repository and any((root / "annotations/key").glob("*.key"))]
    if not roots:
        raise FileNotFoundError(
            f"'{folder}' has no second folder with annotations/key/*.key, that is {test}. Get it from: {task.source}."
        )
    if len(roots) > 1:
        raise ValueError(f"'{folder}' has {len(roots)} copies of {test}: {name_some(roots, 2)}. Keep one of them.")
    keys = {}
    for path in sorted((roots[0] / "annotations/key").glob("*.key")):
        try:
            keys[path.name.split(".")[0]] = flat_key(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"'{path}' is not UTF-8 ({error}). Get it from: {task.source}.") from error
    return keys


def _songs(folder: Path, known: Mapping[str, str]) -> tuple[dict[str, Path], list[str], list[str]]:
    """Song to file, the names of files called as in another edition, and files that are no song of the data set."""
    renamed = []

    def song_of(path: Path) -> str | None:
        match = _OFFICIAL_STEM.fullmatch(path.stem) or _RENAMED_STEM.fullmatch(path.stem)
        if match is None or match[1] not in known:
            return None
        if match.re is _RENAMED_STEM:
            renamed.append(path.name)
        return match[1]

    found, others = index_audio(folder, song_of)
    return found, renamed, others


def split_by_artist(artist: str) -> str:
    """Split of a development song of emoMusic: only ASCII letters and single blanks of the lower-case name count."""
    letters = "".join(
        letter for letter in artist.lower() if letter.isascii() and (letter.isalpha() or letter.isspace())
    )
    name = " ".join(letters.split())
    return "train" if int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 8 else "validation"


def read_emomusic(task: Task, folder: Path) -> Found:
    """Read emoMusic (1000 songs for emotion): arousal and valence of 744 clips of 45 s, on the scale of 1 to 9.

    Official layout: `songs_info.csv` and `static_annotations.csv`, beside `clips_45seconds/<song_id>.mp3` or in
    `annotations/`. DEAM and PMEmo ship a `static_annotations.csv` too, with other columns and other values: refused.
    Targets are standardised by mean and population deviation of train and validation together.
    """
    info_file, info = _songs_table(folder, "songs_info.csv", ("Artist", SET_COLUMN), task)
    static_file, static = _songs_table(folder, "static_annotations.csv", MEAN_COLUMNS, task)
    only_one = sorted(info.keys() ^ static.keys(), key=int)
    if only_one:
        raise ValueError(f"Songs {name_some(only_one)} are in only one of '{info_file}' and '{static_file}'.")
    found, others = index_audio(folder, lambda path: str(int(path.stem)) if path.stem.isdecimal() else None)
    examples = []
    for song, row in info.items():
        if row[SET_COLUMN] not in ("development", "evaluation"):
            raise ValueError(
                f"Song {song} of '{info_file}' has '{row[SET_COLUMN]}' as {SET_COLUMN}; use development or evaluation."
            )
        split = "test" if row[SET_COLUMN] == "evaluation" else split_by_artist(row["Artist"])
        path = found.pop(song, folder / "clips_45seconds" / f"{song}.mp3")
        examples.append(Example(split, song, path, [static[song][column] for column in MEAN_COLUMNS]))
    differences = split_differences({one.track_id: one.split for one in examples}, "emomusic_split.tsv")
    values = np.array([[float(value) for value in one.label] for one in examples if one.split != "test"])
    statistics = values.mean(axis=0), values.std(axis=0)
    if not np.allclose(statistics, EMOMUSIC_STATISTICS, atol=2e-6):
        pairs = [", ".join(f"{value:.6f}" for value in pair) for pair in (*statistics, *EMOMUSIC_STATISTICS)]
        sentence = (
            f"mean and standard deviation of the development songs are {pairs[0]} and {pairs[1]} (arousal, valence), "
            f"the benchmark's are {pairs[2]} and {pairs[3]}."
        )
        differences[sentence] = []
    task = replace(task, target_statistics=tuple(tuple(row.tolist()) for row in statistics))
    extra = others + [path.relative_to(folder).as_posix() for path in found.values()]
    return Found(task, examples, static_file, differences, extra)


def _songs_table(folder: Path, name: str, columns: tuple[str, ...], task: Task) -> tuple[Path, dict[str, dict]]:
    """A table of emoMusic, in its folder or one folder below: its path, and its rows by song."""
    pattern = name if (folder / name).is_file() else f"*/{name}"
    path = find_one(folder, pattern, f"{name}, which `{task.name}` needs", task.source)
    rows = read_table(path, ",", ("song_id", *columns), task.source)
    strange = [row["song_id"] for row in rows if not row["song_id"].isdecimal()]
    if strange:
        raise ValueError(
            f"'{path}' has song ids that are no numbers: {name_some(strange)}. Get it from: {task.source}."
        )
    return path, {str(int(row["song_id"])): row for row in rows}


# ---- tags ----

FILTERED = "magnatagatune-filtered"
SPLIT_OF_FOLDER = dict.fromkeys("0123456789ab", "train") | {"c": "validation"} | dict.fromkeys("def", "test")

# Broken in the official download (zero length), and no part of the benchmark.
UNREADABLE = frozenset({"35644", "55753", "57881"})

JAMENDO_COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
_JAMENDO_PATH = re.compile(r"(?:.*/)?(\d\d/\d+)(?:\.low)?\.\w+")


def read_magnatagatune(task: Task, folder: Path) -> Found:
    """Read MagnaTagATune: the 50 most frequent tags, split by folder.

    Official layout: `annotations_final.csv` (tab separated, 190 columns) beside the hexadecimal folders `0` to `f`, or
    with these in `mp3/`, `audio/` or any other one folder. All clips, or in the other task only those with a tag: the
    two differ by points of average precision, so scores of one never stand for the other.
    """
    pattern = "annotations_final.csv" if (folder / "annotations_final.csv").is_file() else "*/annotations_final.csv"
    table = find_one(folder, pattern, f"annotations_final.csv, which `{task.name}` needs", task.source)
    annotations = read_table(table, "\t", ("clip_id", *task.labels, "mp3_path"), task.source)
    audio = _audio_folder(folder)
    found, others = index_audio(audio, lambda path: path.with_suffix("").as_posix())
    examples = []
    for row in annotations:
        clip, name = row["clip_id"], row["mp3_path"]
        path = found.pop(Path(name).with_suffix("").as_posix(), audio / name)
        odd = {row[label] for label in task.labels} - {"0", "1"}
        if odd or name[:1] not in SPLIT_OF_FOLDER:
            what = f"the tag value '{min(odd)}'" if odd else f"the path '{name}'"
            raise ValueError(f"Clip {clip} of '{table}' has {what}; tags are 0 or 1, paths begin with 0 to f.")
        tags = [label for label in task.labels if row[label] == "1"]
        if clip not in UNREADABLE and (tags or task.name != FILTERED):
            examples.append(Example(SPLIT_OF_FOLDER[name[0]], clip, path, tags))
    return Found(task, examples, table, extra=[*others, *map(str, found.values())])


def _audio_folder(folder: Path) -> Path:
    """The folder in which the hexadecimal folders lie: this one or one below it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if any((candidate / name).is_dir() for name in SPLIT_OF_FOLDER):
            return candidate
    raise FileNotFoundError(
        f"Neither '{folder}' nor a folder in it has the folders 0 to f of MagnaTagATune's audio. Join mp3.zip.001, "
        ".002 and .003 in this order and unzip the result there."
    )


def read_jamendo(task: Task, folder: Path) -> Found:
    """Read one subset of MTG-Jamendo, split 0, from a folder that holds the repository's `data/` and the audio.

    Official layout: `data/splits/split-0/autotagging_<subset>-<split>.tsv` (CR LF, one field per tag at the end of a
    row), and anywhere below the folder the audio, `audio/41/241.mp3` or `audio-low/41/241.low.mp3`, whose names the
    tables give without `.low`. Tracks are long: a track's vector is the mean over all of its windows.
    """
    subset = task.name.removeprefix("mtg-jamendo-").replace("top50", "top50tags")
    found, others = index_audio(folder, _jamendo_key)
    examples = []
    for split in SPLITS:
        name = f"split-0/autotagging_{subset}-{split}.tsv"
        table = find_one(folder, f"**/{name}", f"data/splits/{name}", task.source)
        try:
            lines = table.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"'{table}' is no table in UTF-8 ({error}). Get it from: {task.source}.") from error
        header, *rows = [line.rstrip("\t").split("\t") for line in lines if line.strip()] or [[""]]
        if header != JAMENDO_COLUMNS:
            raise ValueError(
                f"'{table}' has the columns {', '.join(header)[:120]}, but {', '.join(JAMENDO_COLUMNS)} are needed. "
                f"Get it from: {task.source}."
            )
        short = next((row for row in rows if len(row) < len(JAMENDO_COLUMNS) - 1), None)
        if short:
            raise ValueError(
                f"'{table}' has a row of {len(short)} fields, {', '.join(short)[:80]}. Get it from: {task.source}."
            )
        for track, _, _, path, _, *tags in rows:
            audio = found.get(_jamendo_key(Path(path)), folder / "audio" / path)
            examples.append(Example(split, track, audio, tags))
    return Found(task, examples, folder, extra=others)


def _jamendo_key(path: Path) -> str | None:
    match = _JAMENDO_PATH.fullmatch(path.as_posix())
    return match[1] if match else None
