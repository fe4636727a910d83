"""One source on one task of beats, chords or melody: a probe for every frame, whose outputs become timed events.

Layer and settings are chosen as for other tasks, by a score over validation frames (average precision of
activations, accuracy of classes). What turns outputs into events (the probability above which a peak counts,
the seconds over which classes are averaged) is then chosen by the events' own score on the validation tracks; the test
tracks are heard once, by the chosen layer alone. Of training and validation tracks a sample of frames is kept; see
`features/frames.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.common.events import NO_MELODY, NOT_SCORED, UNSCORED, labels_at, real_events, stack_events
from music2vec_hf.common.metrics import get_metric
from music2vec_hf.features.frames import MAX_FRAMES, FrameEncoder
from music2vec_hf.features.store import FeatureRows, FeatureStore
from music2vec_hf.model.events_music2vec import frame_events
from music2vec_hf.probing.evaluation import ProbeResult, choose_probe, layers_to_try, scored
from music2vec_hf.probing.probes import FRAME_SEARCH, ProbeData, ProbeJob, TrainedProbe
from music2vec_hf.probing.tasks.declarations import Task, TaskData
from music2vec_hf.probing.tasks.loading import read_headers
from music2vec_hf.probing.training import train_probes

# A frame is one of a beat up to so far from it, or to half a frame where frames are longer.
BEAT_SECONDS = 0.03
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
SMOOTHING_SECONDS = (0.0, 0.2, 0.4, 0.8, 1.2, 2.0)


def frame_targets(events: np.ndarray, times: np.ndarray, kind: str, period: float) -> np.ndarray:
    """Targets of the frames of a track, from its events `[E, 3]` and the frames' times `[T]`, `period` apart.

    Returns:
        `np.ndarray`: of beats `[T, 2]` zeros and ones, float32; else `[T]` classes, int64, that of `UNSCORED` where
        nothing is said, the chord has no major or minor triad, or the note is out of range.
    """
    if kind != "beats":
        return labels_at(events, times, kind)
    targets = np.zeros((len(times), 2), np.float32)
    for label in range(2):
        distance = np.abs(times[:, None] - events[events[:, 2] == label, 0]).min(axis=1, initial=np.inf)
        targets[:, label] = distance <= max(BEAT_SECONDS, period / 2)
    return targets


def probe_frames(
    store: FeatureStore,
    task_data: TaskData,
    digests: Mapping[Path, str],
    seeds: Sequence[int],
    device: str = "cpu",
    layers: str | Sequence[str] | None = None,
    progress: str | None = None,
) -> ProbeResult:
    """Probe the frames of a store's encoder (a model's, or spectral features) on one task of events.

    Args:
        store (`FeatureStore`): its encoder is heard as it says; frames and scores of searches are kept in its folder.
        layers (`str` or `Sequence[str]`, *optional*): as in [`layers_to_try`].
        progress (`str`, *optional*): label of progress bars; without it there are none.

    Raises:
        ValueError: if a layer is unknown, a file cannot be heard or the model does not tell where its frames lie.
    """
    task, splits = task_data.task, task_data.splits
    heard = [path for split in ("train", "validation") for path in splits[split].paths]
    frames_per_track = max(1, MAX_FRAMES // len(heard))
    frames = FrameEncoder(store.encoder, frames_per_track, store.window_seconds, store.precision)
    of_frames = FeatureStore(store.folder, frames, store.window_seconds, store.precision)
    rows = of_frames.rows(heard, None, [digests[path] for path in heard], progress)
    data = _probe_data(rows, task_data, frames.period)
    tried = layers_to_try(list(rows.features), FRAME_SEARCH, layers)
    # One after the other: of a layer all frames are in memory in float32.
    notes = {"kept_in": store.folder / "searches", "progress": progress, "trained_together": 1}
    choice = choose_probe(data, tried, FRAME_SEARCH, seeds[0], device, **notes)
    jobs = [ProbeJob(choice.layer, choice.settings, seed) for seed in seeds]
    probes = _with_event_settings(train_probes(jobs, data, FRAME_SEARCH, device), frames, task_data)
    outputs = [[] for _ in probes]
    for times, values in frames.hear(splits["test"].paths, [choice.layer]):
        for found, one in zip(outputs, probes, strict=True):
            found.append(frame_events(one.predict(values[choice.layer]), times, task.events, one.event_settings))
    stacked = stack_events([events for of_seed in outputs for events in of_seed])
    result = scored(task_data, FRAME_SEARCH.name, stacked.reshape(len(probes), -1, *stacked.shape[1:]))
    about = {
        "frames_per_track": frames_per_track,
        "num_frames": {"train": len(data.targets), "validation": len(data.validation_targets)},
        "event_settings": [list(one.event_settings) for one in probes],
    }
    return replace(result, choice=choice, seeds=tuple(seeds), probes=tuple(probes), frames=about)


def _probe_data(rows: FeatureRows, task_data: TaskData, period: float) -> ProbeData:
    """The kept frames of training and validation with their targets, without those that are not scored."""
    task, num_train = task_data.task, task_data.split_sizes["train"]
    events = [real_events(track) for split in ("train", "validation") for track in task_data.splits[split].targets]
    bounds = zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    targets = np.concatenate(
        [frame_targets(of, rows.seconds[a:b], task.events, period) for of, (a, b) in zip(events, bounds, strict=True)]
    )
    kept = np.ones(len(targets), bool) if targets.ndim == 2 else targets != UNSCORED[task.events]
    train = np.arange(len(targets)) < rows.offsets[num_train]
    parts = [kept & train, kept & ~train]
    for layer, values in rows.features.items():
        if not np.isfinite(values).all():
            raise ValueError(f"Frames of layer '{layer}' hold NaN, or values beyond the range of float16 (65,504).")
    train_features, validation_features = (
        {layer: values[part] for layer, values in rows.features.items()} for part in parts
    )
    return ProbeData(
        features=train_features,
        targets=targets[parts[0]],
        validation_features=validation_features,
        validation_targets=targets[parts[1]],
        problem_type=task.problem_type,
        num_outputs=len(task.labels),
        primary_metric=task.primary_metric,
        task_name=task.name,
    )


def _with_event_settings(
    probes: Sequence[TrainedProbe], frames: FrameEncoder, task_data: TaskData
) -> list[TrainedProbe]:
    """The probes with what turns their outputs into events best on the validation tracks."""
    task, split, layer = task_data.task, task_data.splits["validation"], probes[0].job.layer
    heard = frames.hear(split.paths, [layer])
    tracks = [(times, [one.predict(values[layer]) for one in probes]) for times, values in heard]
    chosen = []
    for number, one in enumerate(probes):
        outputs = [(times, logits[number]) for times, logits in tracks]

        def score(metric: str, settings: Sequence[float], outputs=outputs) -> float:
            events = [frame_events(logits, times, task.events, settings) for times, logits in outputs]
            return float(get_metric(metric)(split.targets, stack_events(events)))

        if task.events != "beats":
            value = {
                seconds: np.mean([score(metric, [seconds]) for metric in task.value_metrics])
                for seconds in SMOOTHING_SECONDS
            }
            best = (max(value, key=value.get),)
        else:
            best = tuple(
                max(THRESHOLDS, key=lambda threshold, metric=metric: score(metric, [threshold] * 2))
                for metric in ("beat_f_measure", "downbeat_f_measure")
            )
        chosen.append(replace(one, event_settings=best))
    return chosen


def chance_events(task_data: TaskData, search: str) -> ProbeResult:
    """Score of the best events that know the training tracks and the length of a test track, and hear nothing.

    Beats: a grid from 0 on, at the median distance of training beats, with a downbeat at every so many as the median
    training bar has. Chords and melody: the chord, the note that takes most of the training time.
    """
    train, test = task_data.splits["train"], task_data.splits["test"]
    seconds, _ = read_headers(test.paths)
    events = [real_events(track) for track in train.targets]
    if task_data.task.events != "beats":
        every, end = np.concatenate(events), {"chords": NOT_SCORED, "melody": NO_MELODY}[task_data.task.events]
        every = every[every[:, 2] < end]
        label = int(np.bincount(every[:, 2].astype(int), weights=every[:, 1] - every[:, 0]).argmax())
        outputs = [np.array([(0.0, seconds[path], label)]) for path in test.paths]
    else:
        apart = [np.concatenate([[], *(np.diff(of[of[:, 2] == label, 0]) for of in events)]) for label in range(2)]
        beat = float(np.median(apart[0])) if len(apart[0]) else 0.5
        bar = float(np.median(apart[1])) if len(apart[1]) else 4 * beat  # no track tells two downbeats
        outputs = [_grid(seconds[path], beat, max(1, round(bar / beat))) for path in test.paths]
    return scored(task_data, search, stack_events(outputs)[None])


def _grid(seconds: float, beat: float, beats_per_bar: int) -> np.ndarray:
    times = np.arange(0, seconds, beat)
    down = times[::beats_per_bar]
    return np.array([*((time, time, 0) for time in times), *((time, time, 1) for time in down)])


def check_frame_tasks(tasks: Sequence[Task], search: str) -> None:
    """Raise ValueError if a task of events is asked for under a protocol that has none."""
    names = [task.name for task in tasks if task.events]
    if names and search != FRAME_SEARCH.name:
        raise ValueError(
            f"{', '.join(names)}: frames are probed under '{FRAME_SEARCH.name}' only, not under '{search}'."
        )
