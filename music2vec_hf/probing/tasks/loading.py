"""Tasks and their data from a folder: read, and checked before anything is computed.

Row 13 of DESIGN.md section 3. Only headers of audio are read. Labels that a task does not know are refused, files that
are missing or cannot be read are counted and named: either the data set is refused, or, where the user asked for it,
the tracks are left out, and `TaskData.differences` says so, as it does of all that differs from the benchmark.

A new data set adds its declaration to `lists/tasks.yaml` and its reader to `_READERS`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets, config, load_dataset, load_from_disk

from music2vec_hf.audio.containers import class_label, name_audio_column
from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.labels import (
    CLASSES,
    SPLIT_NAMES,
    VALUES,
    find_labels,
    label_values,
    list_labelled,
    make_targets,
    name_some,
)
from music2vec_hf.audio.metadata import METADATA_FILES
from music2vec_hf.audio.reading import AudioReader, find_audio_files
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.events import stack_events
from music2vec_hf.common.files import read_json, written_aside
from music2vec_hf.probing.tasks import classes, frames, songs
from music2vec_hf.probing.tasks.declarations import (
    NO_BENCHMARK,
    SPLITS,
    Example,
    Found,
    Split,
    Task,
    TaskData,
    read_declarations,
)


def read_custom(task: Task, folder: Path) -> Found:
    """Read a data set: `custom` takes the classes of its column `label`, `custom-tags` the lists of its column `tags`.

    A folder is read as (the first that fits) what `save_to_disk` wrote; Parquet or Arrow files; audio files with
    metadata, whose split is in a column `split` or else the folder that they lie in (tags are lists, or text separated
    by semicolons); files in `<split>/<label>/`: see [`list_labelled`]. In the first two, the one column of classes
    (`ClassLabel`) is taken where none has the name. Labels are those of the column's type, or else all that occur,
    sorted. Audio files that are in no split are named, and not used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder; `{task.name}` reads a local data set of `datasets`.")
    tables = (path for kind in ("*.parquet", "*.arrow") for path in folder.rglob(kind))
    packed = any(path.name not in METADATA_FILES for path in tables)
    parts = _load_tables(folder) if packed else _list_files(folder, "source")
    column = _label_column(parts["train"].table, task, folder)
    kept = [name for name in (column, "track_id") if name in parts["train"].table.column_names]
    together = concatenate_datasets([part.table.select_columns(kept) for part in parts.values()])
    labels = find_labels(together, [column], task.problem_type, f"'{folder}'")
    task = replace(task, labels=labels.names)
    extra = [] if packed else _unused(folder, parts)
    examples, differences = _examples(parts, task, [column], folder), {NO_BENCHMARK: []}
    if task.problem_type == CLASSES:
        heard = {one.label for one in examples if one.split == "train"}
        others = [one for one in examples if one.label not in heard]
        names = sorted({one.label for one in others})
        if others:
            sentence = f"{len(others)} tracks have labels that no track of train has: {name_some(names)}."
            differences[sentence] = [one.track_id for one in others]
    return Found(task, examples, folder, differences, extra)


def read_synthetic(task: Task, folder: Path) -> Found:
    """Read one of the synthetic tasks from a folder written by `music2vec synth`."""
    for name in ("metadata.csv", "synth.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"'{folder}' has no {name}, so it is no synthetic corpus; make one with `{task.source}`."
            )
    if task.events:
        parts = _list_files(folder, "track_id").items()
        clips = [(split, *clip) for split, part in parts for clip in zip(part.track_ids, part.paths, strict=True)]
        return frames.with_events(task, folder, [Example(*clip, label="") for clip in clips])
    vocabulary = read_json(folder / "synth.json", f"make the corpus again with `{task.source}`")
    labels = {"genre": vocabulary["genres"], "tags": vocabulary["tags"]}.get(task.title, task.labels)
    task = replace(task, labels=tuple(labels))
    columns = task.labels if task.problem_type == VALUES else (task.title,)
    return Found(task, _examples(_list_files(folder, "track_id"), task, columns, folder), folder)


@dataclass(frozen=True)
class _Part:
    """One split: the track id and the audio file of every row, and the rows with their labels."""

    track_ids: list[str]
    paths: list[Path]
    table: Dataset


def _examples(parts: dict[str, _Part], task: Task, columns: Sequence[str], folder: Path) -> list[Example]:
    examples = []
    for split, part in parts.items():
        labels = label_values(part.table, columns, task.problem_type, f"'{folder}', split {split},")
        rows = zip(part.track_ids, part.paths, labels, strict=True)
        examples.extend(Example(split, track_id, path, label) for track_id, path, label in rows)
    return examples


def _names_by_split(folder: Path, names: Sequence[str]) -> dict[str, set[str]]:
    """Each of our splits with what this data set calls it; `names` are those of the data set."""
    found = {split: {*spellings} & {*names} for split, spellings in SPLIT_NAMES.items()}
    if not all(found.values()):
        there = ", ".join(dict.fromkeys(names))
        raise ValueError(f"'{folder}' has the splits {there}; probing needs {', '.join(SPLITS)}.")
    return found


def _list_files(folder: Path, track_id: str) -> dict[str, _Part]:
    """Audio files of a folder by split; `track_id` is the field of a `Track` by which they are called."""
    tracks = [track for track in list_labelled(folder) if track.metadata]
    table = Dataset.from_list([{**track.metadata, "track_id": getattr(track, track_id)} for track in tracks])
    parts = {}
    for split, names in _names_by_split(folder, [track.split for track in tracks]).items():
        rows = [row for row, track in enumerate(tracks) if track.split in names]
        chosen = [tracks[row] for row in rows]
        ids = [getattr(one, track_id) for one in chosen]
        parts[split] = _Part(ids, [one.path for one in chosen], table.select(rows))
    return parts


def _unused(folder: Path, parts: dict[str, _Part]) -> list[str]:
    used = {path for part in parts.values() for path in part.paths}
    root = folder.absolute()
    return [path.relative_to(root).as_posix() for path in find_audio_files(root) if path not in used]


def _load_tables(folder: Path) -> dict[str, _Part]:
    found = load_from_disk(str(folder)) if (folder / "dataset_dict.json").is_file() else load_dataset(str(folder))
    parts = {}
    for split, names in _names_by_split(folder, list(found)).items():
        table = name_audio_column(folder, found[min(names)])
        paths = [_audio_file(row["audio"], folder) for row in table.select_columns("audio")]
        parts[split] = _Part([f"{split}/{row}" for row in range(len(paths))], paths, table)
    return parts


def _label_column(table: Dataset, task: Task, folder: Path) -> str:
    if task.title in table.column_names:
        return task.title
    typed = [name for name, feature in table.features.items() if class_label(feature) is not None]
    if len(typed) != 1:
        raise ValueError(
            f"'{folder}' has the columns {', '.join(table.column_names)}; `{task.name}` needs a column "
            f"`{task.title}`: rename the column of labels."
        )
    return typed[0]


def _audio_file(audio: dict, folder: Path) -> Path:
    """The file of a row. Audio inside the data set gets one in the cache of `datasets`, named by its content."""
    path = Path(audio["path"] or "")
    if audio["bytes"] is None:
        return folder / path
    digest = hashlib.blake2b(audio["bytes"], digest_size=16).hexdigest()
    path = Path(config.HF_DATASETS_CACHE) / "music2vec_hf" / f"{digest}{path.suffix}"
    if not path.is_file():
        with written_aside(path) as aside:
            aside.write_bytes(audio["bytes"])
    return path


# ---- all tasks ----

TASKS = read_declarations()
_READERS = {
    "synthetic": read_synthetic,
    "magnatagatune": songs.read_magnatagatune,
    "gtzan": classes.read_gtzan,
    "giantsteps": songs.read_giantsteps,
    "emomusic": songs.read_emomusic,
    "mtg-jamendo": songs.read_jamendo,
    "nsynth": classes.read_nsynth,
    "vocalset": classes.read_vocalset,
    "real-music": classes.read_real_music,
    "ballroom": frames.read_ballroom,
    "": read_custom,
}
# Of tasks whose data set is that of other tasks, too.
_READERS_OF_TASKS = {
    "gtzan-beats": frames.read_gtzan_rhythm,
    "beats": frames.read_own_events,
    "chords": frames.read_own_events,
    "melody": frames.read_own_events,
}
TASK_GROUPS = {
    "synthetic": tuple(name for name, task in TASKS.items() if task.synthetic and not task.events),
    "synthetic-frames": tuple(name for name, task in TASKS.items() if task.synthetic and task.events),
    "real": tuple(name for name, task in TASKS.items() if task.dataset == "real-music"),
    "paper": ("magnatagatune", "gtzan", "giantsteps", "emomusic"),
}

# Decoders disagree by less than this about the length of an mp3; a clip this much too short is a whole clip.
CLIP_TOLERANCE_SECONDS = 0.1


def resolve_tasks(names: str | Sequence[str]) -> tuple[str, ...]:
    """Expand task and group names (`synthetic`, `synthetic-frames`, `real`, `paper`: the four of Table 1), each once.

    Raises ValueError if a name is neither a task nor a group.
    """
    names = [names] if isinstance(names, str) else list(names)
    resolved = []
    for name in names:
        if name not in TASKS and name not in TASK_GROUPS:
            raise ValueError(f"There is no task '{name}'; use one of {', '.join([*TASK_GROUPS, *TASKS])}.")
        resolved.extend(TASK_GROUPS.get(name, (name,)))
    return tuple(dict.fromkeys(resolved))


def load_task(name: str, folder: str | Path, allow_missing: bool = False) -> TaskData:
    """Load a task's splits from a local folder; nothing is downloaded.

    Args:
        folder (`str` or `Path`): where the data set lies, or a folder that holds it as a folder of its name
            (`Task.dataset`), so that several data sets can share one.
        allow_missing (`bool`): leave out tracks whose audio is missing or unreadable. The result is then not
            comparable, and says why.

    Returns:
        `TaskData`: with labels filled in, and with every difference from the benchmark.

    Raises:
        ValueError: if the task is unknown, a split is empty, a track is in two splits or a label is unknown; if a file
            cannot be read.
        FileNotFoundError: if the folder is no data set of this task or audio files are missing.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task '{name}'; use one of {', '.join(TASKS)}.")
    task, folder = TASKS[name], Path(folder)
    own = folder / task.dataset  # the folder itself where the task names no data set
    read = _READERS_OF_TASKS.get(name) or _READERS[task.dataset]
    return check_found(read(task, own if own.is_dir() else folder), allow_missing)


def check_found(found: Found, allow_missing: bool = False) -> TaskData:
    """The data of a task from what its reader found: targets made, files checked, counts held against the benchmark's.

    Raises as [`load_task`].
    """
    task, by_split = found.task, _examples_by_split(found)
    targets = {}
    for name, chosen in by_split.items():
        labels, where = [one.label for one in chosen], f"'{found.where}', split {name},"
        targets[name] = (
            stack_events(labels) if task.events else make_targets(task.problem_type, labels, task.labels, where)
        )
    differences = {**found.differences, **_label_differences(task, targets)}
    seconds, faults = read_headers([one.path for one in found.examples])
    if not allow_missing:
        tolerated = {one.path for one in found.examples if one.track_id in task.may_be_unreadable}
        _refuse({path: why for path, why in faults.items() if not why or path not in tolerated}, len(found.examples))
    splits = {}
    for name, chosen in by_split.items():
        differences |= _left_out(name, chosen, faults)
        rows = [row for row, one in enumerate(chosen) if one.path not in faults]
        if not rows:
            raise ValueError(
                f"Task '{task.name}' has no usable track in the split '{name}'. Complete the folder first."
            )
        ids, paths = (tuple(getattr(chosen[row], part) for row in rows) for part in ("track_id", "path"))
        num_clips = _num_clips(task, [seconds[path] for path in paths])
        splits[name] = Split(ids, paths, targets[name][np.array(rows)], num_clips)
    differences |= _count_differences(task, splits)
    affected = {sentence: tuple(tracks) for sentence, tracks in differences.items()}
    return TaskData(task, splits, tuple(differences), tuple(found.extra), affected)


def _examples_by_split(found: Found) -> dict[str, list[Example]]:
    by_split, seen = {name: [] for name in SPLITS}, {}
    for example in found.examples:
        if example.track_id in seen:
            before = seen[example.track_id]
            raise ValueError(f"Track '{example.track_id}' is in '{before}' and again in '{example.split}'.")
        seen[example.track_id] = example.split
        by_split[example.split].append(example)
    empty = [name for name, chosen in by_split.items() if not chosen]
    if empty:
        raise ValueError(f"The data has no track in the split '{empty[0]}'; probing needs {', '.join(SPLITS)}.")
    return by_split


def read_headers(paths: Sequence[Path]) -> tuple[dict[Path, float], dict[Path, str | None]]:
    """Length in seconds of each file that can be opened; and for the others why not, None for one that is missing."""
    seconds, faults = {}, {}
    for path in map(Path, paths):
        if not path.is_file():
            faults[path] = None
            continue
        try:
            with AudioReader(path) as reader:
                seconds[path] = reader.num_samples / SAMPLING_RATE
        except AudioError as error:
            faults[path] = error.detail
    return seconds, faults


def _refuse(faults: Mapping[Path, str | None], num_files: int) -> None:
    missing = [path for path, reason in faults.items() if reason is None]
    unreadable = [f"{path} ({reason.rstrip('.')})" for path, reason in faults.items() if reason is not None]
    sentences = [
        f"{len(files)} of {num_files} audio files {what}: {name_some(files)}."
        for what, files in (("are missing", missing), ("cannot be read", unreadable))
        if files
    ]
    if sentences:
        sentences.append("Complete the folder first, or allow missing files: the scores are then not comparable.")
        raise (FileNotFoundError if missing else ValueError)(" ".join(sentences))


def _left_out(name: str, chosen: Sequence[Example], faults: Mapping[Path, str | None]) -> dict[str, list[str]]:
    """One sentence for the missing and one for the unreadable tracks of a split, each with all of them."""
    sentences, bad = {}, [one for one in chosen if one.path in faults]
    for word, tracks in (
        ("missing", [one.track_id for one in bad if faults[one.path] is None]),
        ("unreadable", [one.track_id for one in bad if faults[one.path] is not None]),
    ):
        if tracks:
            count = f"{len(tracks)} of {len(chosen)} tracks"
            sentences[f"{name}: the audio of {count} is {word}, left out: {name_some(tracks)}."] = tracks
    return sentences


def _num_clips(task: Task, seconds: Sequence[float]) -> tuple[int, ...]:
    if task.clip_seconds is None:
        return ()
    return tuple(max(1, int((length + CLIP_TOLERANCE_SECONDS) // task.clip_seconds)) for length in seconds)


def _count_differences(task: Task, splits: Mapping[str, Split]) -> dict[str, tuple[str, ...]]:
    tracks = [len(splits[name].track_ids) for name in SPLITS]
    clips = [sum(splits[name].num_clips) for name in SPLITS]
    return {
        f"{name}: {number} {what}, the benchmark has {count}.": ()
        for what, counts, numbers in (
            ("tracks", task.counts, tracks),
            (f"clips of {task.clip_seconds or 0:g} s", task.clip_counts, clips),
        )
        for name, count, number in zip(SPLITS, counts, numbers, strict=False)
        if number != count
    }


def _label_differences(task: Task, targets: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Labels that are not as frequent as in the benchmark, in splits that have its size."""
    differences = {}
    for name, counts, size in zip(SPLITS, zip(*task.label_counts.values(), strict=True), task.counts, strict=False):
        labels = targets[name]
        if len(labels) != size:
            continue
        found = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(counts))
        wrong = [
            f"{label} {int(number)} instead of {count}"
            for label, number, count in zip(task.label_counts, found, counts, strict=True)
            if number != count
        ]
        if wrong:
            differences[f"{name}: labels are not as frequent as in the benchmark: {name_some(wrong)}."] = wrong
    return differences


def describe_check(data: TaskData) -> str:
    """What the check found, in lines for a person: sizes, files that are not used, differences from the benchmark."""
    sizes = ", ".join(f"{size} {split}" for split, size in data.split_sizes.items())
    lines = [f"{data.task.name}: {sizes}", f"  split: {data.task.split_rule}"]
    if data.extra:
        lines.append(f"  not used, unknown to the data set: {len(data.extra)} audio files: {name_some(data.extra)}")
    if not data.comparable:
        lines.append("  not comparable with published scores:")
        lines.extend(f"  - {difference}" for difference in data.differences)
    return "\n".join(lines)
