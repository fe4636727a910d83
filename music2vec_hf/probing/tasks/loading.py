"""Tasks and their data from a folder: read, and checked before anything is computed.

Row 13 of DESIGN.md section 3. Only headers of audio are read. Labels that a task does not know are refused, files that
are missing or cannot be read are counted and named: either the data set is refused, or, where the user asked for it,
the tracks are left out, and `TaskData.differences` says so, as it does of all that differs from the benchmark.

A new data set adds its declaration to `lists/tasks.yaml` and its reader to `_READERS`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.labels import make_targets, name_some
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.probing.tasks import classes, custom, songs, tags
from music2vec_hf.probing.tasks.declarations import SPLITS, Example, Found, Split, Task, TaskData, read_declarations

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
    return check_found(_READERS[task.dataset](task, own if own.is_dir() else folder), allow_missing)


def check_found(found: Found, allow_missing: bool = False) -> TaskData:
    """The data of a task from what its reader found: targets made, files checked, counts held against the benchmark's.

    Raises:
        FileNotFoundError, ValueError: as [`load_task`].
    """
    task, by_split = found.task, _by_split(found)
    targets = {
        name: make_targets(
            task.problem_type, [one.label for one in chosen], task.labels, f"'{found.where}', split {name},"
        )
        for name, chosen in by_split.items()
    }
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


def _by_split(found: Found) -> dict[str, list[Example]]:
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
