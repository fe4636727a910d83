"""Tasks: what a probe predicts, how it is scored, under which terms the data stands; and their data from a folder.

Row 13 of DESIGN.md section 3. Loading checks the data before anything is computed: files that are missing or cannot be
read are counted and named, labels that a task does not know are refused, and what differs from the benchmark is said.
A new data set adds one file to `datasets/` and its name to `_READERS`.
"""

from collections.abc import Sequence
from pathlib import Path

from music2vec_hf.probing.tasks import (
    custom,
    emomusic,
    giantsteps,
    gtzan,
    magnatagatune,
    mtg_jamendo,
    nsynth,
    synthetic,
    vocalset,
)
from music2vec_hf.probing.tasks.checking import check_data
from music2vec_hf.probing.tasks.declarations import SPLITS, TaskData

__all__ = ["TASKS", "TASK_GROUPS", "load_task", "resolve_tasks"]

_READERS = (synthetic, magnatagatune, gtzan, giantsteps, emomusic, mtg_jamendo, nsynth, vocalset, custom)
TASKS = {task.name: task for reader in _READERS for task in reader.TASKS}
_READER_OF = {task.name: reader.read for reader in _READERS for task in reader.TASKS}
TASK_GROUPS = {
    "synthetic": tuple(task.name for task in synthetic.TASKS),
    "paper": ("magnatagatune", "gtzan", "giantsteps", "emomusic"),
}


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
    data = _READER_OF[name](task, own if own.is_dir() else folder)
    seen: dict[str, str] = {}
    for split in SPLITS:
        for track_id in data.splits[split].track_ids:
            if track_id in seen:
                raise ValueError(f"Track '{track_id}' is in '{seen[track_id]}' and again in '{split}'.")
            seen[track_id] = split
    return check_data(data, allow_missing)
