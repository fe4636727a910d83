"""`run.json`: what a run was made of and on. Written by the run itself, for the model card."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import accelerate
import torch
import transformers
import yaml
from huggingface_hub import metadata_load

import music2vec_hf
from music2vec_hf.common.files import write_json
from music2vec_hf.common.precision import choose_precision
from music2vec_hf.pretraining.arguments import MACHINE_KEYS, Recipe, load_recipe, recipe_names

FILE_NAME = "run.json"
_CPU_INFO = Path("/proc/cpuinfo")
_LIBRARIES = (music2vec_hf, torch, transformers, accelerate)


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
        `Path`: of the file.
    """
    path = output / FILE_NAME
    earlier = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.is_file() else []
    session = {"first_step": first_step, **_machine(accelerator), "precision": choose_precision(recipe.precision)}
    name, differences = nearest_recipe(recipe)
    content = {
        "recipe": name,
        "differences": differences,
        "audio_seconds_per_step": recipe.rows_per_update * recipe.crop_seconds,
        "corpus": _describe_corpus(corpus, audio),
        "sessions": [*(known for known in earlier if known["first_step"] < first_step), session],
    }
    write_json(path, content)
    return path


def nearest_recipe(recipe: Recipe) -> tuple[str, dict]:
    """The packaged recipe with the fewest other values, and these values; what only the machine sees is left out."""
    ours = {key: value for key, value in asdict(recipe).items() if key not in MACHINE_KEYS}
    found = {}
    for name in recipe_names():
        theirs = asdict(load_recipe(name))
        found[name] = {key: value for key, value in ours.items() if value != theirs[key]}
    name = min(found, key=lambda name: len(found[name]))
    if "init_from" in found[name]:
        found[name]["init_from"] = _without_path(found[name]["init_from"])
    return name, found[name]


def _without_path(name: str | Path) -> str:
    """A Hub id as it is, of a folder its last name."""
    return Path(name).resolve().name if Path(name).exists() else str(name)


def _describe_corpus(corpus: str | Path, audio: str) -> dict:
    summary, card = Path(corpus) / "corpus.json", Path(corpus) / "README.md"
    return {
        "name": _without_path(corpus),
        "audio": audio,
        "licence": (_read_or_nothing(card, metadata_load) or {}).get("license"),
        "summary": _read_or_nothing(summary, lambda path: json.loads(path.read_text(encoding="utf-8"))),
    }


def _read_or_nothing(path: Path, read: Callable[[Path], dict]) -> dict | None:
    """A file that belongs to the corpus, but on which no run depends: a damaged one is as good as none."""
    try:
        return read(path) if path.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None


def _machine(accelerator) -> dict:
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_devices": accelerator.num_processes,
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{each.__name__: each.__version__ for each in _LIBRARIES}},
    }


def _cpu_name() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


__all__ = ["FILE_NAME", "nearest_recipe", "write_run_record"]
