"""What test_fake_gpu.py runs in a process that sees a GPU: `python fake_gpu.py [CASE...]` prints what each did."""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent / "pretraining"))
from fake_cuda.counting import Gpu
from gpu_bytes import OneGpu, one_update
from torch.profiler import ProfilerActivity
from toy_model import SIZES, save_model
from toy_run import toy

from music2vec_hf import Music2VecConfig, Music2VecForPreTraining, Music2VecForSequenceClassification, Music2VecModel
from music2vec_hf.features.embeddings import embed
from music2vec_hf.finetuning.fitting import WeightedLoss
from music2vec_hf.model import frontend_music2vec
from music2vec_hf.model.heads_music2vec import Music2VecForAudioFrameClassification
from music2vec_hf.pretraining.starting import largest_pass, prepare_training
from music2vec_hf.probing.probes import ProbeData, ProbeJob, get_search
from music2vec_hf.probing.training import train_probes

NOISE = np.random.default_rng(0).standard_normal((3, 24_000)).astype(np.float32)
CONFIG = Music2VecConfig(**SIZES, num_labels=4)


def pretraining(gpu: Gpu, updates: int = 2, **settings) -> dict:
    """The last of the updates, by default the second."""
    recipe = toy(**{"compile": False} | settings)
    state = prepare_training(recipe, OneGpu(), None)
    for _ in range(updates):
        with gpu.count(), patch.object(state.optimizer, "zero_grad"):
            one_update(gpu, recipe, state, 3)
    return {"gradients": types_of_gradients(state.student)}


def types_of_gradients(model) -> list[str]:
    return sorted({str(weight.grad.dtype) for weight in model.parameters() if weight.grad is not None})


def distillation(gpu: Gpu) -> dict:
    """An update with a teacher that has half as many frames."""
    slow = Music2VecConfig(**SIZES, conv_stride=[5, 2, 2, 2, 2, 2, 4])
    with tempfile.TemporaryDirectory() as folder:
        save_model(Music2VecModel(slow), folder)
        return pretraining(gpu, precision="bf16", distill_from=folder, distill_layers=["conv", 1, 3])


def embedding(gpu: Gpu, **settings) -> dict:
    """Three tracks of two lengths."""
    model = Music2VecModel(CONFIG).to("cuda")
    with gpu.count():
        found = embed(model, [NOISE[0], NOISE[1], NOISE[2, :16_000]], sampling_rate=16_000, **settings)
    return {"shapes": [list(np.shape(row)) for row in found]}


def head(gpu: Gpu, kind: type, problem_type: str | None, labels: tuple, **settings) -> dict:
    """A step of training, as fine-tuning takes it, and the mode of use; `labels` are a shape and a type."""
    config = Music2VecConfig(**SIZES, num_labels=4, problem_type=problem_type, **settings)
    model = kind(config).to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    shape, dtype = labels
    with gpu.count():
        values, mask = (torch.ones(3, 24_000, device="cuda") for _ in range(2))
        with torch.autocast("cuda", torch.bfloat16):
            output = model(values, attention_mask=mask, labels=torch.zeros(shape, dtype=dtype, device="cuda"))
        output.loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.eval()(values)
    return {"gradients": types_of_gradients(model)}


def weighted_loss(gpu: Gpu) -> dict:
    """The loss that weighs rare classes."""
    with gpu.count():
        logits = torch.zeros(3, 4, device="cuda", requires_grad=True)
        labels = torch.zeros(3, dtype=torch.long, device="cuda")
        WeightedLoss(torch.ones(4), False)({"logits": logits}, labels).backward()
    return {}


def probes(gpu: Gpu) -> dict:
    """Probes of all shapes of the search `quick`, for a few steps."""
    rng, search = np.random.default_rng(0), replace(get_search("quick"), max_steps=4, eval_every=2)
    features, targets = {"0": rng.standard_normal((40, 8), np.float32)}, rng.integers(0, 4, 40)
    data = ProbeData(features, targets, features, targets, "single_label_classification", 4, "accuracy")
    jobs = [ProbeJob("0", settings, 0) for settings in search.settings]
    with gpu.count():
        trained = train_probes(jobs, data, search, "cuda")
    return {"probes": len(trained)}


def size_of_a_pass(gpu: Gpu) -> dict:
    """`max_seconds_per_device: auto`, on a GPU that holds anything."""
    recipe = toy(compile=False)
    state = prepare_training(recipe, OneGpu(), None)
    with gpu.count(), patch("torch.cuda.reset_peak_memory_stats"), patch("torch.random.fork_rng"):
        rows = largest_pass(recipe, torch.device("cuda"), state.student, state.teacher, 5)
    return {"rows": rows}


def large_batch(gpu: Gpu) -> dict:
    """A batch whose first layer would have too many elements."""
    model = Music2VecModel(CONFIG).to("cuda").eval()
    sizes = []
    finish = model.feature_extractor._finish
    model.feature_extractor._finish = lambda frames, *rest: sizes.append(frames.numel()) or finish(frames, *rest)
    with gpu.count(), torch.no_grad():
        frames = model.feature_extractor(torch.empty(4, 2**28 - 1000, device="cuda"))
    return {"rows": len(frames), "largest": max(sizes)}


def course_of_measurements(gpu: Gpu) -> dict:
    """All of `make bench-gpu`'s own measurements, at toy size; what torch.compile makes is counted elsewhere."""
    from gpu import Course, report

    settings = SIZES | {"num_hidden_layers": 2, "average_top_k_layers": 2}
    course = Course(settings=settings, counting=gpu.count, pairs=1, rows=(2,))
    accelerator = patch("pretrain_step.Accelerator", lambda **settings: OneGpu())
    with accelerator, patch("torch.compile", lambda function, **options: function):
        text = report(course, 989e12, [ProfilerActivity.CPU])
    ended = Course(limit_s=0.0, settings=settings, counting=gpu.count, rows=(2,))
    return {"page": text, "ended": report(ended, 989e12, [])}


def mask_left_on_the_cpu(gpu: Gpu) -> dict:
    """A mistake: what is moved with the batch is not."""
    forward = Music2VecForPreTraining.forward

    def mistaken(student, input_values, mask_time_indices=None, **rest):
        return forward(student, input_values, mask_time_indices=mask_time_indices.cpu(), **rest)

    with patch.object(Music2VecForPreTraining, "forward", mistaken):
        return pretraining(gpu)


def frames_changed_by(mistake: Callable, gpu: Gpu) -> dict:
    """A mistake in every layer of the front end."""
    finish = frontend_music2vec._norm_and_activation
    mistaken = patch.object(
        frontend_music2vec, "_norm_and_activation", lambda frames, *rest: finish(mistake(frames), *rest)
    )
    with mistaken:
        return pretraining(gpu, updates=1)


SLOW = "course of measurements"
CLIPS, TAGS, FLOATS = Music2VecForSequenceClassification, "multi_label_classification", ((3, 4), torch.float32)
CASES: dict[str, Callable[[Gpu], dict]] = {
    "pretraining": pretraining,
    "bf16, recomputing": partial(pretraining, precision="bf16", gradient_checkpointing=True),
    "fp16, three masks": partial(pretraining, precision="fp16", masks_per_crop=3),
    "tf32, clipping, spectra": partial(pretraining, precision="tf32", max_grad_norm=1.0, acoustic_weight=1.0),
    "bf16, frozen teacher": distillation,
    "embed": embedding,
    "embed bf16 frames": partial(embedding, precision="bf16", pool="none"),
    "head of classes": partial(head, kind=CLIPS, problem_type=None, labels=(3, torch.long)),
    "head of tags, weighted layers": partial(
        head, kind=CLIPS, problem_type=TAGS, labels=FLOATS, classifier_layer="weighted", classifier_hidden_size=8
    ),
    "head of values, conv": partial(
        head, kind=CLIPS, problem_type="regression", labels=FLOATS, classifier_layer="conv"
    ),
    "head of frames": partial(
        head, kind=Music2VecForAudioFrameClassification, problem_type=None, labels=((3, 74), torch.long)
    ),
    "weighted loss": weighted_loss,
    "probes": probes,
    "size of a pass": size_of_a_pass,
    "large batch": large_batch,
    SLOW: course_of_measurements,
    "a mask left on the CPU": mask_left_on_the_cpu,
    "a value asked for": partial(frames_changed_by, lambda frames: frames * (1.0 if frames.sum().item() else 0.0)),
    "double precision": partial(frames_changed_by, lambda frames: frames.double().float()),
}


def main() -> None:
    """Run the cases that are named, by default all but the slow one, one after the other."""
    found = {}
    names = sys.argv[1:] or [name for name in CASES if name != SLOW]
    for name, case in ((name, CASES[name]) for name in names):
        gpu = Gpu()
        try:
            with gpu:
                result = case(gpu)
        except Exception as error:  # what it is decides the test
            result = {"error": f"{type(error).__name__}: {error}"[:400]}
        mixed = {operation.name for operation in gpu.operations if len(operation.devices) > 1}
        double = {operation.name for operation in gpu.operations if torch.float64 in operation.dtypes}
        waits = {str(cause): number for cause, number in gpu.waits.items()}
        found[name] = {**result, "mixed": sorted(mixed), "double": sorted(double), "waits": waits}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
