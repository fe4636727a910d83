"""Tasks and their data from a folder: read, and checked before anything is computed.

Row 13 of DESIGN.md section 3. Files that are missing or cannot be read are counted and named, labels that a task does
not know are refused, and what differs from the benchmark is said. Only headers are read. A file that cannot be used is
never left out in silence: either the data set is refused with counts and names, or, where the user asked for it, the
track is left out and `TaskData.differences` says so.

A new data set adds its declaration to `lists/tasks.yaml` and its reader to `_READERS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.labels import name_some
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.probing.tasks import classes, custom, songs, tags
from music2vec_hf.probing.tasks.declarations import SPLITS, Split, Task, TaskData, read_declarations

TASKS = read_declarations()
_READERS = {
    "synthetic": custom.read_synthetic,
    "magnatagatune": tags.read_magnatagatune,
    "gtzan": classes.read_gtzan,
    "giantsteps": songs.read_giantsteps,
    "emomusic": songs.read_emomusic,
    "mtg-jamendo": tags.read_jamendo,
    "nsynth": classes.read_nsynth,
    "vocalset": classes.read_vocalset,
    "": custom.read_custom,
}
TASK_GROUPS = {
    "synthetic": tuple(name for name, task in TASKS.items() if task.synthetic),
    "paper": ("magnatagatune", "gtzan", "giantsteps", "emomusic"),
}

# Decoders disagree by less than this about the length of an mp3; a clip this much too short is a whole clip.
CLIP_TOLERANCE_SECONDS = 0.1


def resolve_tasks(names: str | Sequence[str]) -> tuple[str, ...]:
    """Expand task and group names (`synthetic`: the four synthetic tasks; `paper`: those of Table 1), each task once.

    Raises:
        ValueError: if a name is neither a task nor a group.
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
        name (`str`): a task of `TASKS`.
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
    data = _READERS[task.dataset](task, own if own.is_dir() else folder)
    return check_data(data, allow_missing)


def check_data(data: TaskData, allow_missing: bool = False) -> TaskData:
    """Check the audio files of a task and its counts against the benchmark's.

    Args:
        data (`TaskData`): as a reader gave it; paths may be missing.
        allow_missing (`bool`): leave out tracks whose file is missing or unreadable instead of refusing.

    Returns:
        `TaskData`: without those tracks, with every difference from the benchmark in words.

    Raises:
        FileNotFoundError, ValueError: if files are missing or unreadable and that is not allowed; if a split is empty.
    """
    task = data.task
    seconds, faults = read_headers(data.paths)
    if not allow_missing:
        pairs = [pair for split in data.splits.values() for pair in zip(split.paths, split.track_ids, strict=True)]
        tolerated = {path for path, track in pairs if track in task.may_be_unreadable and faults.get(path)}
        _refuse({path: reason for path, reason in faults.items() if path not in tolerated}, len(data.paths))
    found, splits = {sentence: data.affected.get(sentence, ()) for sentence in data.differences}, {}
    for name in SPLITS:
        split = data.splits[name]
        found |= _left_out(name, split, faults)
        kept = [row for row, path in enumerate(split.paths) if path not in faults]
        if not kept:
            raise ValueError(
                f"Task '{task.name}' has no usable track in the split '{name}'. Complete the folder first."
            )
        ids, paths = (tuple(items[row] for row in kept) for items in (split.track_ids, split.paths))
        splits[name] = _with_clips(Split(ids, paths, split.targets[np.array(kept)]), task, seconds)
    found |= _count_differences(task, splits)
    return replace(data, splits=splits, differences=tuple(found), affected=found)


def read_headers(paths: Sequence[Path]) -> tuple[dict[Path, float], dict[Path, str | None]]:
    """Read the headers of audio files.

    Returns:
        `tuple`: length in seconds of each file that can be opened; and for the others why not, None if it is missing.
    """
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
    sentences = []
    if missing:
        sentences.append(f"{len(missing)} of {num_files} audio files are missing: {name_some(missing)}.")
    if unreadable:
        sentences.append(f"{len(unreadable)} of {num_files} audio files cannot be read: {name_some(unreadable)}.")
    if sentences:
        sentences.append("Complete the folder first, or allow missing files: the scores are then not comparable.")
        raise (FileNotFoundError if missing else ValueError)(" ".join(sentences))


def _left_out(name: str, split: Split, faults: Mapping[Path, str | None]) -> dict[str, tuple[str, ...]]:
    """One sentence for the missing and one for the unreadable tracks of a split, each with all of them."""
    pairs = [(track, faults[path]) for track, path in zip(split.track_ids, split.paths, strict=True) if path in faults]
    sentences = {}
    for word, tracks in (
        ("missing", tuple(track for track, reason in pairs if reason is None)),
        ("unreadable", tuple(track for track, reason in pairs if reason is not None)),
    ):
        if tracks:
            count = f"{len(tracks)} of {len(split.paths)} tracks"
            sentences[f"{name}: the audio of {count} is {word}, left out: {name_some(tracks)}."] = tracks
    return sentences


def _with_clips(split: Split, task: Task, seconds: Mapping[Path, float]) -> Split:
    if task.clip_seconds is None:
        return split
    whole = (int((seconds[path] + CLIP_TOLERANCE_SECONDS) // task.clip_seconds) for path in split.paths)
    return replace(split, num_clips=tuple(max(1, count) for count in whole))


def _count_differences(task: Task, splits: Mapping[str, Split]) -> dict[str, tuple[str, ...]]:
    differences = {}
    for name, count in zip(SPLITS, task.counts, strict=False):
        found = len(splits[name].track_ids)
        if found != count:
            differences[f"{name}: {found} tracks, the benchmark has {count}."] = ()
    for name, count in zip(SPLITS, task.clip_counts, strict=False):
        found = sum(splits[name].num_clips)
        if found != count:
            differences[f"{name}: {found} clips of {task.clip_seconds:g} s, the benchmark has {count}."] = ()
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
