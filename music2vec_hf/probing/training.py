"""Many probes trained together as a few batched products.

The probes of a search differ in numbers, not in shape. Those that read the same inputs (layer, standardisation,
dropout, batch size, seed) make a stack: their mini-batch is gathered and dropped out once, and each product of a step
is one batched product. Stacks of one batch size take their steps together, in blocks that fit into memory.

The mini-batch and the dropout draw of a probe depend on its seed and the step only, so a probe gives the same result
whatever it is trained beside; probes of one seed share their draws and cut them at their own probability.

Losses: cross-entropy over classes; binary cross-entropy with logits, mean over tags; mean squared error over
dimensions, on targets standardised with mean and standard deviation of the training split (predictions are given back
in the targets' own units). Optimiser: Adam with its usual betas. Gradients are written out: a probe is three products.

`S` probes in a stack, `B` rows in a mini-batch, `m` validation rows, `C` features, `L` summed layers, `H` hidden
units, `K` outputs.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.adam import adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from music2vec_hf.common.computing import torch_threads
from music2vec_hf.probing.probes import (
    WEIGHTED,
    ProbeData,
    ProbeJob,
    Search,
    TrainedProbe,
    layer_features,
    track_scores,
)

# Parameters stepped together at most; with gradient, two moments and the best state they take 20 bytes each. A CPU is
# faster when they stay near its cache, a GPU when it gets much to do at once.
MAX_PARAMETERS = {"cpu": 4_000_000, "cuda": 200_000_000}
# Operations of a block's largest product from which on threads are worth waking: below, one alone is faster.
MIN_FLOPS_OF_THREADS = 1e8
# Hidden values at most of all probes of a stack at once when the validation split is scored.
MAX_HIDDEN = 16_000_000
_ADAM = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "foreach": False,
    "fused": True,
}


def _rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Generator that is a function of what it is for and the numbers."""
    digest = hashlib.blake2b(",".join([purpose, *map(str, numbers)]).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def initial_parameters(job: ProbeJob, num_features: int, num_outputs: int, num_layers: int = 1) -> list[torch.Tensor]:
    """Parameters before the first step, as `torch.nn.Linear` draws them: uniform within 1 / sqrt(inputs).

    Weight `[K, C]` and bias `[1, K]`, or those of both layers; then, for `weighted`, `[1, L]`, whose softmax is the
    layers' shares, drawn from N(0, 1) as in MARBLE.
    """
    rng, parameters = _rng("initial", job.seed), []
    for inputs, outputs in job.settings.sizes(num_features, num_outputs):
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
        mean, scale = self.mean[..., None, :], self.scale[..., None, :]
        self.train, self.validation = (
            torch.as_tensor((np.asarray(values, np.float32) - mean) / scale, device=device)
            for values in (train, layer_features(data.validation_features, layer))
        )


class Targets:
    """Targets on the device; those of a regression standardised, those of training classes as zeros and ones."""

    def __init__(self, data: ProbeData, device: str):
        self.problem_type, splits = data.problem_type, (data.targets, data.validation_targets)
        self.mean, self.scale = np.zeros(data.num_outputs, np.float32), np.ones(data.num_outputs, np.float32)
        if self.problem_type == "regression":
            self.mean, self.scale = np.float32(data.target_statistics or _statistics(data.targets))
            if np.any(np.all(data.validation_targets == data.validation_targets[0], axis=0)):
                raise ValueError("All validation targets of an output have one value, so R2 cannot choose a probe.")
        if self.problem_type == "single_label_classification":
            train, self.validation = (torch.as_tensor(np.asarray(part, np.int64), device=device) for part in splits)
            self.train = F.one_hot(train, data.num_outputs).float()
        else:
            standardised = (np.asarray((part - self.mean) / self.scale, np.float32) for part in splits)
            self.train, self.validation = (torch.as_tensor(part, device=device) for part in standardised)
        tracks = data.validation_tracks
        self.tracks = None if tracks is None else torch.as_tensor(tracks, device=device)

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


class Progress:
    """How far one probe has come: its learning rate, its best validation score, and the looks since."""

    def __init__(self, number: int, job: ProbeJob, search: Search):
        self.number, self.job, self.rate, self.plateau = number, job, job.settings.learning_rate, None
        self.score, self.step, self.ensemble, self.waited = -np.inf, 0, "", 0
        if search.plateau_patience is not None:
            clock = torch.optim.SGD([torch.zeros(1)], lr=self.rate)  # only holds the rate that the scheduler changes
            self.plateau = ReduceLROnPlateau(clock, mode="max", factor=0.5, patience=search.plateau_patience)

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
        self.gradients = [torch.empty_like(p) for p in self.parameters]

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
        rows, gradients = draws.rows(self.seed), self.gradients
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
            by_hidden = torch.bmm(by_outputs / (1 - self.settings.dropout), self.parameters[2])
            by_first = torch.ops.aten.threshold_backward(by_hidden, hidden, 0)
        else:
            by_first = targets.gradient(self._last(inputs), rows)
        torch.bmm(by_first.mT, inputs, out=gradients[0])
        torch.sum(by_first, dim=1, keepdim=True, out=gradients[1])
        if self.weighted:
            by_inputs = torch.bmm(by_first, self.parameters[0])
            by_inputs = by_inputs if mask is None else by_inputs * mask
            shares = self.parameters[-1].softmax(dim=-1)
            by_shares = torch.tensordot(by_inputs, features, dims=[[1, 2], [1, 2]])[:, None]
            torch.mul(shares, by_shares - (shares * by_shares).sum(dim=-1, keepdim=True), out=gradients[-1])


def _adam_parts(stacks: list[Stack], step: int) -> dict[tuple[float, float], list[list[torch.Tensor]]]:
    """Parameters, gradients, both moments and steps done, for each learning rate and weight decay: one call each."""
    parts: dict[tuple[float, float], list[list[torch.Tensor]]] = {}
    for stack in stacks:
        columns = stack.parameters, stack.gradients, *stack.moments
        for position, probe in enumerate(stack.probes):
            part = parts.setdefault((probe.rate, probe.job.settings.weight_decay), [[], [], [], []])
            for tensors, column in zip(part, columns, strict=True):
                tensors.extend(tensor[position] for tensor in column)
    for part in parts.values():
        part.append(list(torch.full((len(part[0]),), float(step), device=part[0][0].device).unbind()))
    return parts


def _look(stacks: list[Stack], targets: Targets, step: int, metric: str) -> None:
    """Score every probe on the validation split and keep the states that are strictly better than before."""
    outputs = torch.cat([stack.outputs() for stack in stacks])
    results = iter(track_scores(metric, targets.validation, outputs, targets.tracks))
    for stack in stacks:
        for position, probe in enumerate(stack.probes):
            if probe.better(*next(results), step):
                for best, now in zip(stack.best, stack.parameters, strict=True):
                    best[position].copy_(now[position])


def _trained(stack: Stack, position: int, targets: Targets) -> TrainedProbe:
    probe, state = stack.probes[position], [tensor[position].cpu().numpy() for tensor in stack.best]
    shares = torch.from_numpy(state.pop()[0]).softmax(dim=-1).numpy() if stack.weighted else None
    state = [array[0] if index % 2 else array.T for index, array in enumerate(state)]  # biases are [1, K]
    scales = stack.features.mean, stack.features.scale, targets.mean, targets.scale
    return TrainedProbe(probe.job, probe.score, probe.step, state, *scales, shares, probe.ensemble)


def _train_block(
    stacks: list[Stack], targets: Targets, search: Search, metric: str
) -> Iterator[tuple[int, TrainedProbe]]:
    """Train stacks of one batch size, step by step together; gives each probe, with its number, as it ends."""
    num_rows, device = len(targets.train), targets.train.device
    batch_size = min(stacks[0].settings.batch_size, num_rows)
    unit = -(-num_rows // batch_size) if search.epochs else 1
    last = None if search.max_steps is None else search.max_steps * unit
    if not search.epochs:
        _look(stacks, targets, 0, metric)
    # Collected anew only when a probe leaves or a rate changes: at each step it would cost as much as a small product.
    parts = _adam_parts(stacks, 0)
    for step in count(1):
        draws = Draws(step, num_rows, batch_size, search.epochs, device)
        for stack in stacks:
            stack.find_gradients(targets, draws)
        for (rate, decay), (parameters, gradients, means, squares, steps) in parts.items():
            adam(parameters, gradients, means, squares, [], steps, lr=rate, weight_decay=decay, **_ADAM)
        if step % (search.eval_every * unit) and step != last:
            continue
        _look(stacks, targets, step, metric)
        for stack in stacks:
            done = [step == last or probe.waited >= search.patience for probe in stack.probes]
            for position in np.flatnonzero(done):
                yield stack.probes[position].number, _trained(stack, position, targets)
            if any(done):
                stack.keep([position for position, gone in enumerate(done) if not gone])
        stacks = [stack for stack in stacks if stack.probes]
        if not stacks:
            return
        parts = _adam_parts(stacks, step)


def _blocks(jobs: Sequence[ProbeJob], data: ProbeData, limit: int) -> list[list[list[int]]]:
    """Numbers of jobs, in stacks, in blocks of one batch size and at most `limit` parameters."""
    alike: dict[ProbeJob, list[int]] = {}
    for number, job in enumerate(jobs):
        # What decides on the inputs and on the shapes; rates and decays may differ.
        shared = replace(job, settings=replace(job.settings, learning_rate=1.0, weight_decay=0.0))
        alike.setdefault(shared, []).append(number)
    blocks, filled, last_batch_size = [], 0, None
    for shared, numbers in sorted(alike.items(), key=lambda item: item[0].settings.batch_size):
        settings, width = shared.settings, layer_features(data.features, shared.layer).shape[-1]
        each = sum(inputs * outputs for inputs, outputs in settings.sizes(width, data.num_outputs))
        size = max(1, limit // each)
        for start in range(0, len(numbers), size):
            stack = numbers[start : start + size]
            filled += each * len(stack)
            if settings.batch_size != last_batch_size or filled > limit:
                blocks.append([])
                filled, last_batch_size = each * len(stack), settings.batch_size
            blocks[-1].append(stack)
    return blocks


@torch.no_grad()
def train_probes(
    jobs: Sequence[ProbeJob],
    data: ProbeData,
    search: Search,
    device: str = "cpu",
    finished: Callable[[int, TrainedProbe], object] | None = None,
) -> list[TrainedProbe]:
    """Train probes, those of one shape together.

    Args:
        jobs (`Sequence[ProbeJob]`): what to train; the result of each does not depend on the others.
        search (`Search`): when training stops, and how it draws mini-batches; its settings are not looked at.
        finished (`Callable`, *optional*): told of each probe that comes to its end: its place in `jobs`, and itself.

    Returns:
        `list[TrainedProbe]`: in the order of `jobs`, each at its best validation score.

    Raises:
        ValueError: if a layer has no features or a probe's outputs or scores stop being finite.
    """
    search, targets = search.for_task(data.task_name), Targets(data, device)
    trained: dict[int, TrainedProbe] = {}
    for block in _blocks(jobs, data, MAX_PARAMETERS[targets.train.device.type]):
        features, stacks = {}, []
        for numbers in block:
            key = jobs[numbers[0]].layer, jobs[numbers[0]].settings.standardise
            if key not in features:
                features[key] = Features(data, *key, device)
            probes = [Progress(number, jobs[number], search) for number in numbers]
            stacks.append(Stack(probes, features[key], data.num_outputs))
        largest = max(2 * stack.settings.batch_size * stack.parameters[0].numel() for stack in stacks)
        with torch_threads(torch.get_num_threads() if largest >= MIN_FLOPS_OF_THREADS else 1):
            for number, probe in _train_block(stacks, targets, search, data.primary_metric):
                trained[number] = probe
                if finished is not None:
                    finished(number, probe)
    return [trained[number] for number in range(len(jobs))]
