"""Probes under training: stacks of probes that read the same inputs, the targets, and the random draws of a step.

The parts of `training.py`, which says how they work together. `S` probes in a stack, `B` rows in a mini-batch, `C`
features, `L` summed layers, `H` hidden units, `K` outputs.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from music2vec_hf.probing.probes import ProbeData, ProbeJob, layer_features
from music2vec_hf.probing.searches import WEIGHTED, Search

MAX_HIDDEN = 16_000_000
"""Hidden values at most of all probes of a stack at once when the validation split is scored."""


def _rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Generator that is a function of what it is for and the numbers."""
    text = ",".join([purpose, *map(str, numbers)])
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def initial_parameters(job: ProbeJob, num_features: int, num_outputs: int, num_layers: int = 1) -> list[torch.Tensor]:
    """Parameters before the first step, as `torch.nn.Linear` draws them: uniform within 1 / sqrt(inputs).

    Args:
        job (`ProbeJob`): its kind of probe and its seed count.
        num_features, num_outputs, num_layers (`int`): `C`, `K`, and `L` of the layer `weighted`.

    Returns:
        `list[torch.Tensor]`: weight `[K, C]` and bias `[1, K]`, or those of both layers; then, for `weighted`,
        `[1, L]`, whose softmax is the layers' shares, drawn from N(0, 1) as in MARBLE.
    """
    hidden = [job.settings.hidden_size] if job.settings.kind == "mlp" else []
    sizes = [num_features, *hidden, num_outputs]
    rng = _rng("initial", job.seed)
    parameters = []
    for inputs, outputs in pairwise(sizes):
        weight, bias = (rng.random(shape, dtype=np.float32) for shape in ((inputs, outputs), (1, outputs)))
        for uniform in (np.ascontiguousarray(weight.T), bias):
            parameters.append((uniform * 2 - 1) / np.float32(inputs**0.5))
    if job.layer == WEIGHTED:
        parameters.append(rng.standard_normal((1, num_layers), dtype=np.float32))
    return [torch.from_numpy(parameter) for parameter in parameters]


def _statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over rows; a constant column keeps its scale."""
    values = np.asarray(values, dtype=np.float64)
    deviation = values.std(axis=-2)
    return values.mean(axis=-2).astype(np.float32), np.where(deviation > 1e-8, deviation, 1).astype(np.float32)


class Features:
    """Features of a layer on the device, of both splits: `[n, C]`, or `[L, n, C]` for `weighted`."""

    def __init__(self, data: ProbeData, layer: str, standardise: bool, device: str):
        train = layer_features(data.features, layer)
        plain = np.zeros_like(train[..., 0, :], np.float32), np.ones_like(train[..., 0, :], np.float32)
        self.mean, self.scale = _statistics(train) if standardise else plain
        self.train, self.validation = (
            torch.as_tensor(
                (np.asarray(values, np.float32) - self.mean[..., None, :]) / self.scale[..., None, :], device=device
            )
            for values in (train, layer_features(data.validation_features, layer))
        )


class Targets:
    """Targets on the device; those of a regression standardised."""

    def __init__(self, data: ProbeData, device: str):
        self.problem_type = data.problem_type
        self.mean, self.scale = np.zeros(data.num_outputs, np.float32), np.ones(data.num_outputs, np.float32)
        if data.problem_type == "regression":
            self.mean, self.scale = np.float32(data.target_statistics or _statistics(data.targets))
        self.train, self.validation = self._tensor(data.targets, device), self._tensor(data.validation_targets, device)
        if self.problem_type == "single_label_classification":
            self.train = F.one_hot(self.train, data.num_outputs).float()
        tracks = data.validation_tracks
        self.tracks = None if tracks is None else torch.as_tensor(tracks, device=device)

    def _tensor(self, values: np.ndarray, device: str) -> torch.Tensor:
        if self.problem_type == "single_label_classification":
            return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)
        return torch.as_tensor(np.asarray((values - self.mean) / self.scale, dtype=np.float32), device=device)

    def gradient(self, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Gradient of each probe's mean loss by its outputs `[S, B, K]`."""
        targets = self.train[rows]
        if self.problem_type == "regression":
            return (outputs - targets) * (2 / targets.numel())
        if self.problem_type == "single_label_classification":
            return (outputs.softmax(dim=-1) - targets) / len(targets)
        return (outputs.sigmoid() - targets) / targets.numel()


class Draws:
    """Mini-batches and dropout masks of one step, each drawn once for all probes of a seed."""

    def __init__(self, step: int, num_rows: int, batch_size: int, epochs: bool, device: torch.device):
        self.step, self.num_rows, self.batch_size, self.epochs = step, num_rows, batch_size, epochs
        self.device, self.made = device, {}

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(values)
        # Pinned memory is copied while the GPU works; a copy of other memory would wait for it at every step.
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def rows(self, seed: int) -> torch.Tensor:
        """Training rows `[B]`: a sample of the split, or the next piece of the shuffled split."""
        if ("rows", seed) not in self.made:
            if self.epochs:
                epoch, position = divmod(self.step - 1, -(-self.num_rows // self.batch_size))
                start = position * self.batch_size
                rows = _rng("epoch", seed, epoch).permutation(self.num_rows)[start : start + self.batch_size]
            else:
                rows = _rng("rows", seed, self.step).choice(self.num_rows, self.batch_size, replace=False)
            self.made["rows", seed] = self._tensor(rows)
        return self.made["rows", seed]

    def mask(self, purpose: str, seed: int, width: int, probability: float) -> torch.Tensor | None:
        """Dropout mask `[B, width]` with values 0 and 1 / (1 - p); None for no dropout."""
        if probability == 0:
            return None
        shape = len(self.rows(seed)), width
        key = purpose, seed, width
        if key not in self.made:
            # 16 random bits per value: a probability is kept to 1 / 65,536, and a draw costs less than the products.
            bits = _rng(purpose, seed, self.step).bit_generator.random_raw(-(-shape[0] * width // 4)).view(np.int16)
            self.made[key] = self._tensor(bits[: shape[0] * width].reshape(shape))
        if (*key, probability) not in self.made:
            threshold = min(round(probability * 65_536) - 32_768, 32_767)
            self.made[*key, probability] = (self.made[key] >= threshold) / (1 - probability)
        return self.made[*key, probability]


@dataclass
class Progress:
    """How far one probe has come."""

    number: int
    job: ProbeJob
    rate: float
    plateau: ReduceLROnPlateau | None
    score: float = -np.inf
    step: int = 0
    ensemble: str = ""
    waited: int = 0

    def better(self, score: float, ensemble: str, step: int) -> bool:
        """Take notice of a validation score; whether it is strictly better than all before."""
        if self.plateau is not None:
            self.plateau.step(score)
            self.rate = self.plateau.optimizer.param_groups[0]["lr"]
        if score > self.score:
            self.score, self.ensemble, self.step, self.waited = score, ensemble, step, 0
            return True
        self.waited += step > 0
        return False


def new_progress(number: int, job: ProbeJob, search: Search) -> Progress:
    """The start of a probe, `number` in the caller's list, with the scheduler of its rate if the search has one."""
    rate, plateau = job.settings.learning_rate, None
    if search.plateau_patience is not None:
        clock = torch.optim.SGD([torch.zeros(1)], lr=rate)  # only holds the rate that the scheduler changes
        plateau = ReduceLROnPlateau(clock, mode="max", factor=0.5, patience=search.plateau_patience)
    return Progress(number, job, rate, plateau)


class Stack:
    """Probes that read the same inputs: their parameters, Adam's moments and best states, each stacked over probes.

    Weights are `[S, outputs, inputs]`, as in `torch.nn.Linear`.
    """

    def __init__(self, probes: list[Progress], features: Features, num_outputs: int):
        self.probes, self.features = probes, features
        self.seed, self.settings = probes[0].job.seed, probes[0].job.settings
        self.weighted = probes[0].job.layer == WEIGHTED
        sizes = features.train.shape[-1], num_outputs, len(features.train)
        initial = [initial_parameters(probe.job, *sizes) for probe in probes]
        self.parameters = [torch.stack(part).to(features.train.device) for part in zip(*initial, strict=True)]
        self.best = [parameter.clone() for parameter in self.parameters]
        self.moments = [torch.zeros_like(p) for p in self.parameters], [torch.zeros_like(p) for p in self.parameters]
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]

    def keep(self, alive: list[int]) -> None:
        """Drop every probe but those at the positions `alive`."""
        index = torch.tensor(alive, dtype=torch.long, device=self.best[0].device)
        for tensors in (self.parameters, self.best, *self.moments):
            tensors[:] = [tensor[index] for tensor in tensors]
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self.probes = [self.probes[position] for position in alive]

    def _inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Inputs `[S, B, C]` (one copy seen `S` times, but for `weighted`) from features `[B, C]` or `[L, B, C]`."""
        if self.weighted:
            return torch.tensordot(self.parameters[-1].softmax(dim=-1)[:, 0], features, dims=1)
        return features.expand(len(self.probes), *features.shape)

    def _hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Hidden units `[S, B, H]`, before dropout."""
        return torch.baddbmm(self.parameters[1], inputs, self.parameters[0].mT).relu_()

    def _last(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[S, B, K]` of the last layer, a view of `[S, K, B]`: products of few columns are slow on a CPU."""
        weight, bias = self.parameters[2:4] if self.settings.kind == "mlp" else self.parameters[:2]
        return torch.baddbmm(bias.mT, weight, inputs.mT).mT

    def outputs(self) -> torch.Tensor:
        """Outputs `[S, m, K]` for the validation split."""
        rows = max(1, MAX_HIDDEN // (len(self.probes) * self.settings.hidden_size))
        pieces = []
        for features in self.features.validation.split(rows, dim=-2):
            inputs = self._inputs(features)
            pieces.append(self._last(self._hidden(inputs) if self.settings.kind == "mlp" else inputs))
        return torch.cat(pieces, dim=1)

    def find_gradients(self, targets: Targets, draws: Draws) -> None:
        """Gradient of each probe's loss on its mini-batch, by all parameters, into `self.gradients`."""
        rows, parameters, gradients = draws.rows(self.seed), self.parameters, self.gradients
        features = self.features.train[..., rows, :]
        mask = draws.mask("input", self.seed, features.shape[-1], self.settings.dropout_input)
        if not self.weighted and mask is not None:
            features = features * mask  # once for all probes
        inputs = self._inputs(features)
        if self.weighted and mask is not None:
            inputs = inputs * mask
        if self.settings.kind == "mlp":
            hidden = self._hidden(inputs)
            hidden_mask = draws.mask("hidden", self.seed, hidden.shape[-1], self.settings.dropout)
            hidden = hidden if hidden_mask is None else hidden.mul_(hidden_mask)
            by_outputs = targets.gradient(self._last(hidden), rows)
            torch.bmm(by_outputs.mT, hidden, out=gradients[2])
            torch.sum(by_outputs, dim=1, keepdim=True, out=gradients[3])
            # A hidden unit that is 0, by ReLU or by dropout, passes nothing back; the others the mask's scale.
            by_hidden = torch.bmm(by_outputs / (1 - self.settings.dropout), parameters[2])
            by_first = torch.ops.aten.threshold_backward(by_hidden, hidden, 0)
        else:
            by_first = targets.gradient(self._last(inputs), rows)
        torch.bmm(by_first.mT, inputs, out=gradients[0])
        torch.sum(by_first, dim=1, keepdim=True, out=gradients[1])
        if self.weighted:
            by_inputs = torch.bmm(by_first, parameters[0])
            by_inputs = by_inputs if mask is None else by_inputs * mask
            shares = parameters[-1].softmax(dim=-1)
            by_shares = torch.tensordot(by_inputs, features, dims=[[1, 2], [1, 2]])[:, None]
            torch.mul(shares, by_shares - (shares * by_shares).sum(dim=-1, keepdim=True), out=gradients[-1])
