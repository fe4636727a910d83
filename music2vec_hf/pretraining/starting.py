"""What a run needs before its first step: devices, learners, batches, and how much audio fits a device at once."""

import math
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DDPCommunicationHookType, TorchDynamoPlugin
from safetensors.torch import load_file
from transformers.utils import cached_file

from music2vec_hf.common.computing import autocast, check_gpu, choose_precision
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.weights import model_source
from music2vec_hf.corpus.batches import CropDataset, streaming_batches, training_batches
from music2vec_hf.corpus.crops import BatchPlan
from music2vec_hf.corpus.loading import load_corpus, stream_corpus
from music2vec_hf.features.encoders import compile_model
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher
from music2vec_hf.pretraining.arguments import SHAPE_KEYS, Recipe
from music2vec_hf.pretraining.checkpoints import TrainingState, load_training_state
from music2vec_hf.pretraining.distillation import new_distillation
from music2vec_hf.pretraining.dropout import make_dropout_cheap
from music2vec_hf.pretraining.schedules import ReferenceAdam

_DROPOUT_STREAM, _INIT_STREAM = 4, 8  # beside those of corpus/crops.py and corpus/batches.py
_FIRST_LOSS_SCALE = 128.0  # the reference's, for fp16
_SECONDS_WITHOUT_TRYING = 237.5  # the reference's forward pass of 3.8 M samples
_HEADROOM = 0.1  # share of a GPU's memory that a pass leaves free
_OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED")
# The fields beside the shape that decide what weights mean, which no recipe sets.
_MEANING = ("conv_bias", "hidden_act", "feat_extract_activation", "layer_norm_eps")


def make_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The accelerator of a run, with its tracker. Precision and compilation are those of the recipe, whatever the
    configuration of accelerate says.

    Raises:
        ValueError: if the launcher asks for anything but a whole copy on each device, the tracker is not installed, or
            there is a GPU that torch cannot use.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("1", "true", "yes"):
        check_gpu()
    for asked in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{asked}", "false").lower() == "true":
            raise ValueError(
                f"The launcher asks for {asked}, but every device trains a whole copy of the model here. Set "
                "`distributed_type: MULTI_GPU`, as examples/launch/eight_gpus.yaml does."
            )
    # A layer that LayerDrop skips has no gradient; the wrapper has to be told to expect that.
    hook = DDPCommunicationHookType.BF16 if recipe.gradient_compression == "bf16" else DDPCommunicationHookType.NO
    copies = DistributedDataParallelKwargs(find_unused_parameters=recipe.layerdrop > 0, comm_hook=hook)
    tracker = None if recipe.report_to == "none" else recipe.report_to
    accelerator = Accelerator(
        mixed_precision="no",
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        kwargs_handlers=[copies],
        log_with=tracker,
        project_dir=output,
    )
    if tracker is not None:
        if not accelerator.log_with:  # accelerate leaves out what is not installed, and says nothing
            raise ValueError(
                f"`report_to` is {tracker}, which is not installed: `pip install {tracker}`, or use none."
            )
        accelerator.init_trackers(output.resolve().name)
    return accelerator


def prepare_training(recipe: Recipe, accelerator, checkpoint: Path | None) -> TrainingState:
    """The state of a run: new from the recipe, or from a checkpoint."""
    torch.manual_seed(_seed_of(recipe.seed, _INIT_STREAM))
    if recipe.distill_from:
        student, teacher = new_distillation(recipe)
        if checkpoint is not None:
            student.load_state_dict(load_file(checkpoint / "model.safetensors"))
    elif checkpoint is None:
        student, teacher = new_learners(recipe)
    else:
        student = Music2VecForPreTraining.from_pretrained(checkpoint, dtype=torch.float32)
        teacher = EMATeacher(student)
    device = accelerator.device
    student.to(device).train()
    if recipe.feature_grad_mult == 0:  # nothing reaches the front end: several processes must not wait for it
        student.data2vec_audio.freeze_feature_encoder()
    if device.type == "cpu":
        make_dropout_cheap(student)
    if recipe.gradient_checkpointing:  # older transformers know only the second name, newer ones warn of it
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    compiled = device.type == "cuda" if recipe.compile == "auto" else recipe.compile
    if compiled:  # layer by layer, so that LayerDrop breaks no graph
        compile_model(student.data2vec_audio, dynamic=False)
        teacher.compile()
    adam = {"betas": recipe.adam_betas, "eps": recipe.adam_epsilon, "weight_decay": recipe.weight_decay}
    optimizer = ReferenceAdam(student.parameters(), recipe.learning_rate, **adam, fused=True)
    enabled = choose_precision(recipe.precision, device.type) == "fp16"
    scaler = torch.amp.GradScaler(device.type, init_scale=_FIRST_LOSS_SCALE, enabled=enabled)
    state = TrainingState(student, teacher.to(device), optimizer, scaler)
    if checkpoint is not None:
        load_training_state(checkpoint, state)
    return state


def stream_seed(seed: int, *indices: int) -> int:
    """A generator seed for one (step, micro-step, process), independent of what was drawn before."""
    return _seed_of(seed, _DROPOUT_STREAM, *indices)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def new_learners(recipe: Recipe) -> tuple[Music2VecForPreTraining, EMATeacher]:
    """Student and teacher of a run that has not begun, on the CPU.

    With `init_from` the student has that model's weights, and a new prediction head where the model has none; the
    teacher has those of its `teacher.safetensors` (our checkpoints and converted ones have it), else the student's.

    Args:
        recipe ([`Recipe`]): torch's generator is seeded by the caller.

    Raises:
        ValueError: if the model to start from is not there, or has another shape than the recipe's.
    """
    config, source = recipe.model_config(), recipe.init_from
    if source is None:
        student = Music2VecForPreTraining(config)
        return student, EMATeacher(student)
    source = model_source(source)
    with explain_hub_errors(source, "a model"):
        theirs = Music2VecConfig.from_pretrained(source)  # reads plain data2vec-audio too
    shapes = ((name, getattr(theirs, name), getattr(config, name)) for name in SHAPE_KEYS)
    differing = [f"`{name}` {there} there and {here} here" for name, there, here in shapes if there != here]
    if differing:
        raise ValueError(
            f"`init_from` {source} has another shape than the recipe ({', '.join(differing)}). Give the recipe the "
            "model's values."
        )
    for name in _MEANING:
        setattr(config, name, getattr(theirs, name))
    student = Music2VecForPreTraining.from_pretrained(source, config=config, dtype=torch.float32)
    teacher = EMATeacher(student)
    weights = cached_file(source, "teacher.safetensors", _raise_exceptions_for_missing_entries=False)
    if weights is not None:
        teacher.load_state_dict(load_file(weights))
    return student, teacher


def open_corpus(accelerator, recipe: Recipe, corpus: str | Path, first_step: int, micro_steps: int):
    """The micro-batches of this process from `first_step` on, and a description of the audio they come from."""
    plan = batch_plan(recipe)
    place = (first_step, recipe.max_steps, micro_steps, accelerator.process_index, accelerator.num_processes)
    if recipe.streaming:
        stream = stream_corpus(corpus, recipe.split)
        options = {"num_workers": recipe.num_workers, "buffer_size": recipe.buffer_size}
        return streaming_batches(stream, plan, *place, **options), "a stream"
    with accelerator.main_process_first():  # the first measures and caches what the others then find
        clips = load_corpus(corpus, recipe.split, report=accelerator.is_main_process)
    dataset = CropDataset(clips, plan, recipe.max_failed_share)
    hours = dataset.lengths.sum() / 16_000 / 3600
    left_out = f"{dataset.num_too_short} left out as shorter than a crop"
    batches = training_batches(dataset, *place, num_workers=recipe.num_workers)
    return batches, f"{hours:.2f} h of audio ({len(dataset.usable)} clips; {left_out})"


def batch_plan(recipe: Recipe) -> BatchPlan:
    """What the drawing of batches needs to know of a recipe."""
    names = {spec.name for spec in fields(BatchPlan)} - {"norm_eps", "mix_snr_db"}
    return BatchPlan(**{name: getattr(recipe, name) for name in names}, mix_snr_db=tuple(recipe.mix_snr_db))


def count_micro_steps(recipe: Recipe, num_processes: int, max_seconds: float) -> int:
    """Micro-batches per update on each device, so that none holds more than `max_seconds` of audio."""
    rows_per_device = math.ceil(recipe.rows_per_update / num_processes)
    return math.ceil(rows_per_device / max(1, int(max_seconds / recipe.crop_seconds + 1e-9)))


def fitting_seconds(recipe: Recipe, accelerator, student, teacher) -> float:
    """Seconds of audio that one forward and backward pass can hold on every device: `max_seconds_per_device: auto`.

    On a GPU passes of decreasing size are tried, from a device's whole share of the update down, with the optimiser's
    memory and a tenth of the GPU's set aside. Weights, gradients and random state are left as they were. On a CPU,
    which runs into swap instead of an error, it is the reference's 237.5 s.

    Args:
        recipe ([`Recipe`]): of the run.
        accelerator (`accelerate.Accelerator`): the devices.
        student, teacher: on the device, not wrapped.

    Raises:
        ValueError: if not even one crop fits.
    """
    device = accelerator.device
    if device.type == "cpu":
        return _SECONDS_WITHOUT_TRYING
    rows = math.ceil(recipe.rows_per_update / accelerator.num_processes)
    rows = largest_pass(recipe, device, student, teacher, rows)
    return float(accelerator.gather(torch.tensor([rows], device=device)).min()) * recipe.crop_seconds


def largest_pass(recipe: Recipe, device: torch.device, student, teacher, rows: int) -> int:
    """Most crops, at most `rows`, whose forward and backward pass the device can hold beside the optimiser's state.

    Two passes of each size, the second beside the gradients of the first, with all layers. They are not compiled,
    which takes no less memory: torch.compile would keep a version for every size that is tried.

    Raises:
        ValueError: if not even one crop fits.
    """
    on_gpu = device.type == "cuda"
    layerdrop, student.config.layerdrop = student.config.layerdrop, 0.0
    reserved = [torch.empty_like(p) for p in student.parameters() for _ in range(3)]  # Adam's two, one bucket copy
    if on_gpu:
        free = int(_HEADROOM * torch.cuda.get_device_properties(device).total_memory)
        reserved.append(torch.empty(free, dtype=torch.uint8, device=device))
    try:
        with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.compiler.set_stance("force_eager"):
            while not all(_fits(recipe, device, student, teacher, rows) for _ in range(2)):
                student.zero_grad()
                if rows == 1:
                    raise ValueError(
                        f"Not even one crop of {recipe.crop_seconds:g} s fits {device}. Use `--gradient_checkpointing "
                        "true`, fewer `masks_per_crop` or shorter `crop_seconds`."
                    )
                rows = max(1, int(0.9 * rows))
        return rows
    finally:
        student.config.layerdrop = layerdrop
        student.zero_grad()
        del reserved
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


def _fits(recipe: Recipe, device: torch.device, student, teacher, rows: int) -> bool:
    """Whether a pass of so many crops ends well."""
    try:
        mask = torch.zeros(rows, recipe.masks_per_crop, recipe.num_frames, dtype=torch.bool, device=device)
        mask[..., : recipe.num_frames // 2] = True
        with autocast(recipe.precision, device.type):
            output = student(torch.randn(rows, recipe.num_samples, device=device), None, mask, teacher)
        output.loss.backward()
        return True
    except RuntimeError as error:
        if not any(reason in str(error) for reason in _OUT_OF_MEMORY):
            raise
    if device.type == "cuda":  # here, where the error no longer holds on to what the pass had
        torch.cuda.empty_cache()
    return False


__all__ = ["count_micro_steps", "fitting_seconds", "make_accelerator", "open_corpus", "prepare_training"]
