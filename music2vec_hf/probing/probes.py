"""Probes: their settings, the named searches over them, and what a trained one is.

A probe is a linear map or one hidden layer of ReLU units on frozen features. A search is a protocol's list of settings
with its stopping rule and the layers that it tries.

| | `quick` | `jukemir` | `marble` |
| --- | --- | --- | --- |
| settings | 6 | 216 | 6 learning rates |
| layers | all | all (the paper fixed one by a pilot) | all but `conv`, and `weighted` |
| mini-batches | random samples | random samples | epochs |
| looks at validation | every 20 steps | every 8 steps | every epoch |

`jukemir` is the grid of Castellon et al. 2021 as `jukemir/probe/__init__.py` of p-lambda/jukemir runs it. `marble` is
the constrained track of MARBLE (Yuan et al. 2023, section 3.2 and appendix A; `models/probers.py` of
a43992899/MARBLE-Benchmark). One thing differs: MARBLE trained its heads in fp16, we train them in fp32. `quick` is
meant for minutes on a CPU.

`C` features, `L` summed layers, `H` hidden units, `K` outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import numpy as np
import torch
import torch.nn.functional as F

from music2vec_hf.common.metrics import get_metric

PROBE_KINDS = ("linear", "mlp")
WEIGHTED = "weighted"
"""Name of the layer that is a learned, softmax-weighted sum of the transformer layers (layer 0 is none of them)."""


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of one probe.

    Args:
        dropout (`float`): probability of dropping a hidden unit, in [0, 1).
        dropout_input (`float`): probability of dropping an input feature, in [0, 1).
        weight_decay (`float`): L2 penalty added to the gradient (Adam-coupled), biases too.
        batch_size (`int`): rows in a mini-batch; capped at the size of the training split.
        standardise (`bool`): features get mean 0 and standard deviation 1 over the training split.
    """

    kind: str = "linear"
    learning_rate: float = 1e-3
    dropout: float = 0.0
    dropout_input: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 64
    standardise: bool = True
    hidden_size: int = 512

    def __post_init__(self):
        if self.kind not in PROBE_KINDS:
            raise ValueError(f"There is no probe '{self.kind}'; use one of {', '.join(PROBE_KINDS)}.")
        if not (0 <= self.dropout < 1 and 0 <= self.dropout_input < 1):
            raise ValueError(
                f"`dropout` is {self.dropout} and `dropout_input` {self.dropout_input}; both must lie in [0, 1)."
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.batch_size < 1 or self.hidden_size < 1:
            raise ValueError(
                f"`learning_rate` ({self.learning_rate}), `batch_size` ({self.batch_size}) and `hidden_size` "
                f"({self.hidden_size}) must be positive, `weight_decay` ({self.weight_decay}) must not be negative."
            )

    def sizes(self, num_features: int, num_outputs: int) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear map of the probe."""
        hidden = [self.hidden_size] if self.kind == "mlp" else []
        return list(pairwise([num_features, *hidden, num_outputs]))


def summed_layers(names: Sequence[str]) -> list[str]:
    """Layers that `weighted` sums, first to last: the transformer layers `"1"` to `"L"`, as in MARBLE v1."""
    return sorted((name for name in names if name.isdigit() and name != "0"), key=int)


@dataclass(frozen=True)
class Search:
    """A list of settings, when their training stops, and the layers to try.

    Args:
        settings (`tuple[ProbeSettings, ...]`): in the order in which ties are broken: the first one wins.
        max_steps (`int`, *optional*): optimiser steps at most (epochs, if `epochs`); None sets no limit.
        eval_every (`int`): steps (epochs) between two looks at the validation split.
        patience (`int`): looks without a strictly better score after which training stops.
        epochs (`bool`): False draws every mini-batch anew from the whole training split, without replacement, and
            looks at the untrained probe, too; True goes through the shuffled split again and again, a last smaller
            batch included, and looks first after `eval_every` epochs.
        plateau_patience (`int`, *optional*): halve a learning rate after more than so many looks without a better
            score (`torch.optim.lr_scheduler.ReduceLROnPlateau`); None keeps it.
        weighted (`bool`): try the layer `weighted` beside the single ones, and leave out `conv`.
        by_task (`Mapping[str, Mapping]`): task name to fields that differ for this task; see `for_task`.
    """

    name: str
    settings: tuple[ProbeSettings, ...]
    max_steps: int | None
    eval_every: int
    patience: int
    epochs: bool = False
    plateau_patience: int | None = None
    weighted: bool = False
    by_task: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self):
        if min(1 if self.max_steps is None else self.max_steps, self.eval_every, self.patience) < 1:
            raise ValueError(
                f"`max_steps` ({self.max_steps}), `eval_every` ({self.eval_every}) and `patience` ({self.patience}) "
                "must be 1 or more."
            )

    def for_task(self, task_name: str) -> "Search":
        """This search with the numbers that it states for a task."""
        return replace(self, **self.by_task.get(task_name, {}))

    def layers(self, names: Sequence[str]) -> list[str]:
        """Layers that the search tries, of those that there are features of, in the order in which ties are broken."""
        if not self.weighted:
            return list(names)
        single = [name for name in names if name != "conv"]
        return [*single, WEIGHTED] if len(summed_layers(names)) > 1 else single


def _quick_settings() -> tuple[ProbeSettings, ...]:
    # Settings, steps and patience that came near the best of larger lists on validation splits of the synthetic corpus
    # with MFCC, chroma and mel features. 128 hidden units reached what the 512 of JukeMIR and MARBLE did for a quarter
    # of the time, which is spent on patience: a hidden layer may go on learning late. One probe sees the
    # features as they are: chosen on one half of the validation clips and scored on the other, it took mel features
    # from 0.67 to 0.72 on key and left the other eleven pairs of source and task as they were, or a little better.
    linear = [
        ProbeSettings("linear", learning_rate=rate, dropout_input=dropout)
        for rate, dropout in ((3e-3, 0.25), (3e-3, 0.5), (1e-2, 0.25))
    ]
    as_they_are = ProbeSettings("linear", learning_rate=3e-4, dropout_input=0.25, batch_size=256, standardise=False)
    mlp = [
        ProbeSettings("mlp", learning_rate=rate, dropout=dropout, dropout_input=0.25, hidden_size=128)
        for rate, dropout in ((1e-3, 0.5), (3e-3, 0.25))
    ]
    return (*linear, as_they_are, *mlp)


def _jukemir_settings() -> tuple[ProbeSettings, ...]:
    # `dropout_input` is not a further setting: JukeMIR's code drops inputs with the probability of the hidden units.
    grid = product((False, True), PROBE_KINDS, (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3))
    return tuple(
        ProbeSettings(kind, rate, dropout, dropout, decay, batch_size, standardise)
        for standardise, kind, batch_size, rate, dropout, decay in grid
    )


def _marble_settings() -> tuple[ProbeSettings, ...]:
    rates = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    return tuple(ProbeSettings("mlp", rate, dropout=0.2, batch_size=64, standardise=False) for rate in rates)


# Epochs without a better score: before the rate is halved, before training stops. MARBLE's table; tasks that it does
# not name get the numbers of its emotion, key and singer tasks, which are the defaults of the search.
_TAGGING = {"plateau_patience": 3, "patience": 10}
_MARBLE_BY_TASK = {
    "magnatagatune": _TAGGING,
    "magnatagatune-filtered": _TAGGING,
    "mtg-jamendo-top50": _TAGGING,
    "mtg-jamendo-genre": _TAGGING,
    "mtg-jamendo-instrument": _TAGGING,
    "mtg-jamendo-moodtheme": _TAGGING,
    "nsynth-instrument": _TAGGING | {"max_steps": 50},
    "nsynth-pitch": _TAGGING | {"max_steps": 50},
    "vocalset-technique": {"plateau_patience": 5, "patience": 10},
    "gtzan": {"plateau_patience": 6, "patience": 20},
}


SEARCHES = {
    search.name: search
    for search in (
        Search("quick", _quick_settings(), max_steps=2000, eval_every=20, patience=30),
        Search("jukemir", _jukemir_settings(), max_steps=None, eval_every=8, patience=256),
        Search(
            "marble",
            _marble_settings(),
            max_steps=100,
            eval_every=1,
            patience=20,
            epochs=True,
            plateau_patience=5,
            weighted=True,
            by_task=_MARBLE_BY_TASK,
        ),
    )
}


# Of tasks whose probes answer for every frame. Neighbouring frames are alike: few looks at many of them are enough.
FRAME_SEARCH = Search(
    "quick",
    tuple(ProbeSettings("linear", rate, weight_decay=1e-4, batch_size=512) for rate in (3e-3, 1e-2)),
    max_steps=1000,
    eval_every=100,
    patience=4,
)


def get_search(name: str) -> Search:
    """The search of a name. Raises ValueError if there is none."""
    if name not in SEARCHES:
        raise ValueError(f"There is no search '{name}'; use one of {', '.join(SEARCHES)}.")
    return SEARCHES[name]


@dataclass(frozen=True)
class ProbeJob:
    """One training: these settings on the features of this layer (or of the `weighted` sum), from this seed."""

    layer: str
    settings: ProbeSettings
    seed: int


@dataclass
class TrainedProbe:
    """A trained probe with everything it needs to map raw features to outputs.

    Attributes:
        score (`float`): best validation score, that of the state kept here.
        step (`int`): optimiser step of that state; 0 is the untrained probe.
        parameters (`list[np.ndarray]`): weight `[C, K]` and bias `[K]`, or those of both layers in order.
        feature_mean, feature_scale (`np.ndarray` of shape `(C,)`, or `(L, C)`): features are `(x - mean) / scale`.
        target_mean, target_scale (`np.ndarray` of shape `(K,)`): outputs are `y * scale + mean`; 0 and 1 except for
            regression.
        layer_weights (`np.ndarray` of shape `(L,)`, *optional*): of `weighted`: the layers' shares, their sum is 1.
        ensemble (`str`): how the outputs for the clips of a track are combined, see [`combine`].
        event_settings (`tuple[float, ...]`): what turns outputs for frames into events, see
            `model/events_music2vec.py`.
    """

    job: ProbeJob
    score: float
    step: int
    parameters: list[np.ndarray]
    feature_mean: np.ndarray
    feature_scale: np.ndarray
    target_mean: np.ndarray
    target_scale: np.ndarray
    layer_weights: np.ndarray | None = None
    ensemble: str = "gmean"
    event_settings: tuple[float, ...] = ()

    def predict(self, features: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits or, for regression, values in the targets' units: float32 `(n, K)`.

        `features` are `(n, C)` of the probe's layer, or layer to features, which a probe of `weighted` needs.
        """
        if isinstance(features, Mapping):
            features = layer_features(features, self.job.layer)
        mean, scale = self.feature_mean[..., None, :], self.feature_scale[..., None, :]
        inputs = (np.asarray(features, dtype=np.float32) - mean) / scale
        outputs = inputs if self.layer_weights is None else np.tensordot(self.layer_weights, inputs, axes=1)
        for index in range(0, len(self.parameters), 2):
            outputs = outputs if index == 0 else np.maximum(outputs, 0)
            outputs = outputs @ self.parameters[index] + self.parameters[index + 1]
        return (outputs * self.target_scale + self.target_mean).astype(np.float32)


@dataclass(frozen=True)
class ProbeData:
    """What training may see: the training and the validation split, never the test split.

    Args:
        features (`Mapping[str, np.ndarray]`): layer to training features `[n, C]`; widths may differ between layers.
        targets (`np.ndarray`): one per training row, `(n,)` classes or `(n, K)`.
        target_statistics (`tuple`, *optional*): mean and deviation that standardise the targets of a regression; by
            default those of the training rows.
        validation_tracks (`np.ndarray` of shape `(m,)`, *optional*): track of each validation row, 0, 1, ...; None if
            each row is a track.
        task_name (`str`): for numbers that a search states by task.
    """

    features: Mapping[str, np.ndarray]
    targets: np.ndarray
    validation_features: Mapping[str, np.ndarray]
    validation_targets: np.ndarray
    problem_type: str
    num_outputs: int
    primary_metric: str
    target_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    validation_tracks: np.ndarray | None = None
    task_name: str = ""


def layer_features(features: Mapping[str, np.ndarray], layer: str) -> np.ndarray:
    """Features of a layer `[n, C]`, or those that `weighted` sums `[L, n, C]`. Raises ValueError if there are none."""
    if layer == WEIGHTED and summed_layers(list(features)):
        return np.stack([features[name] for name in summed_layers(list(features))])
    if layer not in features:
        raise ValueError(f"No features for layer {layer}; there are {', '.join(features)}.")
    return features[layer]


ENSEMBLES = ("vote", "max", "gmean", "mean")
"""Ways from outputs for clips to the output of a track, in the order in which ties are broken."""


def combine(outputs: np.ndarray | torch.Tensor, tracks: np.ndarray | torch.Tensor, ensemble: str):
    """Combine the outputs for the clips of each track, in one of the four ways of JukeMIR (and MARBLE v1) for songs.

    | ensemble | output of a track |
    | --- | --- |
    | `vote` | how many of its clips have their largest output at this class |
    | `max` | largest output of its clips |
    | `gmean` | mean output of its clips; for logits the geometric mean of probabilities, up to a factor |
    | `mean` | mean of the softmax of its clips |

    Args:
        outputs (`np.ndarray` or `torch.Tensor` of shape `(..., num_rows, K)`): logits or values, one row per clip.
        tracks (`np.ndarray` or `torch.Tensor` of shape `(num_rows,)`): track of each row, 0 to the number of tracks
            less one, in any order.

    Raises:
        ValueError: if there is no ensemble of this name, or rows and tracks do not fit.
    """
    if ensemble not in ENSEMBLES:
        raise ValueError(f"There is no ensemble '{ensemble}'; use one of {', '.join(ENSEMBLES)}.")
    values, tracks = torch.as_tensor(outputs), torch.as_tensor(tracks)
    if tracks.shape != (values.shape[-2],):
        raise ValueError(f"Outputs have {values.shape[-2]} rows, but `tracks` has shape {tuple(tracks.shape)}.")
    if ensemble == "vote":
        values = F.one_hot(values.argmax(dim=-1), values.shape[-1]).to(values.dtype)
    elif ensemble == "mean":
        values = values.softmax(dim=-1)
    how = {"vote": "sum", "max": "max"}.get(ensemble, "mean")
    order, lengths = tracks.argsort(stable=True), tracks.bincount()
    if not lengths.all():
        raise ValueError(f"Track {int(lengths.argmin())} has no row; every track needs one or more.")
    # Sorted segments instead of scattered additions: these add in one order on every device.
    combined = torch.segment_reduce(values.movedim(-2, 0)[order], how, lengths=lengths, axis=0).movedim(0, -2)
    return combined if isinstance(outputs, torch.Tensor) else combined.numpy()


def track_scores(
    metric: str, references: torch.Tensor, outputs: torch.Tensor, tracks: torch.Tensor | None = None
) -> list[tuple[float, str]]:
    """Score and ensemble of every probe, `P` of them, over tracks, each by the ensemble that is best for it.

    For keys all four ensembles are tried, the first of equals wins; every other task takes the mean of the outputs.

    Args:
        outputs (`torch.Tensor` of shape `[P, num_rows, K]`): of the probes.
        tracks (`torch.Tensor` of shape `[num_rows]`, *optional*): track of each row; None if rows are tracks.

    Raises:
        ValueError: if an output is not finite.
    """
    if not torch.isfinite(outputs).all():
        raise ValueError("A probe gave outputs that are not finite; lower its learning rate or check the features.")
    score = get_metric(metric)
    if tracks is None:
        return [(value, "gmean") for value in score(references, outputs).tolist()]
    names = ENSEMBLES if metric == "weighted_key_score" else ("gmean",)
    by_ensemble = torch.stack([score(references, combine(outputs, tracks, name)) for name in names])
    best = by_ensemble.argmax(dim=0).tolist()
    return [(by_ensemble[way, probe].item(), names[way]) for probe, way in enumerate(best)]
