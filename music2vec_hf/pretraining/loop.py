"""The pretraining loop (stages 4 to 11). Everything random is a function of (seed, step, index).

Between two records the program waits once an update for a GPU: for the gradient's norm, which decides whether the
update is taken; whether a process was asked to stop comes along.
"""

import contextlib
import math
import os
import signal
import threading
from pathlib import Path

import torch

from music2vec_hf.common.computing import autocast, choose_precision, float32_products
from music2vec_hf.corpus.loading import check_corpus
from music2vec_hf.features.encoders import explain_compile_errors
from music2vec_hf.pretraining import TrainingInterrupted, TrainingStopped
from music2vec_hf.pretraining.arguments import Recipe
from music2vec_hf.pretraining.checkpoints import (
    TrainingState,
    check_checkpoint,
    checkpoints,
    remove_unfinished,
    save_checkpoint,
    save_model,
    write_run_record,
)
from music2vec_hf.pretraining.monitors import Monitor
from music2vec_hf.pretraining.online_probe import OnlineProbe
from music2vec_hf.pretraining.schedules import tri_stage_learning_rate
from music2vec_hf.pretraining.starting import (
    count_micro_steps,
    fitting_seconds,
    make_accelerator,
    open_corpus,
    prepare_training,
    stream_seed,
)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def pretrain(recipe: Recipe, corpus: str | Path, output: str | Path, resume: bool = False) -> Path:
    """Pretrain Music2Vec.

    Args:
        recipe ([`Recipe`]): from [`load_recipe`].
        corpus (`str` or `Path`): a prepared corpus, or any other that [`load_corpus`] reads.
        output (`str` or `Path`): folder of the run: `checkpoint-<step>/`, `metrics.jsonl`, `run.json`, and at the
            end the model.
        resume (`bool`): go on from the last checkpoint in `output`, if there is one.

    Returns:
        `Path`: `output`, which then loads with `from_pretrained`.

    Raises:
        ValueError: if `output` holds a run and `resume` is not set, or a checkpoint does not fit the recipe.
        TrainingStopped: if the model collapses, or updates are not finite many times in a row.
        TrainingInterrupted: after SIGTERM or SIGUSR1, once a checkpoint is saved.
    """
    output = Path(output)
    found = checkpoints(output)
    if found and not resume:
        raise ValueError(f"{output} holds a run up to {found[-1].name}. Add `--resume`, or name another `--output`.")
    if found:
        check_checkpoint(found[-1], recipe)
    check_corpus(corpus, recipe.split)
    output.mkdir(parents=True, exist_ok=True)

    accelerator = make_accelerator(recipe, output)
    with float32_products(recipe.precision, accelerator.device.type), deterministic_algorithms(recipe.deterministic):
        _pretrain(accelerator, recipe, corpus, output, found[-1] if found else None)
    return output


def _pretrain(accelerator, recipe: Recipe, corpus: str | Path, output: Path, checkpoint: Path | None) -> None:
    """The run, from nothing or a checkpoint on."""
    probe = OnlineProbe(recipe) if recipe.probe_corpus and accelerator.is_main_process else None
    state = prepare_training(recipe, accelerator, checkpoint)
    max_seconds = recipe.max_seconds_per_device
    if max_seconds == "auto":  # a resumed run cuts its batches as before
        max_seconds = state.fitting_seconds or fitting_seconds(recipe, accelerator, state.student, state.teacher)
        state.fitting_seconds = max_seconds
    micro_steps = count_micro_steps(recipe, accelerator.num_processes, max_seconds)
    batches, audio = open_corpus(accelerator, recipe, corpus, state.step, micro_steps)
    announce(accelerator, recipe, state, audio, micro_steps)
    if accelerator.is_main_process:
        remove_unfinished(output)
        write_run_record(output, recipe, corpus, audio, state.step, accelerator)
    try:
        with explain_compile_errors():
            run_steps(accelerator, recipe, state, batches, micro_steps, output, probe)
    except TrainingStopped as error:
        kept = checkpoints(output)
        last = f"The last checkpoint is {kept[-1]}." if kept else "No checkpoint had been saved."
        raise TrainingStopped(f"{error} {last}") from None
    if accelerator.is_main_process:
        save_model(output, state.student.data2vec_audio if recipe.distill_from else state.student)
    accelerator.end_training()


def run_steps(accelerator, recipe: Recipe, state: TrainingState, batches, micro_steps: int, output: Path, probe):
    """The loop itself: from `state.step` to `max_steps`; `probe` is the main process' [`OnlineProbe`], if any."""
    model = accelerator.prepare_model(state.student)
    stream, failed = iter(batches), getattr(batches.dataset, "failed", None)  # a stream counts no failed clips
    monitor = Monitor(output, recipe, state.step, accelerator)
    with contextlib.closing(monitor), StopRequest() as request:
        while state.step < recipe.max_steps:
            monitor.begin_step(state.step + 1)

            # 1. to 3. Teacher and student see the step's crops; the gradient adds up over micro-batches.
            num_masked = accumulate(accelerator, recipe, model, state, stream, micro_steps, monitor)

            # 4. Optimise the student; the teacher follows, once per step.
            asked, values = optimise(accelerator, recipe, state, num_masked, request.received)
            state.step += 1

            # 5. Watch, log, save.
            monitor.end_step(state.step, state.skipped, failed.count if failed else 0, **values)
            if probe and state.step % recipe.probe_every == 0:
                monitor.write({"step": state.step, **probe(state.student)})
            check_skipped(recipe, state)
            due = state.step % recipe.save_every == 0 or (recipe.keep_every and state.step % recipe.keep_every == 0)
            if asked or due or state.step == recipe.max_steps:
                if accelerator.is_main_process:
                    monitor.note_checkpoint(save_checkpoint(output, state, recipe))
                accelerator.wait_for_everyone()
            if asked and state.step < recipe.max_steps:
                raise TrainingInterrupted(
                    f"{signal.Signals(asked).name} came, and the run is saved as {output}/checkpoint-{state.step}. "
                    "Go on with `--resume`."
                )


def accumulate(accelerator, recipe: Recipe, model, state: TrainingState, stream, micro_steps: int, monitor) -> int:
    """Forward and backward over one step's micro-batches; returns this process' number of masked frames.

    Losses are summed, not averaged: [`optimise`] divides the gradient by the masked frames of the whole update.
    """
    num_masked = 0
    device = accelerator.device
    for micro_step in range(micro_steps):
        batch = monitor.wait_for(stream)
        # Looked up here, on the CPU: asked for them, a GPU would have to end what it does first.
        positions = batch["mask_time_indices"].flatten().nonzero().squeeze(1)
        batch["masked_positions"] = positions.pin_memory() if device.type == "cuda" else positions
        masked = len(positions)
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        torch.manual_seed(stream_seed(recipe.seed, state.step, micro_step, accelerator.process_index))
        last = micro_step == micro_steps - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            # 1. The teacher sees the whole crop, 2. the student the masked one.
            with autocast(recipe.precision, device.type):
                result = model(**batch, teacher=state.teacher)

            # 3. The wrapper averages gradients over processes, hence the factor.
            loss = result.loss * (masked / nominal_masked(recipe) * accelerator.num_processes)
            state.scaler.scale(loss).backward()
        monitor.add(result, batch["mask_time_indices"], masked)
        num_masked += masked
    return num_masked


def optimise(
    accelerator, recipe: Recipe, state: TrainingState, num_masked: int, received: int = 0
) -> tuple[int, dict[str, float]]:
    """One Adam step on the gradient per masked frame of the whole update, then the teacher's.

    Both are skipped, and counted, where the gradient is not finite. The gradient is the same on all processes, and so
    is that decision.

    Args:
        received (`int`): the signal that this process was asked to stop by, or 0.

    Returns:
        `tuple[int, dict]`: the signal that any process has received, or 0; and `learning_rate`, `ema_decay` and
        `grad_norm` of the step.
    """
    rates = (recipe.learning_rate, recipe.phase_ratio, recipe.init_lr_scale, recipe.final_lr_scale)
    learning_rate = tri_stage_learning_rate(state.step, recipe.max_steps, *rates)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.scaler.unscale_(state.optimizer)
    totals = torch.zeros(1 + len(_SIGNALS), device=accelerator.device)
    totals[0] = num_masked
    if received:
        totals[1 + _SIGNALS.index(received)] = 1
    totals = accelerator.reduce(totals, "sum")
    trained = [parameter for parameter in state.student.parameters() if parameter.requires_grad]
    for parameter in trained:  # those of a layer that LayerDrop skipped have none, and take part all the same
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = [parameter.grad for parameter in trained]
    torch._foreach_mul_(gradients, nominal_masked(recipe) / totals[0])
    norm = torch.nn.utils.get_total_norm(gradients)
    found, *asked = torch.cat([norm[None], totals[1:]]).tolist()  # the one wait
    if math.isfinite(found):
        if recipe.max_grad_norm > 0:
            torch._foreach_mul_(gradients, (recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        state.optimizer.step()
        state.teacher.update(state.student, state.step + 1)
        state.skipped_in_a_row = 0
    else:
        state.skipped += 1
        state.skipped_in_a_row += 1
    state.scaler.update()
    state.optimizer.zero_grad()
    stop = next((number for number, count in zip(_SIGNALS, asked, strict=True) if count), 0)
    return stop, {
        "learning_rate": learning_rate,
        "ema_decay": state.teacher.decay(state.step + 1),
        "grad_norm": found,
    }


def nominal_masked(recipe: Recipe) -> float:
    """About the number of masked frames in an update, which keeps the summed loss in the range of a mean."""
    return 0.5 * recipe.rows_per_update * recipe.masks_per_crop * recipe.num_frames


def check_skipped(recipe: Recipe, state: TrainingState) -> None:
    """Raise [`TrainingStopped`] if too many updates in a row were skipped."""
    if state.skipped_in_a_row > recipe.max_skipped_in_a_row:
        raise TrainingStopped(
            f"{state.skipped_in_a_row} updates in a row, up to step {state.step}, were not finite and were skipped; "
            f"`max_skipped_in_a_row` is {recipe.max_skipped_in_a_row}. Start again with `precision` fp32 or a lower "
            "`learning_rate`."
        )


class StopRequest:
    """Keeps SIGTERM and SIGUSR1, which clusters send before they take a machine back, for the loop, which looks at
    `received` (0: none) in each step. A context: on leaving it the earlier handlers are back."""

    def __init__(self):
        self.received, self._earlier = 0, {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # which alone Python gives signals to
            for number in _SIGNALS:
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.received = number


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool):
    """Let torch compute the same bits each time, on CUDA too, during the block."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def announce(accelerator, recipe: Recipe, state: TrainingState, audio: str, micro_steps: int) -> None:
    """Print what is about to run."""
    device = accelerator.device.type
    what = f"distilling {recipe.distill_from} into" if recipe.distill_from else "pretraining"
    accelerator.print(
        f"{what} {sum(p.numel() for p in state.student.parameters()) / 1e6:.1f} M parameters on {audio}, "
        f"{recipe.rows_per_update} crops of {recipe.crop_seconds:g} s per step in {micro_steps} micro-batches on "
        f"{accelerator.num_processes} {device} device(s), {choose_precision(recipe.precision, device)} precision, "
        f"steps {state.step} to {recipe.max_steps}"
    )


__all__ = ["StopRequest", "accumulate", "optimise", "pretrain", "run_steps"]
