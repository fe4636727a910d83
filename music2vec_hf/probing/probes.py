"""Probes on frozen features, many of one shape trained together as one batched computation.

Row 13 of DESIGN.md section 3. A probe is a linear map or one hidden layer of ReLU units. `P` probes in a batch, `B`
tracks in a mini-batch, `C` features, `H` hidden units, `K` outputs. The mini-batch and the dropout draw of a probe
depend on its seed and the step only, so a probe gives the same result whatever it is trained beside.

Losses: cross-entropy over classes; binary cross-entropy with logits, mean over tags; mean squared error over
dimensions, on targets standardised with mean and standard deviation of the training split (predictions are given back
in the targets' own units). Optimiser: Adam with its usual betas.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.adam import adam

from .searches import ProbeSettings, Search
from .selection import selection_scores

MAX_PARAMETERS = 64_000_000
"""Parameters trained together at most; with gradient, two moments and the best state they take 20 bytes each."""


@dataclass(frozen=True)
class ProbeJob:
    """One training: these settings on the features of this layer, from this seed."""

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
        feature_mean, feature_scale (`np.ndarray` of shape `(C,)`): features are `(x - mean) / scale`.
        target_mean, target_scale (`np.ndarray` of shape `(K,)`): outputs are `y * scale + mean`; 0 and 1 except for
            regression.
    """

    job: ProbeJob
    score: float
    step: int
    parameters: list[np.ndarray]
    feature_mean: np.ndarray
    feature_scale: np.ndarray
    target_mean: np.ndarray
    target_scale: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Map features `[n, C]` to logits or, for regression, values in the targets' units, `[n, K]` float32."""
        outputs = (np.asarray(features, dtype=np.float32) - self.feature_mean) / self.feature_scale
        for index in range(0, len(self.parameters), 2):
            outputs = outputs if index == 0 else np.maximum(outputs, 0)
            outputs = outputs @ self.parameters[index] + self.parameters[index + 1]
        return (outputs * self.target_scale + self.target_mean).astype(np.float32)


@dataclass(frozen=True)
class ProbeData:
    """What training may see: the training and the validation split, never the test split.

    Args:
        features (`Mapping[str, np.ndarray]`): layer to training features `[n, C]`; widths may differ between layers.
        targets (`np.ndarray`): training targets, `(n,)` classes or `(n, K)`.
        validation_features, validation_targets: the same for the validation split.
        problem_type (`str`): `single_label_classification`, `multi_label_classification` or `regression`.
        num_outputs (`int`): `K`.
        primary_metric (`str`): metric that early stopping and the choice look at.
        target_statistics (`tuple`, *optional*): mean and deviation that standardise the targets of a regression; by
            default those of the training split.
    """

    features: Mapping[str, np.ndarray]
    targets: np.ndarray
    validation_features: Mapping[str, np.ndarray]
    validation_targets: np.ndarray
    problem_type: str
    num_outputs: int
    primary_metric: str
    target_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    """Generator that is a function of what it is for and the numbers."""
    text = ",".join([purpose, *map(str, numbers)])
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
    return torch.Generator().manual_seed(seed)


def _initial_parameters(job: ProbeJob, num_features: int, num_outputs: int) -> list[torch.Tensor]:
    """Weights and biases drawn as `torch.nn.Linear` draws them: uniform within 1 / sqrt(inputs)."""
    hidden = [job.settings.hidden_size] if job.settings.kind == "mlp" else []
    sizes = [num_features, *hidden, num_outputs]
    generator = _generator("initial", job.seed)
    parameters = []
    for inputs, outputs in pairwise(sizes):
        for shape in ((inputs, outputs), (1, outputs)):
            parameters.append((torch.rand(shape, generator=generator) * 2 - 1) / inputs**0.5)
    return parameters


def _loss(problem_type: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over probes of the mean loss of each; the sum keeps the gradients of the probes apart."""
    if problem_type == "single_label_classification":
        each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    elif problem_type == "multi_label_classification":
        each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    else:
        each = (outputs - targets) ** 2
    return each.reshape(len(outputs), -1).mean(dim=1).sum()


def _statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over rows; a constant column keeps its scale."""
    values = np.asarray(values, dtype=np.float64)
    deviation = values.std(axis=0)
    return values.mean(axis=0).astype(np.float32), np.where(deviation > 1e-8, deviation, 1).astype(np.float32)


@dataclass
class _Group:
    """Probes of one shape under training: parameters, Adam's moments and best states, each stacked over probes."""

    jobs: list[ProbeJob]
    layers: torch.Tensor  # [P], which row of the stacked features a probe reads
    parameters: list[torch.Tensor]
    first_moments: list[torch.Tensor]
    second_moments: list[torch.Tensor]
    best_parameters: list[torch.Tensor]
    best_scores: torch.Tensor  # [P], on the CPU
    best_steps: list[int]
    waited: list[int]  # looks since the last better score
    numbers: list[int]  # position of each probe in the caller's list
    finished: dict = field(default_factory=dict)  # number -> (score, step, parameters)

    def keep(self, alive: list[int]) -> None:
        """Drop every probe but those at the positions `alive`."""
        index = torch.tensor(alive, dtype=torch.long, device=self.layers.device)
        for name in ("parameters", "first_moments", "second_moments", "best_parameters"):
            setattr(self, name, [tensor[index].contiguous() for tensor in getattr(self, name)])
        self.layers = self.layers[index]
        self.best_scores = self.best_scores[index.cpu()]
        for name in ("jobs", "best_steps", "waited", "numbers"):
            setattr(self, name, [getattr(self, name)[position] for position in alive])


def _forward(parameters: list[torch.Tensor], inputs: torch.Tensor, hidden_mask: torch.Tensor | None) -> torch.Tensor:
    """Outputs `[P, B, K]` of stacked probes for inputs `[P, B, C]`."""
    outputs = torch.baddbmm(parameters[1], inputs, parameters[0])
    if len(parameters) == 4:
        outputs = F.relu(outputs)
        if hidden_mask is not None:
            outputs = outputs * hidden_mask
        outputs = torch.baddbmm(parameters[3], outputs, parameters[2])
    return outputs


def _dropout_masks(group: _Group, attribute: str, purpose: str, step: int, shape: tuple[int, int]):
    """Masks `[P, B, width]` with values 0 or 1 / (1 - p).

    Probes of equal seed share the uniform draw and cut it at their own probability. That is cheap (random numbers
    would otherwise cost more than the products), and makes settings comparable: they see the same luck.
    """
    device = group.layers.device
    probabilities = [getattr(job.settings, attribute) for job in group.jobs]
    probabilities = torch.tensor(probabilities, device=device)[:, None, None]
    if not probabilities.any():
        return None
    seeds = sorted({job.seed for job in group.jobs})
    draws = torch.stack([torch.rand(shape, generator=_generator(purpose, seed, step)) for seed in seeds]).to(device)
    rows = torch.tensor([seeds.index(job.seed) for job in group.jobs], device=device)
    draws = draws if len(seeds) == 1 else draws[rows]
    return (draws >= probabilities) / (1 - probabilities)


def _batch_rows(group: _Group, step: int, num_tracks: int, batch_size: int) -> torch.Tensor:
    """Rows `[P, B]` of the training split, drawn without replacement from (seed, step)."""
    drawn = {}
    for seed in {job.seed for job in group.jobs}:
        drawn[seed] = torch.randperm(num_tracks, generator=_generator("rows", seed, step))[:batch_size]
    return torch.stack([drawn[job.seed] for job in group.jobs]).to(group.layers.device)


def _adam_step(group: _Group, gradients: list[torch.Tensor], step: int) -> None:
    """One Adam step of every probe, each with its own learning rate and weight decay."""
    rates = [(job.settings.learning_rate, job.settings.weight_decay) for job in group.jobs]
    start = 0
    while start < len(rates):
        stop = start
        while stop < len(rates) and rates[stop] == rates[start]:
            stop += 1
        part = [
            [tensor[start:stop] for tensor in tensors]
            for tensors in (group.parameters, gradients, group.first_moments, group.second_moments)
        ]
        steps = [torch.tensor(float(step - 1), device=group.layers.device) for _ in gradients]
        adam(
            *part,
            [],
            steps,
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rates[start][0],
            weight_decay=rates[start][1],
            eps=1e-8,
            maximize=False,
        )
        start = stop


def _train_step(group: _Group, features: torch.Tensor, targets: torch.Tensor, step: int, problem_type: str) -> None:
    batch_size = min(group.jobs[0].settings.batch_size, features.shape[1])
    rows = _batch_rows(group, step, features.shape[1], batch_size)
    inputs = features[group.layers[:, None], rows]  # [P, B, C]
    input_mask = _dropout_masks(group, "dropout_input", "input", step, (batch_size, features.shape[2]))
    if input_mask is not None:
        inputs = inputs * input_mask
    hidden_mask = None
    if len(group.parameters) == 4:
        hidden_mask = _dropout_masks(group, "dropout", "hidden", step, (batch_size, group.parameters[0].shape[2]))
    leaves = [parameter.detach().requires_grad_(True) for parameter in group.parameters]
    loss = _loss(problem_type, _forward(leaves, inputs, hidden_mask), targets[rows])
    _adam_step(group, list(torch.autograd.grad(loss, leaves)), step)


def _look(group: _Group, tensors: dict, step: int, metric: str, patience: int) -> None:
    """Score every probe on the validation split and keep the states that are strictly better than before."""
    with torch.no_grad():
        outputs = _forward(group.parameters, tensors["validation_features"][group.layers], None)
    scores = selection_scores(metric, tensors["validation_targets"], outputs)
    for position in range(len(group.jobs)):
        if group.waited[position] >= patience:
            continue  # it has stopped and only waits to be taken out of the batch
        if scores[position] > group.best_scores[position]:
            group.best_scores[position] = scores[position]
            group.best_steps[position], group.waited[position] = step, 0
            for best, now in zip(group.best_parameters, group.parameters, strict=True):
                best[position].copy_(now[position])
        elif step > 0:
            group.waited[position] += 1


def _retire(group: _Group, patience: int, everyone: bool) -> None:
    """Take probes that have waited long enough out of the batch."""
    done = [everyone or waited >= patience for waited in group.waited]
    # Leaving costs a copy of all that stay, so wait until a fifth of the batch can go.
    if sum(done) < max(1, len(done) // 5) and not everyone:
        return
    for position in np.flatnonzero(done):
        state = [tensor[position].cpu().numpy() for tensor in group.best_parameters]
        result = float(group.best_scores[position]), group.best_steps[position], state
        group.finished[group.numbers[position]] = result
    group.keep([position for position, gone in enumerate(done) if not gone])


def _train_group(
    numbered: list[tuple[int, ProbeJob]], tensors: dict, search: Search, data: ProbeData, device: str
) -> dict:
    """Train probes of one shape; returns number -> (score, step, parameters)."""
    jobs = [job for _, job in numbered]
    num_features = tensors["features"].shape[2]
    initial = [_initial_parameters(job, num_features, data.num_outputs) for job in jobs]
    parameters = [torch.stack(part).to(device) for part in zip(*initial, strict=True)]
    group = _Group(
        jobs=jobs,
        layers=torch.tensor([tensors["rows"][job.layer] for job in jobs], device=device),
        parameters=parameters,
        first_moments=[torch.zeros_like(parameter) for parameter in parameters],
        second_moments=[torch.zeros_like(parameter) for parameter in parameters],
        best_parameters=[parameter.clone() for parameter in parameters],
        best_scores=torch.full((len(jobs),), -torch.inf, dtype=torch.float64),
        best_steps=[0] * len(jobs),
        waited=[0] * len(jobs),
        numbers=[number for number, _ in numbered],
    )
    _look(group, tensors, 0, data.primary_metric, search.patience)
    for step in range(1, search.max_steps + 1):
        _train_step(group, tensors["features"], tensors["targets"], step, data.problem_type)
        if step % search.eval_every == 0 or step == search.max_steps:
            _look(group, tensors, step, data.primary_metric, search.patience)
            _retire(group, search.patience, everyone=step == search.max_steps)
        if not group.jobs:
            break
    return group.finished


def _group_key(job: ProbeJob, data: ProbeData) -> tuple:
    settings = job.settings
    width = data.features[job.layer].shape[1]
    return settings.kind, settings.batch_size, settings.standardise, settings.hidden_size, width


def _group_tensors(layers: list[str], standardise: bool, data: ProbeData, device: str) -> tuple[dict, dict]:
    """Stacked features of the layers `[F, n, C]` and targets as tensors, and the statistics of each layer."""
    statistics = {}
    for layer in layers:
        width = data.features[layer].shape[1]
        plain = np.zeros(width, dtype=np.float32), np.ones(width, dtype=np.float32)
        statistics[layer] = _statistics(data.features[layer]) if standardise else plain

    def stack(features: Mapping[str, np.ndarray]) -> torch.Tensor:
        scaled = [(features[layer] - statistics[layer][0]) / statistics[layer][1] for layer in layers]
        return torch.as_tensor(np.stack(scaled).astype(np.float32), device=device)

    tensors = {
        "rows": {layer: row for row, layer in enumerate(layers)},
        "features": stack(data.features),
        "validation_features": stack(data.validation_features),
    }
    return tensors, statistics


def _target_tensors(data: ProbeData, device: str) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Targets as tensors; those of a regression standardised with the training split's statistics."""
    mean, scale = np.zeros(data.num_outputs, np.float32), np.ones(data.num_outputs, np.float32)
    if data.problem_type == "regression":
        mean, scale = np.float32(data.target_statistics or _statistics(data.targets))
    tensors = {}
    for name in ("targets", "validation_targets"):
        targets = np.asarray(getattr(data, name))
        if data.problem_type == "single_label_classification":
            tensors[name] = torch.as_tensor(targets.astype(np.int64), device=device)
        else:
            tensors[name] = torch.as_tensor(((targets - mean) / scale).astype(np.float32), device=device)
    return tensors, (mean, scale)


def train_probes(
    jobs: Sequence[ProbeJob], data: ProbeData, search: Search, device: str = "cpu", batched: bool = True
) -> list[TrainedProbe]:
    """Train probes, all of one shape together.

    Args:
        jobs (`Sequence[ProbeJob]`): what to train; the result of each does not depend on the others.
        data (`ProbeData`): training and validation split.
        search (`Search`): where `max_steps`, `eval_every` and `patience` come from; its settings are not looked at.
        device (`str`): torch device.
        batched (`bool`): False trains one probe after another, for comparison.

    Returns:
        `list[TrainedProbe]`: in the order of `jobs`, each at its best validation score.

    Raises:
        ValueError: if a layer has no features or a probe's outputs stop being finite.
    """
    unknown = sorted({job.layer for job in jobs} - set(data.features))
    if unknown:
        raise ValueError(f"No features for layer {', '.join(unknown)}; there are {', '.join(data.features)}.")
    targets, (target_mean, target_scale) = _target_tensors(data, device)
    groups: dict[tuple, list[tuple[int, ProbeJob]]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault((_group_key(job, data), None if batched else number), []).append((number, job))
    trained: list[TrainedProbe | None] = [None] * len(jobs)
    for (key, _), numbered in groups.items():
        # Probes of equal learning rate and weight decay lie side by side: Adam then steps them in one call.
        numbered.sort(key=lambda pair: (pair[1].settings.learning_rate, pair[1].settings.weight_decay))
        tensors, statistics = _group_tensors(sorted({job.layer for _, job in numbered}), key[2], data, device)
        num_parameters = sum(part.numel() for part in _initial_parameters(numbered[0][1], key[4], data.num_outputs))
        size = max(1, MAX_PARAMETERS // num_parameters)
        for start in range(0, len(numbered), size):
            part = numbered[start : start + size]
            for number, (score, step, state) in _train_group(part, tensors | targets, search, data, device).items():
                state = [array[0] if index % 2 else array for index, array in enumerate(state)]  # biases are [1, K]
                mean, scale = statistics[jobs[number].layer]
                scales = mean, scale, target_mean, target_scale
                trained[number] = TrainedProbe(jobs[number], score, step, state, *scales)
    return trained
