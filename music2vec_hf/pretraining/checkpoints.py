"""Checkpoints (stage 11): `checkpoint-<step>/` holds the student, the extractor and the training state. A
checkpoint is written aside and renamed, so whatever kills the run, every folder of that name is whole."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher
from music2vec_hf.pretraining.arguments import MACHINE_KEYS, Recipe
from music2vec_hf.pretraining.schedules import ReferenceAdam
from music2vec_hf.pretraining.sharding import whole

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished"


@dataclass
class TrainingState:
    """What a run consists of between two steps.

    Args:
        student, teacher, optimizer: the learners.
        scaler (`torch.amp.GradScaler`): of the loss in fp16; passes everything through in other precisions.
        step (`int`): steps done, skipped ones included.
        skipped (`int`): steps whose update was not finite and therefore left out.
        skipped_in_a_row (`int`): of these, the ones just before.
    """

    student: Music2VecForPreTraining
    teacher: EMATeacher
    optimizer: ReferenceAdam
    scaler: torch.amp.GradScaler
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def weights(self) -> dict[str, dict]:
        """State dicts of `student` and `optimizer`, whole. All processes have to take part."""
        return whole({"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()})


def save_checkpoint(output: Path, state: TrainingState, weights: dict, feature_extractor, recipe: Recipe) -> Path:
    """Write `output/checkpoint-<step>`, then drop the oldest beyond the recipe's `keep_last`, except those that
    `keep_every` keeps for good.

    Args:
        output (`Path`): folder of the run.
        state ([`TrainingState`]): the student is written with `save_pretrained`: the folder loads as a model.
        weights (`dict`): what [`TrainingState.weights`] gave.
        feature_extractor: written beside it.
        recipe ([`Recipe`]): what the run is; compared on resume.

    Returns:
        `Path`: the checkpoint.

    Raises:
        OSError: if the disk is full or not writable; the earlier checkpoints are untouched, what was written is gone.
    """
    final = output / f"checkpoint-{state.step}"
    aside = output / f"{final.name}{_UNFINISHED}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(aside, state, weights, feature_extractor, recipe)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many names
        shutil.rmtree(aside, ignore_errors=True)
        kept = checkpoints(output)
        last = f"the last whole checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise OSError(
            f"{final} could not be written ({' '.join(str(error).split())}); {last}. Free some space and `--resume`."
        ) from error
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _flush_to_disk(output)
    for old in checkpoints(output)[: -recipe.keep_last]:
        if not recipe.keep_every or _step_of(old) % recipe.keep_every:
            shutil.rmtree(old)
    return final


def _write(folder: Path, state: TrainingState, weights: dict, feature_extractor, recipe: Recipe) -> None:
    folder.mkdir(parents=True)
    state.student.save_pretrained(folder, state_dict=weights["student"])
    feature_extractor.save_pretrained(folder)
    teacher = {name: tensor.contiguous() for name, tensor in state.teacher.state_dict().items()}
    save_file(teacher, folder / "teacher.safetensors")
    torch.save(weights["optimizer"], folder / "optimizer.pt")
    counts = {
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "scaler": state.scaler.state_dict(),
        "recipe": asdict(recipe),
    }
    (folder / "trainer_state.json").write_text(json.dumps(counts, indent=2) + "\n")
    for path in folder.iterdir():
        _flush_to_disk(path)


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in Path(output).glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(_NAME.fullmatch(checkpoint.name)[1])


def check_checkpoint(checkpoint: Path, recipe: Recipe) -> None:
    """Raise a ValueError that names the differing keys if a checkpoint was made by another recipe."""
    ours = asdict(recipe)
    # A key that is younger than the checkpoint had no effect: it has its default.
    theirs = asdict(Recipe()) | json.loads((checkpoint / "trainer_state.json").read_text())["recipe"]
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
    counts = json.loads((checkpoint / "trainer_state.json").read_text())
    state.teacher.load_state_dict(load_file(checkpoint / "teacher.safetensors"))
    state.optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(counts["scaler"])
    state.step, state.skipped, state.skipped_in_a_row = (
        counts[name] for name in ("step", "skipped", "skipped_in_a_row")
    )


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["TrainingState", "check_checkpoint", "checkpoints", "load_training_state", "save_checkpoint"]
