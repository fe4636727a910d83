"""Checkpoints (stage 11): `checkpoint-<step>/` holds the student, the extractor and the training state. A
checkpoint is written aside and renamed, so whatever kills the run, every folder of that name is whole."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from music2vec_hf.pretraining.arguments import MACHINE_KEYS, Recipe

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished"


def save_checkpoint(output: Path, step: int, student, feature_extractor, teacher, optimizer, recipe: Recipe) -> Path:
    """Write `output/checkpoint-<step>` and drop the oldest beyond the recipe's `keep_last`.

    Args:
        output (`Path`): folder of the run.
        step (`int`): optimiser steps done.
        student, feature_extractor: written with `save_pretrained`: the folder loads as a model.
        teacher, optimizer: training state.
        recipe ([`Recipe`]): what the run is; compared on resume.

    Returns:
        `Path`: the checkpoint.

    Raises:
        OSError: if the disk is full or not writable; the earlier checkpoints are untouched.
    """
    final = output / f"checkpoint-{step}"
    aside = output / f"{final.name}{_UNFINISHED}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    student.save_pretrained(aside)
    feature_extractor.save_pretrained(aside)
    save_file(
        {name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, aside / "teacher.safetensors"
    )
    torch.save(optimizer.state_dict(), aside / "optimizer.pt")
    (aside / "trainer_state.json").write_text(json.dumps({"step": step, "recipe": asdict(recipe)}, indent=2) + "\n")
    for path in aside.iterdir():
        _flush_to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _flush_to_disk(output)
    for old in checkpoints(output)[: -recipe.keep_last]:
        shutil.rmtree(old)
    return final


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in Path(output).glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def load_training_state(checkpoint: Path, recipe: Recipe, teacher, optimizer) -> int:
    """Restore teacher and optimiser from a checkpoint.

    Returns:
        `int`: the step at which it was saved.

    Raises:
        ValueError: if it was made by another recipe, naming the keys that differ.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    ours, theirs = asdict(recipe), state["recipe"]
    differing = sorted(
        key for key in ours.keys() | theirs.keys() if key not in MACHINE_KEYS and ours.get(key) != theirs.get(key)
    )
    if differing:
        listed = ", ".join(f"`{key}` {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing)
        raise ValueError(
            f"{checkpoint} was made by another recipe ({listed}). Resume with the same values, or start a new run in "
            "another `--output`."
        )
    teacher.load_state_dict(load_file(checkpoint / "teacher.safetensors"))
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    return state["step"]


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["checkpoints", "load_training_state", "save_checkpoint"]
