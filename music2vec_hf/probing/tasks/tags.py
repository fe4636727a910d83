"""Data sets of tags: MagnaTagATune and MTG-Jamendo."""

import re
from pathlib import Path

from music2vec_hf.probing.tables import find_one, index_audio, read_table
from music2vec_hf.probing.tasks.declarations import SPLITS, Example, Found, Task

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
