"""The pretraining loop (stages 4 to 11). Everything random is a function of (seed, step, index)."""

import contextlib
import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DDPCommunicationHookType

from music2vec_hf.common.precision import autocast, choose_precision
from music2vec_hf.corpus.batch_plan import BatchPlan
from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.loading import check_corpus, load_corpus, stream_corpus
from music2vec_hf.corpus.streaming import streaming_batches
from music2vec_hf.features.encoders import compile_model, explain_compile_errors
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher
from music2vec_hf.pretraining.arguments import Recipe
from music2vec_hf.pretraining.checkpoints import (
    TrainingState,
    check_checkpoint,
    checkpoints,
    load_training_state,
    save_checkpoint,
)
from music2vec_hf.pretraining.dropout import make_dropout_cheap
from music2vec_hf.pretraining.fitting import fitting_seconds
from music2vec_hf.pretraining.monitors import Monitor, TrainingStopped
from music2vec_hf.pretraining.online_probe import OnlineProbe
from music2vec_hf.pretraining.run_record import write_run_record
from music2vec_hf.pretraining.schedules import ReferenceAdam, tri_stage_learning_rate
from music2vec_hf.pretraining.sharding import shard_student, sharding_is_asked, touch_all, whole
from music2vec_hf.pretraining.signals import StopRequest, TrainingInterrupted
from music2vec_hf.pretraining.starting import new_learners

_INIT_STREAM, _DROPOUT_STREAM = 3, 4
_FIRST_LOSS_SCALE = 128.0  # the reference's, for fp16


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
    probe = OnlineProbe(recipe) if recipe.probe_corpus and accelerator.is_main_process else None
    state = prepare_training(recipe, accelerator, found[-1] if found else None)
    max_seconds = recipe.max_seconds_per_device
    if max_seconds == "auto":
        max_seconds = fitting_seconds(recipe, accelerator, state.student, state.teacher)
    micro_steps = count_micro_steps(recipe, accelerator.num_processes, max_seconds)
    batches, audio = open_corpus(accelerator, recipe, corpus, state.step, micro_steps)
    announce(accelerator, recipe, state, audio, micro_steps)
    if accelerator.is_main_process:
        write_run_record(output, recipe, corpus, audio, state.step, accelerator)
    feature_extractor = Music2VecFeatureExtractor(receptive_field=state.student.config.receptive_field)
    try:
        with explain_compile_errors():
            run_steps(accelerator, recipe, state, batches, micro_steps, output, feature_extractor, probe)
    except TrainingStopped as error:
        kept = checkpoints(output)
        last = f"The last checkpoint is {kept[-1]}." if kept else "No checkpoint had been saved."
        raise TrainingStopped(f"{error} {last}") from None
    weights = state.weights()
    if accelerator.is_main_process:
        state.student.save_pretrained(output, state_dict=weights["student"])
        feature_extractor.save_pretrained(output)
    accelerator.end_training()
    return output


def run_steps(
    accelerator, recipe: Recipe, state: TrainingState, batches, micro_steps, output, feature_extractor, probe
):
    """The loop itself: from `state.step` to `max_steps`; `probe` is the main process' [`OnlineProbe`], if any."""
    if sharding_is_asked(recipe):
        shard_student(state, accelerator.device)
        model = state.student
    else:
        model = accelerator.prepare_model(state.student)
    stream, failed = iter(batches), getattr(batches.dataset, "failed", None)  # a stream counts no failed clips
    monitor = Monitor(output, recipe, state.step, accelerator)
    with contextlib.closing(monitor), StopRequest(accelerator) as request:
        while state.step < recipe.max_steps:
            monitor.begin_step(state.step + 1)

            # 1. to 3. Teacher and student see the step's crops; the gradient adds up over micro-batches.
            num_masked = accumulate(accelerator, recipe, model, state, stream, micro_steps, monitor)

            # 4. Optimise the student; the teacher follows, once per step.
            values = optimise(accelerator, recipe, state, num_masked)
            state.step += 1

            # 5. Watch, log, save.
            monitor.end_step(state.step, state.skipped, failed.count if failed else 0, **values)
            if probe and state.step % recipe.probe_every == 0:
                monitor.write({"step": state.step, **probe(state.student, feature_extractor)})
            check_skipped(recipe, state)
            asked = request.pending()
            if asked or state.step % recipe.save_every == 0 or state.step == recipe.max_steps:
                weights = state.weights()
                if accelerator.is_main_process:
                    save_checkpoint(output, state, weights, feature_extractor, recipe)
                accelerator.wait_for_everyone()
            if asked and state.step < recipe.max_steps:
                raise TrainingInterrupted(
                    f"{asked} came, and the run is saved as {output}/checkpoint-{state.step}. Go on with `--resume`."
                )


def accumulate(accelerator, recipe: Recipe, model, state: TrainingState, stream, micro_steps: int, monitor) -> int:
    """Forward and backward over one step's micro-batches; returns this process' number of masked frames.

    Losses are summed, not averaged: [`optimise`] divides the gradient by the masked frames of the whole update.
    """
    num_masked = 0
    device = accelerator.device
    for micro_step in range(micro_steps):
        batch = monitor.wait_for(stream)
        masked = int(batch["mask_time_indices"].sum())
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        torch.manual_seed(stream_seed(recipe.seed, state.step, micro_step, accelerator.process_index))
        last = micro_step == micro_steps - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            # 1. The teacher sees the whole crop, 2. the student the masked one.
            with autocast(recipe.precision, device.type):
                result = model(**batch, teacher=state.teacher)

            # 3. The wrapper averages gradients over processes, hence the factor.
            loss = result.loss * (masked / nominal_masked(recipe) * accelerator.num_processes)
            accelerator.backward(state.scaler.scale(loss + touch_all(state.student)))
        monitor.add(result, batch["mask_time_indices"], masked)
        num_masked += masked
    return num_masked


def optimise(accelerator, recipe: Recipe, state: TrainingState, num_masked: int) -> dict[str, float]:
    """One Adam step on the gradient per masked frame of the whole update, then the teacher's.

    Both are skipped, and counted, where the gradient is not finite. The gradient is the same on all processes, and so
    is that decision.

    Returns:
        `dict`: `learning_rate`, `ema_decay` and `grad_norm` of the step.
    """
    learning_rate = tri_stage_learning_rate(
        state.step,
        recipe.max_steps,
        recipe.learning_rate,
        recipe.phase_ratio,
        recipe.init_lr_scale,
        recipe.final_lr_scale,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.scaler.unscale_(state.optimizer)
    total = accelerator.reduce(torch.tensor(float(num_masked), device=accelerator.device), "sum")
    gradients = [parameter.grad for parameter in state.student.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, nominal_masked(recipe) / total)
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if torch.isfinite(norm):
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
    return {
        "learning_rate": learning_rate,
        "ema_decay": state.teacher.decay(state.step + 1),
        "grad_norm": float(norm),
    }


def check_skipped(recipe: Recipe, state: TrainingState) -> None:
    """Raise [`TrainingStopped`] if too many updates in a row were skipped."""
    if state.skipped_in_a_row > recipe.max_skipped_in_a_row:
        raise TrainingStopped(
            f"{state.skipped_in_a_row} updates in a row, up to step {state.step}, were not finite and were skipped; "
            f"`max_skipped_in_a_row` is {recipe.max_skipped_in_a_row}. Start again with `precision` fp32 or a lower "
            "`learning_rate`."
        )


def make_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The accelerator of a run, with its tracker. Precision is the recipe's, whatever accelerate's own file says.

    Raises:
        ValueError: if the tracker is not installed.
    """
    # A layer that LayerDrop skips has no gradient; the wrapper has to be told to expect that.
    hook = DDPCommunicationHookType.BF16 if recipe.gradient_compression == "bf16" else DDPCommunicationHookType.NO
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=recipe.layerdrop > 0, comm_hook=hook)
    tracker = None if recipe.report_to == "none" else recipe.report_to
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[kwargs], log_with=tracker, project_dir=output)
    if tracker is not None:
        if not accelerator.log_with:  # accelerate leaves out what is not installed, and says nothing
            raise ValueError(
                f"`report_to` is {tracker}, which is not installed: `pip install {tracker}`, or use none."
            )
        accelerator.init_trackers(output.resolve().name)
    return accelerator


def prepare_training(recipe: Recipe, accelerator, checkpoint: Path | None) -> TrainingState:
    """The state of a run: new from the recipe, or from a checkpoint."""
    torch.manual_seed(stream_seed(recipe.seed, _INIT_STREAM, 0, 0))
    if checkpoint is None:
        student, teacher = new_learners(recipe)
    else:
        student = Music2VecForPreTraining.from_pretrained(checkpoint, dtype=torch.float32)
        teacher = EMATeacher(student)
    student.to(accelerator.device).train()
    if accelerator.device.type == "cpu":
        make_dropout_cheap(student)
    if recipe.gradient_checkpointing:  # older transformers know only the second name, newer ones warn of it
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    if recipe.compile:  # layer by layer, so that LayerDrop breaks no graph
        compile_model(student.data2vec_audio, dynamic=False)
        teacher.compile()
    optimizer = ReferenceAdam(
        student.parameters(),
        recipe.learning_rate,
        recipe.adam_betas,
        recipe.adam_epsilon,
        recipe.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(
        accelerator.device.type, init_scale=_FIRST_LOSS_SCALE, enabled=choose_precision(recipe.precision) == "fp16"
    )
    state = TrainingState(student, teacher.to(accelerator.device), optimizer, scaler)
    if checkpoint is not None:
        load_training_state(checkpoint, state)
    return state


def open_corpus(accelerator, recipe: Recipe, corpus: str | Path, first_step: int, micro_steps: int):
    """The micro-batches of this process from `first_step` on, and a description of the audio they come from."""
    plan = batch_plan(recipe)
    place = (first_step, recipe.max_steps, micro_steps, accelerator.process_index, accelerator.num_processes)
    workers = recipe.num_workers
    if recipe.streaming:
        stream = stream_corpus(corpus, recipe.split)
        batches = streaming_batches(stream, plan, *place, num_workers=workers, buffer_size=recipe.buffer_size)
        return batches, "a stream"
    with accelerator.main_process_first():  # the first measures and caches what the others then find
        clips = load_corpus(corpus, recipe.split, report=accelerator.is_main_process)
    dataset = CropDataset(clips, plan, recipe.max_failed_share)
    hours = dataset.lengths.sum() / 16_000 / 3600
    left_out = f"{dataset.num_too_short} left out as shorter than a crop"
    return training_batches(
        dataset, *place, num_workers=workers
    ), f"{hours:.2f} h of audio ({len(dataset.usable)} clips; {left_out})"


def batch_plan(recipe: Recipe) -> BatchPlan:
    """What the data wing needs to know of a recipe."""
    return BatchPlan(
        seed=recipe.seed,
        rows_per_update=recipe.rows_per_update,
        num_samples=recipe.num_samples,
        num_frames=recipe.num_frames,
        mask_group_rows=recipe.mask_group_rows,
        mask_time_prob=recipe.mask_time_prob,
        mask_time_length=recipe.mask_time_length,
        require_same_masks=recipe.require_same_masks,
        mask_dropout=recipe.mask_dropout,
        masks_per_crop=recipe.masks_per_crop,
        normalize=recipe.normalize,
        crops_per_clip=recipe.crops_per_clip,
        mix_prob=recipe.mix_prob,
        mix_snr_db=tuple(recipe.mix_snr_db),
        gain_db=recipe.gain_db,
    )


def count_micro_steps(recipe: Recipe, num_processes: int, max_seconds: float) -> int:
    """Micro-batches per update on each device, so that none holds more than `max_seconds` of audio."""
    rows_per_device = math.ceil(recipe.rows_per_update / num_processes)
    return math.ceil(rows_per_device / max(1, int(max_seconds / recipe.crop_seconds + 1e-9)))


def nominal_masked(recipe: Recipe) -> float:
    """About the number of masked frames in an update, which keeps the summed loss in the range of a mean."""
    return 0.5 * recipe.rows_per_update * recipe.masks_per_crop * recipe.num_frames


def stream_seed(seed: int, *indices: int) -> int:
    """A generator seed for one (step, micro-step, process), independent of what was drawn before."""
    return int(np.random.SeedSequence([seed, _DROPOUT_STREAM, *indices]).generate_state(1, np.uint64)[0] >> 1)


def announce(accelerator, recipe: Recipe, state: TrainingState, audio: str, micro_steps: int) -> None:
    """Print what is about to run."""
    accelerator.print(
        f"pretraining {sum(p.numel() for p in state.student.parameters()) / 1e6:.1f} M parameters on {audio}, "
        f"{recipe.rows_per_update} crops of {recipe.crop_seconds:g} s per step in {micro_steps} micro-batches on "
        f"{accelerator.num_processes} {accelerator.device.type} device(s), {choose_precision(recipe.precision)} "
        f"precision, steps {state.step} to {recipe.max_steps}"
    )


__all__ = ["pretrain"]
