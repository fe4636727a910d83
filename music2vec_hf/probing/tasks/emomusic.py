"""emoMusic (1000 songs for emotion): arousal and valence of 744 clips of 45 s.

Official layout: `songs_info.csv` and `static_annotations.csv`, beside `clips_45seconds/<song_id>.mp3` or in
`annotations/`. DEAM and PMEmo ship a `static_annotations.csv` too, with other columns and other values: refused.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import (
    find_file,
    index_audio,
    list_path,
    make_splits,
    read_table,
    split_differences,
    value_targets,
)

SET_COLUMN = "Mediaeval 2013 set"
MEAN_COLUMNS = ("mean_arousal", "mean_valence")

# Of the 619 development songs: mean and population standard deviation of arousal and of valence.
BENCHMARK_STATISTICS = ((4.756063, 4.973865), (1.386010, 1.254618))

TASKS = (
    Task(
        name="emomusic",
        title="emotion",
        problem_type="regression",
        metrics=("r2_arousal", "r2_valence"),
        primary_metric="r2",
        value_metrics=("r2_arousal", "r2_valence"),
        loss="mean squared error, mean over both outputs, on targets standardised with mean and population standard "
        "deviation of train and validation together",
        license="access by form, for academic research; audio from the Free Music Archive",
        citation="Soleymani, Caro, Schmidt, Sha and Yang, 1000 songs for emotional analysis of music, CrowdMM 2013",
        source="http://cvml.unige.ch/databases/emoMusic/ with annotations.tar.gz and clips_45sec.tar.gz, unpacked "
        "into one folder",
        split_rule="the evaluation set of MediaEval 2013 is test; of the development songs a hash of the artist's "
        "name puts two tenths into validation (JukeMIR); 52 artists are both in test and in train or validation",
        labels=("arousal", "valence"),
        dataset="emomusic",
        counts=(504, 115, 125),
    ),
)


def artist_split(artist: str) -> str:
    """Split of a development song: only ASCII letters and single blanks of the lower-case name count."""
    letters = "".join(
        letter for letter in artist.lower() if letter.isascii() and (letter.isalpha() or letter.isspace())
    )
    name = " ".join(letters.split())
    return "train" if int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 8 else "validation"


def benchmark_split() -> dict[str, str]:
    """Song id to split, as published."""
    rows = read_table(list_path("emomusic_split.tsv"), "\t", ("track_id", "split"))
    return {row["track_id"]: row["split"] for row in rows}


def read(task: Task, folder: Path) -> TaskData:
    """Read emoMusic from its folder; targets stay on the scale of 1 to 9.

    Raises:
        FileNotFoundError: if a table is not there.
        ValueError: if a table has other columns, a song is in only one of them, or its set is unknown.
    """
    info_file, static_file = (find_file(folder, name, task) for name in ("songs_info.csv", "static_annotations.csv"))
    info = {str(int(row["song_id"])): row for row in read_table(info_file, ",", ("song_id", "Artist", SET_COLUMN))}
    static = {str(int(row["song_id"])): row for row in read_table(static_file, ",", ("song_id", *MEAN_COLUMNS))}
    only_one = sorted(info.keys() ^ static.keys(), key=int)
    if only_one:
        raise ValueError(f"Songs {', '.join(only_one)} are in only one of '{info_file}' and '{static_file}'.")
    split_of = {song: _split(song, row, info_file) for song, row in info.items()}
    found, others = index_audio(folder, lambda path: str(int(path.stem)) if path.stem.isdecimal() else None)
    official = folder / "clips_45seconds"
    songs = {split: [song for song in info if split_of[song] == split] for split in SPLITS}
    rows = {split: [(song, found.pop(song, official / f"{song}.mp3")) for song in songs[split]] for split in SPLITS}
    targets = {
        split: value_targets([static[song] for song in songs[split]], MEAN_COLUMNS, str(static_file))
        for split in SPLITS
    }
    splits = make_splits(rows, targets)
    development = [static[song] for song in info if split_of[song] != "test"]
    values = np.array([[float(row[column]) for column in MEAN_COLUMNS] for row in development])
    statistics = values.mean(axis=0), values.std(axis=0)
    differences = list(split_differences(split_of, benchmark_split()))
    if not np.allclose(statistics, BENCHMARK_STATISTICS, atol=2e-6):
        differences.append(
            f"mean and standard deviation of the development songs are {_pair(statistics[0])} and "
            f"{_pair(statistics[1])} (arousal, valence), the benchmark's are {_pair(BENCHMARK_STATISTICS[0])} and "
            f"{_pair(BENCHMARK_STATISTICS[1])}."
        )
    extra = others + [path.relative_to(folder).as_posix() for path in found.values()]
    task = replace(task, target_statistics=tuple(tuple(row.tolist()) for row in statistics))
    return TaskData(task, splits, tuple(differences), tuple(extra))


def _pair(values) -> str:
    return ", ".join(f"{value:.6f}" for value in values)


def _split(song: str, row: dict[str, str], where: Path) -> str:
    if row[SET_COLUMN] not in ("development", "evaluation"):
        raise ValueError(
            f"Song {song} of '{where}' has '{row[SET_COLUMN]}' as {SET_COLUMN}; use development or evaluation."
        )
    return "test" if row[SET_COLUMN] == "evaluation" else artist_split(row["Artist"])
