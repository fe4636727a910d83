"""MagnaTagATune: the 50 most frequent tags, split by folder; all clips, or as another task only those with a tag.

Official layout: `annotations_final.csv` (tab separated, 190 columns) beside the hexadecimal folders `0` to `f`, or
with these in `mp3/`, `audio/` or any other one folder. The two variants differ by points of average precision, so
they are two tasks: scores of one never stand for the other.
"""

from pathlib import Path

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import (
    find_file,
    index_audio,
    label_differences,
    make_splits,
    read_label_counts,
    read_table,
    tag_targets,
)

FILTERED = "magnatagatune-filtered"
SPLIT_OF_FOLDER = dict.fromkeys("0123456789ab", "train") | {"c": "validation"} | dict.fromkeys("def", "test")

# Broken in the official download (zero length), and no part of the benchmark.
UNREADABLE = frozenset({"35644", "55753", "57881"})

_TERMS = {
    "title": "tags",
    "problem_type": "multi_label_classification",
    "metrics": ("roc_auc", "average_precision"),
    "primary_metric": "roc_auc",
    "value_metrics": ("roc_auc", "average_precision"),
    "loss": "binary cross-entropy with logits, mean over tags",
    # As tagatune.org/Magnatagatune.html states it; Magnatune's own terms for its music are CC BY-NC-SA 1.0.
    "license": "clips and annotations: CC BY-NC-SA 3.0",
    "citation": "Law, West, Mandel, Bay and Downie, Evaluation of algorithms using games: the case of music tagging, "
    "ISMIR 2009",
    "source": "https://mirg.city.ac.uk/datasets/magnatagatune/ has mp3.zip.001 to .003 (join them in this "
    "order, then unzip) and annotations_final.csv",
    "labels": tuple(read_label_counts("magnatagatune_tags.tsv")),
    "dataset": "magnatagatune",
}
_RULE = "first character of mp3_path: 0-9, a, b train; c validation; d, e, f test; three unreadable clips left out"

TASKS = (
    Task(
        name="magnatagatune",
        split_rule=f"{_RULE}; clips with none of the 50 tags are kept (as JukeMIR and MARBLE)",
        counts=(18_706, 1_825, 5_329),
        **_TERMS,
    ),
    Task(
        name=FILTERED,
        split_rule=f"{_RULE}; clips with none of the 50 tags are dropped (as Won 2020; the list of Lee 2017 has 3 "
        "train clips fewer, shorter than 29.1 s)",
        counts=(15_247, 1_529, 4_332),
        **_TERMS,
    ),
)


def read(task: Task, folder: Path) -> TaskData:
    """Read MagnaTagATune from its folder.

    Raises:
        FileNotFoundError: if the annotations are not there.
        ValueError: if a value is neither 0 nor 1, or a path lies in none of the 16 folders.
    """
    table = find_file(folder, "annotations_final.csv", task)
    annotations = read_table(table, "\t", ("clip_id", *task.labels, "mp3_path"))
    audio = _audio_folder(folder)
    found, others = index_audio(audio, lambda path: path.with_suffix("").as_posix())
    rows, tags = ({split: [] for split in SPLITS} for _ in range(2))
    for row in annotations:
        stem = Path(row["mp3_path"]).with_suffix("").as_posix()
        path = found.pop(stem, audio / row["mp3_path"])
        odd = {row[label] for label in task.labels} - {"0", "1"}
        if odd or row["mp3_path"][:1] not in SPLIT_OF_FOLDER:
            what = f"the tag value '{min(odd)}'" if odd else f"the path '{row['mp3_path']}'"
            raise ValueError(
                f"Clip {row['clip_id']} of '{table}' has {what}; tags are 0 or 1, paths begin with 0 to f."
            )
        present = [label for label in task.labels if row[label] == "1"]
        if row["clip_id"] in UNREADABLE or (task.name == FILTERED and not present):
            continue
        split = SPLIT_OF_FOLDER[row["mp3_path"][0]]
        rows[split].append((row["clip_id"], path))
        tags[split].append(present)
    targets = {split: tag_targets(tags[split], task.labels, str(table)) for split in SPLITS}
    splits = make_splits(rows, targets)
    differences = label_differences(task, splits, read_label_counts("magnatagatune_tags.tsv"))
    return TaskData(task, splits, differences, tuple(others) + tuple(str(path) for path in found.values()))


def _audio_folder(folder: Path) -> Path:
    """The folder in which the hexadecimal folders lie: this one or one below it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if any((candidate / name).is_dir() for name in SPLIT_OF_FOLDER):
            return candidate
    raise FileNotFoundError(
        f"Neither '{folder}' nor a folder in it has the folders 0 to f of MagnaTagATune's audio. Join mp3.zip.001, "
        ".002 and .003 in this order and unzip the result there."
    )
