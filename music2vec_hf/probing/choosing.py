"""Layer and settings by the validation score, and a note of every layer that was searched.

Row 13 of DESIGN.md section 3. A grid takes minutes to hours for a layer; its outcome is a function of the training
and validation split, the search, the seed and the code, and is kept under that name. A search that was stopped goes
on with the layers that it has no outcome of.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .probes import ProbeData, ProbeJob, layer_features
from .results import library_versions, write_json
from .searches import ProbeSettings, Search
from .training import train_probes

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
        kept_in (`Path`, *optional*): folder where the outcome of each layer is kept, and taken from if it is there.
        progress (`str`, *optional*): label of a progress bar; without it there is none.
    """
    files = {layer: kept_in / f"{_identity(data, layer, search, seed)}.json" for layer in layers} if kept_in else {}
    found = {layer: _read(path) for layer, path in files.items() if path.is_file()}
    missing = [layer for layer in layers if layer not in found]
    total = len(missing) * len(search.settings)
    with tqdm(total=total, desc=progress, unit="probe", disable=progress is None or not total) as bar:
        for group in _groups(missing, len(search.settings)):
            jobs = [ProbeJob(layer, settings, seed) for layer in group for settings in search.settings]
            best: dict[str, dict] = {}
            for trained in train_probes(jobs, data, search, device, finished=bar.update):
                layer = trained.job.layer
                if layer not in best or trained.score > best[layer]["score"]:
                    best[layer] = {"score": float(trained.score), "settings": trained.job.settings}
            for layer in group if kept_in else ():
                write_json(files[layer], best[layer] | {"settings": asdict(best[layer]["settings"])})
            found |= best
    by_layer = {layer: found[layer] for layer in layers}
    layer = max(by_layer, key=lambda name: by_layer[name]["score"])  # the first of equals
    return Choice(layer, by_layer[layer]["settings"], by_layer[layer]["score"], by_layer)


def _groups(layers: Sequence[str], num_settings: int) -> Iterator[Sequence[str]]:
    size = -(-TRAINED_TOGETHER // num_settings)
    return (layers[start : start + size] for start in range(0, len(layers), size))


def _read(path: Path) -> dict:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {"score": stored["score"], "settings": ProbeSettings(**stored["settings"])}


def _identity(data: ProbeData, layer: str, search: Search, seed: int) -> str:
    """Digest of all that the outcome of a layer depends on."""
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
