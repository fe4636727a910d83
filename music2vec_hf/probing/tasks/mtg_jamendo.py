"""MTG-Jamendo autotagging, split 0: four subsets of tags over the same whole tracks.

Official layout: the repository with `data/splits/split-0/autotagging_<subset>-<split>.tsv` (CR LF, one field per tag
at the end of a row), and below the same folder the audio, `audio/41/241.mp3` or `audio-low/41/241.low.mp3`, whose
names the tables give without `.low`. Tracks are long: a track's vector is the mean over all of its windows.
"""

import re
from pathlib import Path

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import index_audio, list_path, make_splits, tag_targets

COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
_PATH = re.compile(r"(?:.*/)?(\d\d/\d+)(?:\.low)?\.\w+")

_COUNTS = {
    "top50": ("top50tags", (32_136, 10_888, 11_356)),
    "genre": ("genre", (32_572, 11_043, 11_479)),
    "instrument": ("instrument", (14_395, 5_466, 5_115)),
    "moodtheme": ("moodtheme", (9_949, 3_802, 4_231)),
}


def _declare(subset: str) -> Task:
    file_part, counts = _COUNTS[subset]
    return Task(
        name=f"mtg-jamendo-{subset}",
        title=f"{subset} tags",
        problem_type="multi_label_classification",
        metrics=("roc_auc", "average_precision"),
        primary_metric="roc_auc",
        value_metrics=("roc_auc", "average_precision"),
        loss="binary cross-entropy with logits, mean over tags",
        license="audio: Creative Commons, each track its own; metadata: CC BY-NC-SA 4.0",
        citation="Bogdanov, Won, Tovstogan, Porter and Serra, The MTG-Jamendo dataset for automatic music tagging, "
        "ICML workshop ML4MD 2019",
        source="github.com/MTG/mtg-jamendo-dataset (its script fetches the audio; audio-low is enough)",
        split_rule="split 0 of the data set; no artist is in two splits",
        labels=tuple(list_path(f"mtg_jamendo_{file_part}_tags.txt").read_text(encoding="utf-8").split("\n")[:-1]),
        dataset="mtg-jamendo",
        counts=counts,
    )


TASKS = tuple(_declare(subset) for subset in _COUNTS)


def read(task: Task, folder: Path) -> TaskData:
    """Read one subset of MTG-Jamendo from a folder that holds the repository's `data/` and the audio.

    Raises:
        FileNotFoundError: if a table of split 0 is not there.
        ValueError: if a table has other columns or an unknown tag.
    """
    subset, _ = _COUNTS[task.name.removeprefix("mtg-jamendo-")]
    found, others = index_audio(folder, _audio_key)
    rows, targets = {}, {}
    for split in SPLITS:
        name = f"split-0/autotagging_{subset}-{split}.tsv"
        table = next(iter(sorted(folder.glob(f"**/{name}"))), None)
        if table is None:
            raise FileNotFoundError(f"'{folder}' has no data/splits/{name}. Get it from: {task.source}.")
        header, *lines = [line.rstrip("\t").split("\t") for line in table.read_text(encoding="utf-8-sig").splitlines()]
        if header != COLUMNS:
            raise ValueError(f"'{table}' has the columns {', '.join(header)}, but {', '.join(COLUMNS)} are needed.")
        rows[split] = [
            (track, found.get(_audio_key(Path(path)), folder / "audio" / path)) for track, _, _, path, *_ in lines
        ]
        targets[split] = tag_targets([line[5:] for line in lines], task.labels, str(table))
    return TaskData(task, make_splits(rows, targets), (), tuple(others))


def _audio_key(path: Path) -> str | None:
    match = _PATH.fullmatch(path.as_posix())
    return match[1] if match else None
