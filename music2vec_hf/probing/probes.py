"""What a probe is: a linear map or one hidden layer of ReLU units on frozen features, and what training it may see.

Row 13 of DESIGN.md section 3. `C` features, `L` summed layers, `H` hidden units, `K` outputs. `training.py` trains
probes, `searches.py` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from music2vec_hf.probing.searches import WEIGHTED, ProbeSettings, summed_layers


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
        job (`ProbeJob`): what was trained.
        score (`float`): best validation score, that of the state kept here.
        step (`int`): optimiser step of that state; 0 is the untrained probe.
        parameters (`list[np.ndarray]`): weight `[C, K]` and bias `[K]`, or those of both layers in order.
        feature_mean, feature_scale (`np.ndarray` of shape `(C,)`, or `(L, C)`): features are `(x - mean) / scale`.
        target_mean, target_scale (`np.ndarray` of shape `(K,)`): outputs are `y * scale + mean`; 0 and 1 except for
            regression.
        layer_weights (`np.ndarray` of shape `(L,)`, *optional*): of `weighted`: the layers' shares, their sum is 1.
        ensemble (`str`): how the outputs for the clips of a track are combined, see `ensembles.combine`.
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

    def predict(self, features: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Map features to logits or, for regression, values in the targets' units.

        Args:
            features (`np.ndarray` of shape `(n, C)`, or `Mapping[str, np.ndarray]`): of the probe's layer; or layer to
                features, which a probe of `weighted` needs.

        Returns:
            `np.ndarray` of shape `(n, K)`, float32.
        """
        if isinstance(features, Mapping):
            features = layer_features(features, self.job.layer)
        inputs = (np.asarray(features, dtype=np.float32) - self.feature_mean[..., None, :]) / self.feature_scale[
            ..., None, :
        ]
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
        validation_features (`Mapping[str, np.ndarray]`): layer to features `[m, C]` of the validation split.
        validation_targets (`np.ndarray`): one per validation track.
        problem_type (`str`): `single_label_classification`, `multi_label_classification` or `regression`.
        num_outputs (`int`): `K`.
        primary_metric (`str`): metric that early stopping and the choice look at.
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
    """Features of a layer `[n, C]`, or those that `weighted` sums `[L, n, C]`.

    Raises:
        ValueError: if there are none.
    """
    if layer == WEIGHTED and summed_layers(list(features)):
        return np.stack([features[name] for name in summed_layers(list(features))])
    if layer not in features:
        raise ValueError(f"No features for layer {layer}; there are {', '.join(features)}.")
    return features[layer]
