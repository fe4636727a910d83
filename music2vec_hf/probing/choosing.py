"""Layer and settings by the validation score, and a note of every probe that was trained for it.

Row 13 of DESIGN.md section 3. A grid takes minutes to hours for a layer; its scores are a function of the training
and validation split, the search, the seed and the code, and are kept under that name. A search that was stopped goes
on with the settings that it has no score of.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music2vec_hf.probing.probes import ProbeData, ProbeJob, TrainedProbe, layer_features
from music2vec_hf.probing.results import library_versions
from music2vec_hf.probing.searches import ProbeSettings, Search
from music2vec_hf.probing.training import train_probes

TRAINED_TOGETHER = 64
"""Probes enough for a batched computation: `jukemir` searches layer by layer, `quick` many layers at once."""


@dataclass(frozen=True)
class Choice:
    """What the validation split chose.

    Attributes:
        layer (`str`), settings (`ProbeSettings`): the winner; ties fall to the earlier layer and setting.
        score (`float`): its validation score.
        by_layer (`dict[str, dict]`): layer to its best validation `score` and the `settings` that gave it.
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
) -> Choice:
    """Choose layer and settings by the validation score. The test split is not an argument.

    Args:
        data (`ProbeData`): training and validation split.
        layers (`Sequence[str]`): layers to try, in the order in which ties are broken.
        search (`Search`): settings to try on every layer.
        seed (`int`): seed of all trainings of the search.
        device (`str`): torch device.
        kept_in (`Path`, *optional*): folder where the score of each probe is kept, and taken from if it is there.
        progress (`str`, *optional*): label of a progress bar; without it there is none.
    """
    kept = {layer: kept_in / f"{_identity(data, layer, search, seed)}.jsonl" for layer in layers} if kept_in else {}
    scores = {layer: _read(kept[layer]) if kept else {} for layer in layers}
    numbers = range(len(search.settings))
    missing = [(layer, number) for layer in layers for number in numbers if number not in scores[layer]]
    with tqdm(total=len(missing), desc=progress, unit="probe", disable=progress is None or not missing) as bar:
        for group in _groups(missing):

            def finished(place: int, trained: TrainedProbe, group=group) -> None:
                layer, number = group[place]
                scores[layer][number] = trained.score
                if kept:
                    _append(kept[layer], number, trained.score)
                bar.update()

            jobs = [ProbeJob(layer, search.settings[number], seed) for layer, number in group]
            train_probes(jobs, data, search, device, finished=finished)
    by_layer = {}
    for layer in layers:
        best = max(numbers, key=scores[layer].__getitem__)  # the first of equals, here and below
        by_layer[layer] = {"score": scores[layer][best], "settings": search.settings[best]}
    layer = max(by_layer, key=lambda name: by_layer[name]["score"])
    return Choice(layer, by_layer[layer]["settings"], by_layer[layer]["score"], by_layer)


def _groups(missing: Sequence[tuple[str, int]]) -> Iterator[Sequence[tuple[str, int]]]:
    """Layers and numbers of settings in groups of whole layers, each of `TRAINED_TOGETHER` or more where there are."""
    group: list[tuple[str, int]] = []
    for layer, number in missing:
        if len(group) >= TRAINED_TOGETHER and layer != group[-1][0]:
            yield group
            group = []
        group.append((layer, number))
    if group:
        yield group


def _append(path: Path, number: int, score: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        # The end of the line comes first: a line that a kill has cut stays alone.
        file.write("\n" + json.dumps({"setting": number, "score": score}))


def _read(path: Path) -> dict[int, float]:
    """Score by number of the setting, as far as a search has come."""
    scores = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
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
