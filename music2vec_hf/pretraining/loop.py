"""The pretraining loop (stages 4 to 11). Everything random is a function of (seed, step, index)."""

import contextlib
import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from music2vec_hf.data.batches import BatchPlan, CropDataset, training_batches
from music2vec_hf.data.corpus import load_corpus
from music2vec_hf.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.precision import choose_precision
from music2vec_hf.pretraining.arguments import Recipe
from music2vec_hf.pretraining.checkpoints import checkpoints, load_training_state, save_checkpoint
from music2vec_hf.pretraining.monitors import Monitor
from music2vec_hf.pretraining.schedules import ReferenceAdam, tri_stage_learning_rate
from music2vec_hf.teacher_music2vec import EMATeacher

_INIT_STREAM, _DROPOUT_STREAM = 3, 4


def pretrain(recipe: Recipe, corpus: str | Path, output: str | Path, resume: bool = False) -> Path:
    """Pretrain Music2Vec.

    Args:
        recipe ([`Recipe`]): from [`load_recipe`].
        corpus (`str` or `Path`): a prepared corpus.
        output (`str` or `Path`): folder of the run: `checkpoint-<step>/`, `metrics.jsonl`, and at the end the model.
        resume (`bool`): go on from the last checkpoint in `output`, if there is one.

    Returns:
        `Path`: `output`, which then loads with `from_pretrained`.

    Raises:
        ValueError: if `output` holds a run and `resume` is not set, or a checkpoint does not fit the recipe.
        TrainingStopped: if the loss is not finite or the model collapses.
    """
    output = Path(output)
    found = checkpoints(output)
    if found and not resume:
        raise ValueError(f"{output} holds a run up to {found[-1].name}. Add `--resume`, or name another `--output`.")
    dataset = CropDataset(load_corpus(corpus), batch_plan(recipe))
    output.mkdir(parents=True, exist_ok=True)

    accelerator = make_accelerator(recipe)
    student, first_step, teacher, optimizer = prepare_training(recipe, accelerator, found[-1] if found else None)
    feature_extractor = Music2VecFeatureExtractor(receptive_field=student.config.receptive_field)
    micro_steps = count_micro_steps(recipe, accelerator.num_processes)
    batches = training_batches(
        dataset,
        first_step,
        recipe.max_steps,
        micro_steps,
        accelerator.process_index,
        accelerator.num_processes,
        recipe.num_workers,
    )
    announce(accelerator, recipe, student, dataset, first_step, micro_steps)
    model = accelerator.prepare_model(student)
    monitor = Monitor(output, recipe, first_step, accelerator)
    stream = iter(batches)

    for step in range(first_step, recipe.max_steps):
        # 1. to 3. Teacher and student see the step's crops; the gradient adds up over micro-batches.
        num_masked = accumulate(accelerator, recipe, model, teacher, stream, step, micro_steps, monitor)

        # 4. Optimise the student; the teacher follows, once per step.
        learning_rate = tri_stage_learning_rate(
            step,
            recipe.max_steps,
            recipe.learning_rate,
            recipe.phase_ratio,
            recipe.init_lr_scale,
            recipe.final_lr_scale,
        )
        grad_norm = optimise(accelerator, recipe, student, optimizer, learning_rate, num_masked)
        ema_decay = teacher.update(student, step + 1)

        # 5. Watch, log, save.
        monitor.end_step(step + 1, learning_rate, ema_decay, grad_norm)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.max_steps:
            if accelerator.is_main_process:
                save_checkpoint(output, step + 1, student, feature_extractor, teacher, optimizer, recipe)
            accelerator.wait_for_everyone()
    monitor.close()
    if accelerator.is_main_process:
        student.save_pretrained(output)
        feature_extractor.save_pretrained(output)
    accelerator.end_training()
    return output


def accumulate(accelerator, recipe: Recipe, model, teacher, stream, step: int, micro_steps: int, monitor) -> int:
    """Forward and backward over one step's micro-batches; returns this process' number of masked frames.

    Losses are summed, not averaged: [`optimise`] divides the gradient by the masked frames of the whole update.
    """
    num_masked = 0
    for micro_step in range(micro_steps):
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(stream).items()}
        torch.manual_seed(stream_seed(recipe.seed, step, micro_step, accelerator.process_index))
        last = micro_step == micro_steps - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            # 1. The teacher sees the whole crop, 2. the student the masked one.
            result = model(**batch, teacher=teacher)

            # 3. The wrapper averages gradients over processes, hence the factor.
            masked = int(batch["mask_time_indices"].sum())
            accelerator.backward(result.loss * (masked / nominal_masked(recipe) * accelerator.num_processes))
        monitor.add(result, masked, batch["mask_time_indices"].numel())
        num_masked += masked
    return num_masked


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator of a run, in the recipe's precision."""
    precision = choose_precision(recipe.precision)
    # A layer that LayerDrop skips has no gradient; the wrapper has to be told to expect that.
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=recipe.layerdrop > 0)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[kwargs])


def prepare_training(recipe: Recipe, accelerator, checkpoint: Path | None):
    """Student, steps done, teacher and optimiser: new from the recipe's seed, or from a checkpoint."""
    torch.manual_seed(stream_seed(recipe.seed, _INIT_STREAM, 0, 0))
    student = Music2VecForPreTraining(recipe.model_config())
    if checkpoint is not None:
        student = Music2VecForPreTraining.from_pretrained(checkpoint, dtype=torch.float32)
    student.to(accelerator.device).train()
    teacher = EMATeacher(student)
    optimizer = ReferenceAdam(
        student.parameters(),
        recipe.learning_rate,
        recipe.adam_betas,
        recipe.adam_epsilon,
        recipe.weight_decay,
        fused=True,
    )
    first_step = 0 if checkpoint is None else load_training_state(checkpoint, recipe, teacher, optimizer)
    return student, first_step, teacher, optimizer


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
        normalize=recipe.normalize,
    )


def count_micro_steps(recipe: Recipe, num_processes: int) -> int:
    """Micro-batches per update on each device, so that none holds more than `max_seconds_per_device` of audio."""
    rows_per_device = math.ceil(recipe.rows_per_update / num_processes)
    return math.ceil(rows_per_device / max(1, int(recipe.max_seconds_per_device / recipe.crop_seconds + 1e-9)))


def nominal_masked(recipe: Recipe) -> float:
    """About the number of masked frames in an update, which keeps the summed loss in the range of a mean."""
    return 0.5 * recipe.rows_per_update * recipe.num_frames


def optimise(accelerator, recipe: Recipe, student, optimizer, learning_rate: float, num_masked: int) -> torch.Tensor:
    """One Adam step on the gradient per masked frame of the whole update; returns the gradient's norm."""
    total = accelerator.reduce(torch.tensor(float(num_masked), device=accelerator.device), "sum")
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, nominal_masked(recipe) / total)
    norm = torch.nn.utils.get_total_norm(gradients)
    if recipe.max_grad_norm > 0:
        torch._foreach_mul_(gradients, (recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


def stream_seed(seed: int, *indices: int) -> int:
    """A generator seed for one (step, micro-step, process), independent of what was drawn before."""
    return int(np.random.SeedSequence([seed, _DROPOUT_STREAM, *indices]).generate_state(1, np.uint64)[0] >> 1)


def announce(accelerator, recipe: Recipe, student, dataset: CropDataset, first_step: int, micro_steps: int) -> None:
    """Print what is about to run, and which clips are left out."""
    hours = dataset.lengths.sum() / 16_000 / 3600
    accelerator.print(
        f"pretraining {sum(p.numel() for p in student.parameters()) / 1e6:.1f} M parameters on {hours:.2f} h of audio "
        f"({len(dataset.usable)} clips; {dataset.num_too_short} left out as shorter than a crop), "
        f"{recipe.rows_per_update} crops of {recipe.crop_seconds:g} s per step in {micro_steps} micro-batches on "
        f"{accelerator.num_processes} {accelerator.device.type} device(s), {accelerator.mixed_precision} precision, "
        f"steps {first_step} to {recipe.max_steps}"
    )


__all__ = ["pretrain"]
