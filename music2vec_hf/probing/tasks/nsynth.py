"""NSynth: instrument family and pitch of single notes of 4 s.

Official layout: `nsynth-train/`, `nsynth-valid/` and `nsynth-test/`, each with `examples.json` and `audio/<note>.wav`.
"""

import json
from pathlib import Path

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import class_targets, make_splits

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")
FIELD_OF_TASK = {"nsynth-instrument": "instrument_family_str", "nsynth-pitch": "pitch"}
FOLDER_OF_SPLIT = {"train": "nsynth-train", "validation": "nsynth-valid", "test": "nsynth-test"}

_TERMS = {
    "problem_type": "single_label_classification",
    "metrics": ("accuracy",),
    "primary_metric": "accuracy",
    "value_metrics": ("accuracy",),
    "loss": "cross-entropy, mean",
    # As the card of its copy on the Hub (jg583/NSynth) states it.
    "license": "CC BY 4.0",
    "citation": "Engel et al., Neural audio synthesis of musical notes with WaveNet autoencoders, ICML 2017",
    "source": "https://magenta.tensorflow.org/datasets/nsynth: nsynth-train, nsynth-valid and nsynth-test as json and "
    "wav, unpacked into one folder",
    "split_rule": "the data set's own folders",
    "dataset": "nsynth",
    "counts": (289_205, 12_678, 4_096),
}

TASKS = (
    Task(name="nsynth-instrument", title="instrument", labels=FAMILIES, **_TERMS),
    Task(name="nsynth-pitch", title="pitch", labels=tuple(str(pitch) for pitch in range(128)), **_TERMS),
)


def read(task: Task, folder: Path) -> TaskData:
    """Read NSynth from the folder of its three folders.

    Raises:
        FileNotFoundError: if a folder or its examples.json is not there.
        ValueError: if a label is unknown.
    """
    rows, targets, extra = {}, {}, []
    for split in SPLITS:
        table = folder / FOLDER_OF_SPLIT[split] / "examples.json"
        if not table.is_file():
            raise FileNotFoundError(f"'{table}' is not there. Get it from: {task.source}.")
        notes = json.loads(table.read_text(encoding="utf-8"))
        audio = table.parent / "audio"
        rows[split] = [(note, audio / f"{note}.wav") for note in notes]
        values = [str(fields[FIELD_OF_TASK[task.name]]) for fields in notes.values()]
        targets[split] = class_targets(values, task.labels, str(table))
        extra.extend(
            path.relative_to(folder).as_posix() for path in sorted(audio.glob("*.wav")) if path.stem not in notes
        )
    return TaskData(task, make_splits(rows, targets), (), tuple(extra))
