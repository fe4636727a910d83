"""GiantSteps key: 24 keys of electronic dance music, songs of two minutes.

Official layout: the two annotation repositories, giantsteps-key-dataset (test) and giantsteps-mtg-key-dataset (train
and validation), each in a folder of any name below the given one, told apart by `annotations/annotations.txt`, which
only the second has. The mp3 files `<id>.LOFI.mp3` lie anywhere below, in one folder or in each repository's `audio/`.

A track is a song. Its clips are the non-overlapping windows of 30 s from its start, a rest is dropped
(`Split.num_clips`). A protocol that scores songs by an ensemble of their clips cuts them so.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from music2vec_hf.probing.metrics import KEY_LABELS
from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import (
    class_targets,
    index_audio,
    label_differences,
    list_path,
    make_splits,
    read_label_counts,
    read_table,
    split_differences,
)

FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
CONFIDENT = "2"
_OFFICIAL_STEM = re.compile(r"0*(\d+)(\.LOFI)?")
# GiantSteps+ and mirdata's beatport_key: "1004923 Kaiserdisco - Carachillo (Original Mix)".
_RENAMED_STEM = re.compile(r"0*(\d+) .*")

TASKS = (
    Task(
        name="giantsteps",
        title="key",
        problem_type="single_label_classification",
        metrics=("weighted_key_score", "symmetric_key_score", "accuracy"),
        primary_metric="weighted_key_score",
        value_metrics=("weighted_key_score",),
        loss="cross-entropy, mean",
        license="none stated for the annotations; audio: previews of Beatport, used for research",
        citation="Knees, Faraldo, Herrera, Vogl, Böck, Hörschläger and Le Goff, Two data sets for tempo estimation "
        "and key detection in electronic dance music annotated from user corrections, ISMIR 2015; selection: "
        "Korzeniowski and Widmer, Genre-agnostic key classification with convolutional neural networks, ISMIR 2018",
        source="github.com/GiantSteps/giantsteps-key-dataset and github.com/GiantSteps/giantsteps-mtg-key-dataset; "
        "their audio_dl.sh fetches the audio",
        split_rule="test: all 604 songs of giantsteps-key-dataset; train and validation: giantsteps-mtg-key-dataset, "
        "only confidence 2 and a single key, by a hash of the artists' names, co-artists together (JukeMIR)",
        labels=KEY_LABELS,
        dataset="giantsteps",
        counts=(923, 236, 604),
        clip_seconds=30.0,
        clip_counts=(3_687, 942, 2_406),
    ),
)


def split_by_artists(artists: Mapping[str, str]) -> dict[str, str]:
    """Train or validation for every song, so that artists who work together are in one split.

    An artist's hash decides first; then, twice over all songs in their order, every co-artist of a validation artist
    becomes one. The hash looks at all 1,486 songs, before any is left out for its annotation.

    Args:
        artists (`Mapping[str, str]`): song to its artists, separated by commas.
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


def benchmark_split() -> dict[str, str]:
    """Song id to split, as published."""
    rows = read_table(list_path("giantsteps_split.tsv"), "\t", ("track_id", "split"))
    return {row["track_id"]: row["split"] for row in rows}


def read(task: Task, folder: Path) -> TaskData:
    """Read GiantSteps key from the folder of both repositories.

    Raises:
        FileNotFoundError: if one of the repositories is not there.
        ValueError: if a song has no artist or a key is none of the 24.
    """
    table, test_keys = _annotation_files(folder, task)
    artist_rows = read_table(table.with_name("beatport_metadata.txt"), "\t", ("ID", "ARTIST"))
    split_of = split_by_artists({row["ID"]: row["ARTIST"] for row in artist_rows})
    keys = {}
    for row in read_table(table, "\t", ("ID", "MANUAL KEY", "C")):
        if row["C"] == CONFIDENT and "/" not in row["MANUAL KEY"]:
            keys[row["ID"]] = flat_key(row["MANUAL KEY"])
    unknown = sorted(keys.keys() - split_of.keys(), key=int)
    if unknown:
        raise ValueError(f"Songs {', '.join(unknown)} of '{table}' have no row in beatport_metadata.txt beside it.")
    for path in test_keys:
        song = path.name.split(".")[0]
        keys[song], split_of[song] = flat_key(path.read_text(encoding="utf-8")), "test"
    found, renamed, others = _songs(folder, split_of)
    songs = {split: [song for song in keys if split_of[song] == split] for split in SPLITS}
    official = folder / "audio"
    rows = {
        split: [(song, found.get(song, official / f"{song}.LOFI.mp3")) for song in songs[split]] for split in SPLITS
    }
    targets = {
        split: class_targets([keys[song] for song in songs[split]], task.labels, str(folder)) for split in SPLITS
    }
    splits = make_splits(rows, targets)
    differences = list(split_differences({song: split_of[song] for song in keys}, benchmark_split()))
    differences.extend(label_differences(task, splits, read_label_counts("giantsteps_keys.tsv")))
    if renamed:
        differences.append(
            f"{len(renamed)} audio files are named as in GiantSteps+ (Zenodo 1095691) or Beatport key, whose audio "
            f"is not the benchmark's: {', '.join(renamed)}."
        )
    return TaskData(task, splits, tuple(differences), tuple(others))


def _annotation_files(folder: Path, task: Task) -> tuple[Path, list[Path]]:
    """The table of the train repository, and the key files of the test repository."""
    tables = sorted(folder.glob("*/annotations/annotations.txt"))
    if not tables:
        raise FileNotFoundError(
            f"'{folder}' has no folder with annotations/annotations.txt, that is giantsteps-mtg-key-dataset. "
            f"Get it from: {task.source}."
        )
    test_keys = [
        path for path in sorted(folder.glob("*/annotations/key/*.key")) if path.parents[2] != tables[0].parents[1]
    ]
    if not test_keys:
        raise FileNotFoundError(
            f"'{folder}' has no second folder with annotations/key/*.key, that is giantsteps-key-dataset. "
            f"Get it from: {task.source}."
        )
    return tables[0], test_keys


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
