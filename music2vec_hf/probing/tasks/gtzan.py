"""GTZAN: ten genres, the fault-filtered split.

Official layout `genres/<genre>/<genre>.000NN.wav`; older copies hold `.au`, the Kaggle copy lies in
`Data/genres_original/`. A file is found by its stem, wherever it lies.
"""

import re
from pathlib import Path

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import class_targets, index_audio, list_path, make_splits

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_STEM = re.compile(rf"({'|'.join(GENRES)})\.000\d\d")

TASKS = (
    Task(
        name="gtzan",
        title="genre",
        problem_type="single_label_classification",
        metrics=("accuracy",),
        primary_metric="accuracy",
        value_metrics=("accuracy",),
        loss="cross-entropy, mean",
        license="none stated; excerpts of commercial recordings, used for research",
        citation="Tzanetakis and Cook, Musical genre classification of audio signals, IEEE TSAP 2002; split: "
        "Kereliuk, Sturm and Larsen, Deep learning and music adversaries, IEEE TMM 2015",
        source="genres.tar.gz (md5 5b3d6dddb579ab49814ab86dba69e7c7); its official host is gone, web.archive.org and "
        "Hugging Face (marsyas/gtzan) keep copies",
        split_rule="fault-filtered lists of Kereliuk, Sturm and Larsen: 70 repeated, distorted or mislabelled clips "
        "left out",
        labels=GENRES,
        dataset="gtzan",
        counts=(443, 197, 290),
        may_be_unreadable=("jazz.00054",),  # broken in the Kaggle copy, read by JukeMIR, left out by MARBLE v1
    ),
)


def split_stems() -> dict[str, list[str]]:
    """Stems of the fault-filtered split, `blues.00029`, in the order of the published lists."""
    return {
        split: [Path(line).stem for line in list_path(f"gtzan_{split}.txt").read_text().splitlines() if line]
        for split in SPLITS
    }


def read(task: Task, folder: Path) -> TaskData:
    """Read GTZAN from a folder that holds its clips at any depth."""
    found, others = index_audio(folder, lambda path: path.stem if _STEM.fullmatch(path.stem) else None)
    if not found:
        raise FileNotFoundError(
            f"'{folder}' has no clip of GTZAN such as genres/blues/blues.00000.wav. Get it from: {task.source}."
        )
    rows, targets = {}, {}
    for split, stems in split_stems().items():
        genres = [stem.split(".")[0] for stem in stems]
        official = (folder / "genres" / genre / f"{stem}.wav" for genre, stem in zip(genres, stems, strict=True))
        rows[split] = [(stem, found.get(stem, path)) for stem, path in zip(stems, official, strict=True)]
        targets[split] = class_targets(genres, task.labels, "GTZAN")
    return TaskData(task, make_splits(rows, targets), extra=tuple(others))
