"""Toy tasks: features in which the labels of one layer can be found, without any audio."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.probing.probes import ProbeSettings, Search
from music2vec_hf.probing.tasks.declarations import Split, TaskData
from music2vec_hf.probing.tasks.loading import TASKS

SIZES = {"train": 160, "validation": 100, "test": 200}

SETTINGS = ProbeSettings("linear", learning_rate=1e-2), ProbeSettings("mlp", learning_rate=3e-3, hidden_size=16)
SEARCH = Search("tiny", SETTINGS, max_steps=60, eval_every=10, patience=3)


LABELS = {
    "synthetic-genre": tuple("abcde"),
    "synthetic-key": TASKS["synthetic-key"].labels,
    "synthetic-tags": tuple("uvwxyz"),
    "synthetic-emotion": ("arousal", "valence"),
}


def toy_task(name, seed=0):
    """Features of two layers and a task whose labels lie in layer "1"; the track ids are those of every toy task."""
    rng = np.random.default_rng(seed)
    total, labels = sum(SIZES.values()), LABELS[name]
    features = {"0": rng.standard_normal((total, 10)), "1": rng.standard_normal((total, 30))}
    hidden = features["1"][:, : len(labels)]
    targets = {
        "synthetic-genre": hidden.argmax(1),
        "synthetic-key": hidden.argmax(1),
        "synthetic-tags": (hidden > 0.5).astype(np.float32),
        "synthetic-emotion": hidden.astype(np.float32),
    }[name]
    splits, start = {}, 0
    for split, size in SIZES.items():
        ids = tuple(f"track-{number}" for number in range(start, start + size))
        paths = tuple(Path(f"{track_id}.flac") for track_id in ids)
        splits[split] = Split(ids, paths, targets[start : start + size])
        start += size
    return {layer: values.astype(np.float32) for layer, values in features.items()}, TaskData(
        replace(TASKS[name], labels=labels), splits
    )


def with_targets(task_data, split, targets):
    changed = replace(task_data.splits[split], targets=targets)
    return replace(task_data, splits=task_data.splits | {split: changed})
