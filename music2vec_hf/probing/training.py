"""Many probes trained together as a few batched products.

Row 13 of DESIGN.md section 3. The probes of a search differ in numbers, not in shape. Those that read the same inputs
(layer, standardisation, dropout, batch size, seed) make a stack: their mini-batch is gathered and dropped out once,
and each product of a step is one batched product. Stacks of one batch size take their steps together, in blocks that
fit into memory.

The mini-batch and the dropout draw of a probe depend on its seed and the step only, so a probe gives the same result
whatever it is trained beside; probes of one seed share their draws and cut them at their own probability.

Losses: cross-entropy over classes; binary cross-entropy with logits, mean over tags; mean squared error over
dimensions, on targets standardised with mean and standard deviation of the training split (predictions are given back
in the targets' own units). Optimiser: Adam with its usual betas. Gradients are written out: a probe is three products.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch.optim.adam import adam

from music2vec_hf.common.threads import torch_threads
from music2vec_hf.probing.probes import ProbeData, ProbeJob, TrainedProbe, layer_features
from music2vec_hf.probing.searches import Search
from music2vec_hf.probing.selection import track_scores
from music2vec_hf.probing.stacks import Draws, Features, Stack, Targets, new_progress

MAX_PARAMETERS = {"cpu": 4_000_000, "cuda": 200_000_000}
"""Parameters stepped together at most; with gradient, two moments and the best state they take 20 bytes each. A CPU is
faster when they stay near its cache, a GPU when it gets much to do at once."""

MIN_FLOPS_OF_THREADS = 1e8
"""Operations of a block's largest product from which on threads are worth waking: below, one alone is faster."""


def _adam_parts(stacks: list[Stack], step: int) -> dict[tuple[float, float], list[list[torch.Tensor]]]:
    """Parameters, gradients, both moments and steps done, for each learning rate and weight decay.

    They stand until a probe leaves or a rate changes: to collect them at each step costs as much as a small product.
    """
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


def _adam_step(parts: dict[tuple[float, float], list[list[torch.Tensor]]]) -> None:
    """One Adam step of every probe; probes of equal learning rate and weight decay in one call."""
    for (rate, decay), (parameters, gradients, means, squares, steps) in parts.items():
        adam(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )


def _look(stacks: list[Stack], targets: Targets, step: int, metric: str) -> None:
    """Score every probe on the validation split and keep the states that are strictly better than before."""
    outputs = torch.cat([stack.outputs() for stack in stacks])
    scores, ensembles = track_scores(metric, targets.validation, outputs, targets.tracks)
    results = zip(scores.tolist(), ensembles, strict=True)
    for stack in stacks:
        for position, probe in enumerate(stack.probes):
            if probe.better(*next(results), step):
                for best, now in zip(stack.best, stack.parameters, strict=True):
                    best[position].copy_(now[position])


def _trained(stack: Stack, position: int, targets: Targets) -> TrainedProbe:
    probe, features = stack.probes[position], stack.features
    state = [tensor[position].cpu().numpy() for tensor in stack.best]
    shares = torch.from_numpy(state.pop()[0]).softmax(dim=-1).numpy() if stack.weighted else None
    state = [array[0] if index % 2 else array.T for index, array in enumerate(state)]  # biases are [1, K]
    scales = features.mean, features.scale, targets.mean, targets.scale
    return TrainedProbe(probe.job, probe.score, probe.step, state, *scales, shares, probe.ensemble)


def _train_block(
    stacks: list[Stack], targets: Targets, search: Search, metric: str, ended: Callable[[int, TrainedProbe], object]
) -> dict[int, TrainedProbe]:
    """Train stacks of one batch size, step by step together; returns number -> trained probe."""
    num_rows, device = len(targets.train), targets.train.device
    batch_size = min(stacks[0].settings.batch_size, num_rows)
    unit = -(-num_rows // batch_size) if search.epochs else 1
    last = None if search.max_steps is None else search.max_steps * unit
    finished = {}
    if not search.epochs:
        _look(stacks, targets, 0, metric)
    parts = _adam_parts(stacks, 0)
    for step in count(1):
        draws = Draws(step, num_rows, batch_size, search.epochs, device)
        for stack in stacks:
            stack.find_gradients(targets, draws)
        _adam_step(parts)
        if step % (search.eval_every * unit) and step != last:
            continue
        _look(stacks, targets, step, metric)
        for stack in stacks:
            done = [step == last or probe.waited >= search.patience for probe in stack.probes]
            for position in np.flatnonzero(done):
                number = stack.probes[position].number
                finished[number] = _trained(stack, position, targets)
                ended(number, finished[number])
            if any(done):
                stack.keep([position for position, gone in enumerate(done) if not gone])
        stacks = [stack for stack in stacks if stack.probes]
        if not stacks:
            return finished
        parts = _adam_parts(stacks, step)


def _num_threads(stacks: list[Stack]) -> int:
    """Threads for a block: those of the caller, or one where all products are small; see `MIN_FLOPS_OF_THREADS`."""
    largest = max(2 * stack.settings.batch_size * stack.parameters[0].numel() for stack in stacks)
    return torch.get_num_threads() if largest >= MIN_FLOPS_OF_THREADS else 1


def _blocks(jobs: Sequence[ProbeJob], data: ProbeData, limit: int, batched: bool) -> list[list[list[int]]]:
    """Numbers of jobs, in stacks, in blocks of one batch size and at most `limit` parameters."""
    alike: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        # What decides on the inputs and on the shapes; rates and decays may differ.
        key = replace(job, settings=replace(job.settings, learning_rate=1.0, weight_decay=0.0))
        alike.setdefault(key if batched else number, []).append(number)
    blocks, filled, last_batch_size = [], 0, None
    for numbers in sorted(alike.values(), key=lambda numbers: jobs[numbers[0]].settings.batch_size):
        settings = jobs[numbers[0]].settings
        width = layer_features(data.features, jobs[numbers[0]].layer).shape[-1]
        hidden = settings.hidden_size if settings.kind == "mlp" else 0
        each = (width + data.num_outputs) * hidden if hidden else width * data.num_outputs
        size = max(1, limit // each)
        for start in range(0, len(numbers), size):
            stack = numbers[start : start + size]
            filled += each * len(stack)
            if not batched or settings.batch_size != last_batch_size or filled > limit:
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
    batched: bool = True,
    finished: Callable[[int, TrainedProbe], object] | None = None,
) -> list[TrainedProbe]:
    """Train probes, those of one shape together.

    Args:
        jobs (`Sequence[ProbeJob]`): what to train; the result of each does not depend on the others.
        data (`ProbeData`): training and validation split.
        search (`Search`): when training stops, and how it draws mini-batches; its settings are not looked at.
        device (`str`): torch device.
        batched (`bool`): False trains one probe after another, for comparison.
        finished (`Callable`, *optional*): told of each probe that comes to its end: its place in `jobs`, and itself.

    Returns:
        `list[TrainedProbe]`: in the order of `jobs`, each at its best validation score.

    Raises:
        ValueError: if a layer has no features or a probe's outputs or scores stop being finite.
    """
    search, targets = search.for_task(data.task_name), Targets(data, device)
    trained: dict[int, TrainedProbe] = {}
    for block in _blocks(jobs, data, MAX_PARAMETERS[targets.train.device.type], batched):
        features: dict[tuple[str, bool], Features] = {}
        stacks = []
        for numbers in block:
            job = jobs[numbers[0]]
            key = job.layer, job.settings.standardise
            if key not in features:
                features[key] = Features(data, *key, device)
            probes = [new_progress(number, jobs[number], search) for number in numbers]
            stacks.append(Stack(probes, features[key], data.num_outputs))
        with torch_threads(_num_threads(stacks)):
            trained |= _train_block(stacks, targets, search, data.primary_metric, finished or (lambda *probe: None))
    return [trained[number] for number in range(len(jobs))]
