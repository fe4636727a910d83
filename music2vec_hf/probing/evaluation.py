"""One source on one task: rows of a protocol, layer and settings chosen on validation, then one score on test.

The choice is made without the test split. Then the chosen probe alone is trained from several seeds and scored on the
test tracks: the score of a layer that was not chosen is never computed. The validation score of every probe of a
search is kept, so that a search that was stopped goes on with the settings that it lacks.

A row is one training example of a probe. A track may have several; their outputs are combined before it is scored:

| protocol | task | rows of a track |
| --- | --- | --- |
| `quick`, `jukemir` | most | one: the mean over its windows, weighted by their frames |
| all | with `Task.clip_seconds` | one per whole clip from the start, what remains is dropped (JukeMIR) |
| `marble` | most | one per window, each of equal weight; a last window below 1 s is dropped (MARBLE v1) |
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music2vec_hf.audio.labels import name_some
from music2vec_hf.common.metrics import scorable_tags
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.probing.probes import (
    WEIGHTED,
    ProbeData,
    ProbeJob,
    ProbeSettings,
    Search,
    TrainedProbe,
    combine,
    get_search,
    layer_features,
)
from music2vec_hf.probing.scores import Predictions, library_versions, score_predictions
from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.loading import CLIP_TOLERANCE_SECONDS
from music2vec_hf.probing.training import train_probes

CHANCE, PILOT, MARBLE = "chance", "pilot", "marble"
SHORTEST_WINDOW_SECONDS = 1.0
# Probes enough for a batched computation: `jukemir` searches layer by layer, `quick` many layers at once.
TRAINED_TOGETHER = 64


def row_seconds(task: Task, protocol: str, window_seconds: float) -> float | None:
    """Length of a row: the task's clip (ValueError if windows do not divide it), a window, or None: a whole track."""
    if task.clip_seconds is None:
        return window_seconds if protocol == MARBLE else None
    windows = task.clip_seconds / window_seconds
    if round(windows) < 1 or abs(windows - round(windows)) > 1e-6:
        raise ValueError(
            f"The task '{task.name}' hears clips of {task.clip_seconds:g} s, which windows of {window_seconds:g} s do "
            f"not divide; use windows of {task.clip_seconds:g} s or of a whole fraction of that."
        )
    return task.clip_seconds


@dataclass(frozen=True)
class SelectedRows:
    """The rows of a task, with what was left out on the way.

    Attributes:
        rows (`FeatureRows`): of the task's tracks, in the order of `TaskData.paths`.
        dropped (`dict[str, int]`): split to the number of rows at the end of tracks that the protocol drops.
        affected (`dict[str, tuple[str, ...]]`): sentence on songs that hold fewer clips than they state, to the songs.
    """

    rows: FeatureRows
    row_seconds: float | None = None
    dropped: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    affected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, task_data: TaskData, split: str) -> FeatureRows:
        """The rows of one split."""
        tracks = task_data.rows(split)
        return self.rows.take(np.arange(tracks.start, tracks.stop))


def select_rows(rows: FeatureRows, task_data: TaskData, seconds: float | None) -> SelectedRows:
    """Keep the rows that a task's protocol wants, of `rows` that are each of `seconds` (from [`row_seconds`])."""
    if seconds is None:
        return SelectedRows(rows)
    there, affected = rows.rows_per_track, {}
    if task_data.task.clip_seconds is None:
        last = rows.seconds[rows.offsets[1:] - 1]
        kept = there - ((last < SHORTEST_WINDOW_SECONDS) & (there > 1))
    else:
        stated = np.concatenate([task_data.splits[split].num_clips for split in SPLITS])
        kept = np.minimum(there, stated)
        # mp3 headers and decoders disagree by a little, damage makes a song shorter by much.
        short = rows.seconds[rows.offsets[:-1] + kept - 1] < seconds - CLIP_TOLERANCE_SECONDS
        short = (kept < stated) | (short & (stated > 1))
        if short.any():
            ids = [track_id for split in SPLITS for track_id in task_data.splits[split].track_ids]
            songs = tuple(np.asarray(ids)[short].tolist())
            named = f"songs decode to fewer whole clips than their headers state: {name_some(songs)}."
            affected = {f"{len(songs)} {named}": songs}
    chosen = np.concatenate([np.arange(first, first + n) for first, n in zip(rows.offsets[:-1], kept, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    dropped = {split: int((there - kept)[task_data.rows(split)].sum()) for split in SPLITS}
    return SelectedRows(rows.chosen(chosen, offsets), seconds, dropped, affected)


@dataclass(frozen=True)
class Choice:
    """What the validation split chose: `layer`, `settings` and their `score`; of equals the earlier layer and setting.

    `by_layer` maps each layer to its best validation `score` and the `settings` that gave it.
    """

    layer: str
    settings: ProbeSettings
    score: float
    by_layer: dict[str, dict]


def choose_probe(
    data: ProbeData,
    layers: Sequence[str],
    search: Search,
    seed: int = 0,
    device: str = "cpu",
    kept_in: Path | None = None,
    progress: str | None = None,
    trained_together: int = TRAINED_TOGETHER,
) -> Choice:
    """Choose layer and settings by the validation score. The test split is not an argument.

    Args:
        kept_in (`Path`, *optional*): folder where the score of each probe is kept, and taken from if it is there.
        progress (`str`, *optional*): label of a progress bar; without it there is none.
        trained_together (`int`): layers are trained together, as a whole, until they are so many probes or more.
    """
    notes = {layer: kept_in and kept_in / f"{_identity(data, layer, search, seed)}.jsonl" for layer in layers}
    scores = {layer: _kept_scores(notes[layer]) for layer in layers}
    numbers = range(len(search.settings))
    missing = [(layer, number) for layer in layers for number in numbers if number not in scores[layer]]
    with tqdm(total=len(missing), desc=progress, unit="probe", disable=progress is None or not missing) as bar:
        for group in _groups(missing, trained_together):

            def finished(place: int, trained: TrainedProbe, group=group) -> None:
                layer, number = group[place]
                scores[layer][number] = trained.score
                _keep_score(notes[layer], number, trained.score)
                bar.update()

            jobs = [ProbeJob(layer, search.settings[number], seed) for layer, number in group]
            train_probes(jobs, data, search, device, finished=finished)
    by_layer = {}
    for layer in layers:
        best = max(numbers, key=scores[layer].__getitem__)  # the first of equals, here and below
        by_layer[layer] = {"score": scores[layer][best], "settings": search.settings[best]}
    layer = max(by_layer, key=lambda name: by_layer[name]["score"])
    return Choice(layer, by_layer[layer]["settings"], by_layer[layer]["score"], by_layer)


def _groups(missing: Sequence[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    """Layers and numbers of settings in groups of whole layers, each of `size` or more where it can be."""
    groups: list[list[tuple[str, int]]] = []
    for layer, number in missing:
        if not groups or (len(groups[-1]) >= size and layer != groups[-1][-1][0]):
            groups.append([])
        groups[-1].append((layer, number))
    return groups


def _keep_score(path: Path | None, number: int, score: float) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        # The end of the line comes first: a line that a kill has cut stays alone.
        file.write("\n" + json.dumps({"setting": number, "score": score}))


def _kept_scores(path: Path | None) -> dict[int, float]:
    """Score by number of the setting, as far as a search has come."""
    scores = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.is_file() else ():
        try:
            stored = json.loads(line)
            scores[stored["setting"]] = stored["score"]
        except (ValueError, TypeError, KeyError):
            continue  # empty, or cut by a kill: trained anew
    return scores


def _identity(data: ProbeData, layer: str, search: Search, seed: int) -> str:
    """Digest of all that the scores of a layer depend on."""
    versions = library_versions()
    about = (layer, search.for_task(data.task_name), seed, versions["music2vec_hf"], versions["torch"])
    task = (data.problem_type, data.num_outputs, data.primary_metric, data.target_statistics)
    digest = hashlib.blake2b(repr((about, task)).encode(), digest_size=16)
    features = (layer_features(values, layer) for values in (data.features, data.validation_features))
    for array in (*features, data.targets, data.validation_targets, data.validation_tracks):
        array = np.ascontiguousarray(array if array is not None else [])
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array)
    return digest.hexdigest()


@dataclass(frozen=True)
class ProbeResult:
    """Result of one source on one task.

    Attributes:
        scores (`dict[str, dict]`): metric to value, spread, values per seed and interval; see `score_predictions`.
        excluded_tags (`dict[str, list[str]]`): split to the tags it cannot score.
        predictions (`Predictions`): outputs for every test track and seed.
        differences (`tuple[str, ...]`): how the data differs from the benchmark's, see `TaskData`.
        choice (`Choice` or `None`): layer and settings; None for a predictor without features.
        probes (`tuple[TrainedProbe, ...]`): the chosen probe, trained from each seed.
        rows (`dict`): `row_seconds` (None: a row is a whole track), `num_rows` and `dropped_rows` by split.
        pilot (`Choice` or `None`): what `quick` chose, if that alone decided on the layer.
        frames (`dict` or `None`): of a task of events, `frames_per_track` that were kept, `num_frames` by split, and
            `event_settings` of each seed's probe.
    """

    task: Task
    search: str
    scores: dict[str, dict]
    split_sizes: dict[str, int]
    excluded_tags: dict[str, list[str]]
    predictions: Predictions
    differences: tuple[str, ...] = ()
    choice: Choice | None = None
    seeds: tuple[int, ...] = ()
    probes: tuple[TrainedProbe, ...] = ()
    rows: dict | None = None
    pilot: Choice | None = None
    frames: dict | None = None


def layers_to_try(names: Sequence[str], search: Search, layers: str | Sequence[str] | None = None) -> list[str]:
    """Layers that a search tries, or those of them that the user asked for.

    Args:
        search (`Search`): it may leave layers out (`conv` under `marble`) or add one (`weighted`).
        layers (`str` or `Sequence[str]`, *optional*): names; None and `"pilot"` mean all.

    Raises:
        ValueError: if a name is not one of the search's layers.
    """
    known = search.layers(names)
    if layers is None or layers == PILOT:
        return known
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        raise ValueError(f"There is no layer {', '.join(unknown)} to try under '{search.name}': {', '.join(known)}.")
    if not layers:
        raise ValueError(f"No layer is named to try under '{search.name}': {', '.join(known)}.")
    return list(layers)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless there are seeds and all are different."""
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` is {tuple(seeds)}, but it must hold one or more different seeds.")


def probe(
    features: Mapping[str, np.ndarray] | SelectedRows,
    task_data: TaskData,
    search: str | Search = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    layers: str | Sequence[str] | None = None,
    **notes,
) -> ProbeResult:
    """Probe frozen features on one task.

    Layer and settings are chosen by the validation score (trainings from the first seed); the chosen probe is then
    trained from every seed and scored on the test split.

    Args:
        features: layer to features `[n, C]`, rows in the order of `task_data.paths`; or a protocol's rows of them
            (`select_rows`).
        layers (`str` or `Sequence[str]`, *optional*): layers to try; by default all of the search; `"pilot"`: only the
            one that the search `quick` chooses on validation.
        notes: `kept_in` and `progress` of [`choose_probe`].

    Raises:
        ValueError: if features do not fit the task, seeds are missing or a layer is unknown.
    """
    check_seeds(seeds)
    search, selected = get_search(search) if isinstance(search, str) else search, _checked(features, task_data)
    parts = {split: selected.split(task_data, split) for split in SPLITS}
    data = _probe_data(parts["train"], parts["validation"], task_data)
    tried, pilot = layers_to_try(list(data.features), search, layers), None
    if layers == PILOT and len(tried) > 1:
        single = [name for name in tried if name != WEIGHTED]
        pilot = choose_probe(data, single, get_search("quick"), seeds[0], device, **notes)
        tried = [pilot.layer]
    choice = choose_probe(data, tried, search, seeds[0], device, **notes)
    trained = train_probes([ProbeJob(choice.layer, choice.settings, seed) for seed in seeds], data, search, device)
    outputs, tracks = [one.predict(parts["test"].features) for one in trained], _several_rows(parts["test"])
    if tracks is not None:
        outputs = [combine(clips, tracks, one.ensemble) for clips, one in zip(outputs, trained, strict=True)]
    sizes = {split: int(part.offsets[-1]) for split, part in parts.items()}
    return replace(
        scored(task_data, search.name, np.stack(outputs)),
        differences=(*task_data.differences, *selected.affected),
        choice=choice,
        seeds=tuple(seeds),
        probes=tuple(trained),
        rows={"row_seconds": selected.row_seconds, "num_rows": sizes, "dropped_rows": dict(selected.dropped)},
        pilot=pilot,
    )


def chance_result(task_data: TaskData, search: str = "quick") -> ProbeResult:
    """Score of the best predictor that knows the training targets and hears nothing.

    Single label: the most frequent training class for every track. Multi-label: the share of training tracks with each
    tag. Regression: the mean of the training targets.
    """
    targets, task = task_data.splits["train"].targets, task_data.task
    if task.problem_type == "single_label_classification":
        outputs = np.bincount(targets, minlength=len(task.labels))
    else:
        outputs = targets.mean(axis=0)
    return scored(task_data, search, np.tile(outputs.astype(np.float32), (1, task_data.split_sizes["test"], 1)))


def _checked(features: Mapping[str, np.ndarray] | SelectedRows, task_data: TaskData) -> SelectedRows:
    selected = features if isinstance(features, SelectedRows) else SelectedRows(FeatureRows.one_per_track(features))
    rows, num_tracks = selected.rows, sum(task_data.split_sizes.values())
    if not rows.features:
        raise ValueError("There are no features to probe.")
    for layer, values in rows.features.items():
        if values.ndim != 2 or len(values) != rows.offsets[-1] or len(rows.offsets) != num_tracks + 1:
            raise ValueError(
                f"Features of layer '{layer}' have shape {values.shape}, but the task has {num_tracks} tracks: pass "
                "[tracks, channels] with rows in the order of `task_data.paths`."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"Features of layer '{layer}' hold NaN or infinite values.")
    return selected


def _several_rows(rows: FeatureRows) -> np.ndarray | None:
    """Track of each row; None if each track is one row."""
    return rows.tracks if (rows.rows_per_track != 1).any() else None


def _probe_data(train: FeatureRows, validation: FeatureRows, task_data: TaskData) -> ProbeData:
    task, splits = task_data.task, task_data.splits
    return ProbeData(
        features=train.features,
        targets=splits["train"].targets[train.tracks],
        validation_features=validation.features,
        validation_targets=splits["validation"].targets,
        problem_type=task.problem_type,
        num_outputs=len(task.labels),
        primary_metric=task.primary_metric,
        target_statistics=task.target_statistics,
        validation_tracks=_several_rows(validation),
        task_name=task.name,
    )


def scored(task_data: TaskData, search: str, outputs: np.ndarray) -> ProbeResult:
    """The result of outputs for the test tracks of every seed, `(num_seeds, num_tracks, K)`, or events."""
    task, test, excluded = task_data.task, task_data.splits["test"], {}
    predictions = Predictions(task.name, task.labels, test.track_ids, test.targets, outputs)
    if task.problem_type == "multi_label_classification" and not task.events:
        for split in ("validation", "test"):
            usable = scorable_tags(task_data.splits[split].targets)
            excluded[split] = [label for label, use in zip(task.labels, usable, strict=True) if not use]
    scores = score_predictions(predictions, task.metrics)
    return ProbeResult(task, search, scores, task_data.split_sizes, excluded, predictions, task_data.differences)
