"""Toy tasks: features in which the labels of one layer can be found, without any audio."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.features.store import FeatureRows, row_offsets
from music2vec_hf.probing import evaluation
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


def splits_of(sizes, targets, num_clips=()):
    """Splits of tracks that are numbered through."""
    splits, start = {}, 0
    for split, size in sizes.items():
        part, start = slice(start, start + size), start + size
        ids = tuple(f"track-{number}" for number in range(part.start, part.stop))
        splits[split] = Split(ids, tuple(map(Path, ids)), targets[part], tuple(num_clips[part]))
    return splits


def toy_task(name):
    """Features of two layers and a task whose labels lie in layer "1"; the track ids are those of every toy task."""
    rng = np.random.default_rng(0)
    total, labels = sum(SIZES.values()), LABELS[name]
    features = {"0": rng.standard_normal((total, 10)), "1": rng.standard_normal((total, 30))}
    hidden = features["1"][:, : len(labels)]
    targets = {
        "synthetic-genre": hidden.argmax(1),
        "synthetic-key": hidden.argmax(1),
        "synthetic-tags": (hidden > 0.5).astype(np.float32),
        "synthetic-emotion": hidden.astype(np.float32),
    }[name]
    features = {layer: values.astype(np.float32) for layer, values in features.items()}
    return features, TaskData(replace(TASKS[name], labels=labels), splits_of(SIZES, targets))


def with_targets(task_data, split, targets):
    changed = replace(task_data.splits[split], targets=targets)
    return replace(task_data, splits=task_data.splits | {split: changed})


def song_task(clips=4):
    """Songs of several clips, each heard through noise of its own; the last song has one clip only."""
    sizes = {"train": 200, "validation": 120, "test": 150}
    rng, num_songs = np.random.default_rng(1), sum(sizes.values())
    keys, counts = rng.integers(0, 24, num_songs), np.full(num_songs, clips)
    counts[-1] = 1
    hidden = np.eye(24)[np.repeat(keys, counts)]
    heard = hidden * 2.5 + 1.4 * rng.standard_normal(hidden.shape)
    features = {"0": rng.standard_normal((len(hidden), 8)).astype(np.float32), "1": heard.astype(np.float32)}
    rows = FeatureRows(features, row_offsets(counts), np.full(len(hidden), 1500), np.full(len(hidden), 30.0))
    task = replace(TASKS["giantsteps"], counts=(), clip_counts=())
    task_data = TaskData(task, splits_of(sizes, keys, counts.tolist()))
    return evaluation.select_rows(rows, task_data, 30.0), task_data


def probe_data(selected, task_data):
    """What training may see of selected rows."""
    parts = (selected.split(task_data, split) for split in ("train", "validation"))
    return evaluation._probe_data(*parts, task_data)
