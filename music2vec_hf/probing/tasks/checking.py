"""The check of a data set before anything is computed: what is missing, what is unreadable, how many there should be.

Only headers are read. A file that cannot be used is never left out in silence: either the data set is refused with
counts and names, or, where the user asked for it, the track is left out and `TaskData.differences` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.probing.tasks.declarations import SPLITS, Split, Task, TaskData

MAX_NAMED_FILES = 5

# Decoders disagree by less than this about the length of an mp3; a clip this much too short is a whole clip.
CLIP_TOLERANCE_SECONDS = 0.1


def _named(items: Sequence) -> str:
    more = f" and {len(items) - MAX_NAMED_FILES} more" if len(items) > MAX_NAMED_FILES else ""
    return ", ".join(str(item) for item in items[:MAX_NAMED_FILES]) + more


def check_files(paths: Sequence[Path]) -> dict[Path, float]:
    """Refuse audio files that are missing or whose header cannot be read.

    Returns:
        `dict[Path, float]`: length of each file in seconds, as its header states it.

    Raises:
        FileNotFoundError: if files are missing, with the count and the first names, also of unreadable ones.
        ValueError: if all are there but some cannot be read.
    """
    seconds, faults = read_headers(paths)
    _refuse(faults, len(paths))
    return seconds


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
        sentences.append(f"{len(missing)} of {num_files} audio files are missing: {_named(missing)}.")
    if unreadable:
        sentences.append(f"{len(unreadable)} of {num_files} audio files cannot be read: {_named(unreadable)}.")
    if sentences:
        sentences.append("Complete the folder first, or allow missing files: the scores are then not comparable.")
        raise (FileNotFoundError if missing else ValueError)(" ".join(sentences))


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
        tolerated = {path for path, track in _tracks(data) if track in task.may_be_unreadable and faults.get(path)}
        _refuse({path: reason for path, reason in faults.items() if path not in tolerated}, len(data.paths))
    differences, splits = list(data.differences), {}
    for name in SPLITS:
        split = data.splits[name]
        differences.extend(_left_out(name, split, faults))
        kept = [row for row, path in enumerate(split.paths) if path not in faults]
        if not kept:
            raise ValueError(
                f"Task '{task.name}' has no usable track in the split '{name}'. Complete the folder first."
            )
        splits[name] = _with_clips(_keep(split, kept), task, seconds)
    differences.extend(_count_differences(task, splits))
    return replace(data, splits=splits, differences=tuple(differences))


def _tracks(data: TaskData) -> list[tuple[Path, str]]:
    return [pair for split in data.splits.values() for pair in zip(split.paths, split.track_ids, strict=True)]


def _keep(split: Split, rows: list[int]) -> Split:
    ids, paths = (tuple(items[row] for row in rows) for items in (split.track_ids, split.paths))
    return Split(ids, paths, split.targets[np.array(rows)])


def _left_out(name: str, split: Split, faults: Mapping[Path, str | None]) -> list[str]:
    """One sentence for the missing and one for the unreadable tracks of a split, each naming all of them."""
    pairs = [(track, faults[path]) for track, path in zip(split.track_ids, split.paths, strict=True) if path in faults]
    sentences = []
    for word, tracks in (
        ("missing", [track for track, reason in pairs if reason is None]),
        ("unreadable", [track for track, reason in pairs if reason is not None]),
    ):
        if tracks:
            count = f"{len(tracks)} of {len(split.paths)} tracks"
            sentences.append(f"{name}: the audio of {count} is {word}, left out: {', '.join(tracks)}.")
    return sentences


def _with_clips(split: Split, task: Task, seconds: Mapping[Path, float]) -> Split:
    if task.clip_seconds is None:
        return split
    whole = (int((seconds[path] + CLIP_TOLERANCE_SECONDS) // task.clip_seconds) for path in split.paths)
    return replace(split, num_clips=tuple(max(1, count) for count in whole))


def _count_differences(task: Task, splits: Mapping[str, Split]) -> list[str]:
    differences = []
    for name, count in zip(SPLITS, task.counts, strict=False):
        found = len(splits[name].track_ids)
        if found != count:
            differences.append(f"{name}: {found} tracks, the benchmark has {count}.")
    for name, count in zip(SPLITS, task.clip_counts, strict=False):
        found = sum(splits[name].num_clips)
        if found != count:
            differences.append(f"{name}: {found} clips of {task.clip_seconds:g} s, the benchmark has {count}.")
    return differences


def describe_check(data: TaskData) -> str:
    """What the check found, in lines for a person: sizes, files that are not used, differences from the benchmark."""
    sizes = ", ".join(f"{size} {split}" for split, size in data.split_sizes.items())
    lines = [f"{data.task.name}: {sizes}"]
    if data.extra:
        lines.append(f"  not used, unknown to the data set: {len(data.extra)} audio files: {_named(data.extra)}")
    if not data.comparable:
        lines.append("  not comparable with published scores:")
        lines.extend(f"  - {difference}" for difference in data.differences)
    return "\n".join(lines)
