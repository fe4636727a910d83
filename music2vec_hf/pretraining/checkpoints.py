"""What a run leaves (stage 11): `checkpoint-<step>/`, each with the student, the extractor and the training state, and
`run.json`, which says for the model card what the run is made of. Whatever kills a run, each of them is whole."""

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import accelerate
import torch
import transformers
import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import music2vec_hf
from music2vec_hf.common.computing import choose_precision
from music2vec_hf.common.files import RUN, read_json, read_run, write_json, written_aside
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher
from music2vec_hf.pretraining.arguments import MACHINE_KEYS, Recipe, load_recipe, recipe_names
from music2vec_hf.pretraining.schedules import ReferenceAdam

_NAME = re.compile(r"checkpoint-(\d+)")
_COUNTS = ("step", "skipped", "skipped_in_a_row", "fitting_seconds")
_CPU_INFO = Path("/proc/cpuinfo")
_LIBRARIES = (music2vec_hf, torch, transformers, accelerate)


@dataclass
class TrainingState:
    """What a run consists of between two steps.

    Args:
        student, teacher, optimizer: the learners; of a distillation [`Music2VecForDistillation`] and
            [`FrozenTeacher`].
        scaler (`torch.amp.GradScaler`): of the loss in fp16; passes everything through in other precisions.
        step (`int`): steps done, skipped ones included.
        skipped (`int`): steps whose update was not finite and therefore left out.
        skipped_in_a_row (`int`): of these, the ones just before.
        fitting_seconds (`float`, *optional*): what `max_seconds_per_device: auto` found at the run's beginning.
    """

    student: Music2VecForPreTraining
    teacher: EMATeacher
    optimizer: ReferenceAdam
    scaler: torch.amp.GradScaler
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    fitting_seconds: float | None = None


def save_model(folder: Path, student: Music2VecForPreTraining) -> None:
    """Write the student and its feature extractor: the folder loads with `from_pretrained`."""
    student.save_pretrained(folder)
    Music2VecFeatureExtractor(receptive_field=student.config.receptive_field).save_pretrained(folder)


def save_checkpoint(output: Path, state: TrainingState, recipe: Recipe) -> Path:
    """Write `output/checkpoint-<step>`, then drop the oldest beyond the recipe's `keep_last`, except those that
    `keep_every` keeps for good.

    Args:
        output (`Path`): folder of the run.
        state ([`TrainingState`]): the student is written by [`save_model`].
        recipe ([`Recipe`]): what the run is; compared on resume.

    Returns:
        `Path`: the checkpoint.

    Raises:
        OSError: if the disk is full or not writable; the earlier checkpoints are untouched, what was written is gone.
    """
    final = output / f"checkpoint-{state.step}"
    try:
        with written_aside(final) as folder:
            _write(folder, state, recipe)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many names
        kept = checkpoints(output)
        last = f"the last whole checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise OSError(
            f"{final} could not be written ({' '.join(str(error).split())}); {last}. Free some space and `--resume`."
        ) from error
    _flush_to_disk(output)
    for old in checkpoints(output)[: -recipe.keep_last]:
        if not recipe.keep_every or _step_of(old) % recipe.keep_every:
            shutil.rmtree(old)
    return final


def _write(folder: Path, state: TrainingState, recipe: Recipe) -> None:
    save_model(folder, state.student)
    teacher = {name: tensor.contiguous() for name, tensor in state.teacher.state_dict().items()}
    save_file(teacher, folder / state.teacher.checkpoint_name)
    torch.save(state.optimizer.state_dict(), folder / "optimizer.pt")
    counts = {name: getattr(state, name) for name in _COUNTS}
    content = {**counts, "scaler": state.scaler.state_dict(), "recipe": recipe.to_dict()}
    write_json(folder / "trainer_state.json", content)
    for path in folder.iterdir():
        _flush_to_disk(path)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in Path(output).glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of)


def remove_unfinished(output: Path) -> None:
    """Remove the checkpoints that a killed run was writing."""
    for folder in output.glob("*checkpoint-*.unfinished"):
        shutil.rmtree(folder)


def _step_of(checkpoint: Path) -> int:
    return int(_NAME.fullmatch(checkpoint.name)[1])


def check_checkpoint(checkpoint: Path, recipe: Recipe) -> None:
    """Raise a ValueError that names the differing keys if a checkpoint was made by another recipe."""
    ours = recipe.to_dict()
    # A key that is younger than the checkpoint had no effect: it has its default.
    theirs = Recipe().to_dict() | read_json(checkpoint / "trainer_state.json")["recipe"]
    differing = sorted(
        key for key in ours.keys() | theirs.keys() if key not in MACHINE_KEYS and ours.get(key) != theirs.get(key)
    )
    if differing:
        listed = ", ".join(f"`{key}` {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing)
        raise ValueError(
            f"{checkpoint} was made by another recipe ({listed}). Resume with the same values, or start a new run in "
            "another `--output`."
        )


def load_training_state(checkpoint: Path, state: TrainingState) -> None:
    """Set teacher, optimiser, scaler and counts from a checkpoint; the student is loaded before they are made."""
    content = read_json(checkpoint / "trainer_state.json")
    state.teacher.load_state_dict(load_file(checkpoint / state.teacher.checkpoint_name))
    state.optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(content["scaler"])
    for name in _COUNTS:
        setattr(state, name, content.get(name))  # version 0.1.0 kept no `fitting_seconds`


def write_run_record(
    output: Path, recipe: Recipe, corpus: str | Path, audio: str, first_step: int, accelerator
) -> Path:
    """Write what the run is made of, and add the machine that works on it from `first_step` on.

    Nothing in it is a path of this machine: of a folder only the last name is kept.

    Args:
        output (`Path`): folder of the run.
        recipe ([`Recipe`]): of the run.
        corpus (`str` or `Path`): folder or Hub id.
        audio (`str`): what was found there, in words.
        first_step (`int`): steps done before; sessions that began at or after it are forgotten, as their steps are.
        accelerator (`accelerate.Accelerator`): the devices.

    Returns:
        `Path`: of `run.json`.
    """
    earlier = (read_run(output) or {"sessions": []})["sessions"]
    name, differences = nearest_recipe(recipe)
    content = {
        "recipe": name,
        "differences": differences,
        **({"teacher": _without_path(recipe.distill_from)} if recipe.distill_from else {}),
        "max_steps": recipe.max_steps,
        "audio_seconds_per_step": recipe.rows_per_update * recipe.crop_seconds,
        "corpus": _describe_corpus(corpus, audio),
        "sessions": [
            *(known for known in earlier if known["first_step"] < first_step),
            {"first_step": first_step, **_describe_machine(accelerator, recipe.precision)},
        ],
    }
    return write_json(output / RUN, content)


def nearest_recipe(recipe: Recipe) -> tuple[str, dict]:
    """The packaged recipe with the fewest other values, and these values; what only the machine sees is left out."""
    ours = {key: value for key, value in recipe.to_dict().items() if key not in MACHINE_KEYS}
    found = {}
    for name in recipe_names():
        theirs = load_recipe(name).to_dict()
        found[name] = {key: value for key, value in ours.items() if value != theirs[key]}
    name = min(found, key=lambda name: len(found[name]))
    if "init_from" in found[name]:
        found[name]["init_from"] = _without_path(found[name]["init_from"])
    return name, found[name]


def _without_path(name: str | Path) -> str:
    """A Hub id as it is, of a folder its last name."""
    return Path(name).resolve().name if Path(name).exists() else str(name)


def _describe_corpus(corpus: str | Path, audio: str) -> dict:
    return {
        "name": _without_path(corpus),
        "audio": audio,
        "licence": (_read_or_nothing(Path(corpus) / "README.md", metadata_load) or {}).get("license"),
        "summary": _read_or_nothing(Path(corpus) / "corpus.json", read_json),
    }


def _read_or_nothing(path: Path, read: Callable[[Path], dict]) -> dict | None:
    """A file that belongs to the corpus, but on which no run depends: a damaged one is as good as none."""
    try:
        return read(path) if path.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None


def _describe_machine(accelerator, precision: str) -> dict:
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_devices": accelerator.num_processes,
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{each.__name__: each.__version__ for each in _LIBRARIES}},
        "precision": choose_precision(precision, device.type),
    }


def _cpu_name() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


__all__ = ["TrainingState", "check_checkpoint", "checkpoints", "load_training_state", "save_checkpoint", "save_model"]
