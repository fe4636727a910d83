"""Recipes: everything that defines a pretraining run, as YAML files of differences from the paper's best setting."""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from music2vec_hf.common.computing import PRECISIONS
from music2vec_hf.model.configuration_music2vec import Music2VecConfig

_SAMPLING_RATE = 16_000
_TRACKERS = ("none", "tensorboard", "trackio", "wandb")

SHAPE_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_kernel"),
    *("conv_stride", "num_conv_pos_embeddings", "conv_pos_kernel_size", "num_conv_pos_embedding_groups"),
)
"""The fields of [`Music2VecConfig`] that decide which weights a model has."""

MODEL_KEYS = (
    *SHAPE_KEYS,
    *("initializer_range", "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"),
    *("layerdrop", "mask_time_prob", "mask_time_length", "mask_dropout", "require_same_masks"),
    *("average_top_k_layers", "ema_decay", "ema_end_decay", "ema_anneal_end_step", "ema_layers_only", "loss_beta"),
    *("loss_scale", "layer_norm_targets", "feature_grad_mult", "acoustic_weight", "frontend_init"),
)
"""The fields of [`Music2VecConfig`] that a recipe may set: those that pretraining reads."""


def _setting(default, help: str = "", low=None, high=None, choices: Sequence = (), machine: bool = False):
    """A field of a recipe, with what its numbers may be; one of the machine may differ when a run is resumed."""

    def check(value) -> None:
        if choices and value not in choices:
            raise ValueError(f"is {value!r}. Use one of {', '.join(str(choice).lower() for choice in choices)}.")
        if low is None or value == "auto":
            return
        if isinstance(value, str):
            raise ValueError(f"is {value!r}. Use a number or `auto`.")
        if not low <= value <= high:
            raise ValueError(f"is {value}. Use a value from {low} to {high}.")

    return field(default=default, metadata={"help": help, "validator": check, "machine": machine})


@strict
@dataclass
class Recipe:
    """One pretraining run. The defaults are the paper's best setting, `crop5s`.

    Seconds are seconds of audio. What describes the model lies in `model`; its values in [`MODEL_KEYS`] are attributes
    of the recipe, too, and keys beside the others in YAML files and checkpoints.
    """

    crop_seconds: float = _setting(5.0, "length of a training crop", 0.1, 600.0)
    batch_seconds: float = _setting(3760.0, "audio per optimiser step, over all devices", 0.1, 1e7)
    mask_group_seconds: float = _setting(237.5, "audio whose masks hide equally many frames", 0.1, 1e7)
    normalize: str = _setting("clip", "zero mean, unit variance over the whole clip or crop", choices=("clip", "crop"))
    split: str | None = _setting(None, "split of a corpus that has several")
    streaming: bool = _setting(False, "read the corpus as a stream, without keeping it")
    buffer_size: int = _setting(512, "clips that a stream is shuffled among", 1, 10**9)
    crops_per_clip: int = _setting(1, "crops that are taken each time a clip is opened", 1, 10**6)
    mix_prob: float = _setting(0.0, "share of crops to which another of the update is added", 0.0, 1.0)
    mix_snr_db: list[float] = field(default_factory=lambda: [0.0, 10.0])  # level of a crop over what is added
    gain_db: float = _setting(0.0, "random gain of up to so many dB, after normalisation", 0.0, 60.0)
    max_steps: int = _setting(400_000, "optimiser steps", 1, 10**9)
    learning_rate: float = _setting(5e-4, "peak of the tri-stage schedule", 0.0, 10.0)
    phase_ratio: list[float] = field(default_factory=lambda: [0.03, 0.9, 0.07])  # of warm-up, hold and decay
    init_lr_scale: float = _setting(0.01, "first learning rate over its peak", 0.0, 1.0)
    final_lr_scale: float = _setting(0.01, "last learning rate over its peak", 1e-9, 1.0)
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    adam_epsilon: float = _setting(1e-6, "", 0.0, 1.0)
    weight_decay: float = _setting(0.01, "", 0.0, 10.0)
    max_grad_norm: float = _setting(0.0, "clip the gradient's norm; 0 for no clipping", 0.0, 1e9)
    seed: int = _setting(1, "of everything random", 0, 2**32 - 1)
    precision: str = _setting("auto", "auto: bf16 where it is faster", choices=PRECISIONS)
    init_from: str | None = _setting(None, "folder or Hub id of a model to start from instead of random weights")
    distill_from: str | None = _setting(None, "folder or Hub id of a frozen teacher: distillation", machine=True)
    distill_layers: list[str | int] = field(default_factory=list)  # the teacher's, a head each; none: its top layers
    distill_top_k: int = _setting(8, "without distill_layers: top layers whose normalised mean is learned", 1, 1000)
    distill_cosine: float = _setting(1.0, "weight of the cosine distance", 0.0, 1e6)
    distill_l1: float = _setting(1.0, "weight of the mean absolute difference", 0.0, 1e6)
    distill_crops: str = _setting("both", "how the student hears them", choices=("whole", "masked", "both"))
    distill_init: bool = _setting(True, "start from the teacher's weights of the same name and shape")
    distill_trust_remote_code: bool = _setting(False, "run the teacher's own Python code", machine=True)
    model: Music2VecConfig = field(default_factory=Music2VecConfig)
    masks_per_crop: int = _setting(1, "masked views of a crop, which share front end and teacher", 1, 1000)
    max_seconds_per_device: float | str = _setting(237.5, "audio in a pass; auto: what fits", 0.1, 1e7, machine=True)
    compile: bool | str = _setting(
        "auto", "torch.compile front end and layers; auto: on CUDA", choices=("auto", True, False), machine=True
    )
    deterministic: bool = _setting(False, "on CUDA too, resume bit by bit; slower there", machine=True)
    gradient_checkpointing: bool = _setting(False, "keep fewer activations, compute the others again", machine=True)
    gradient_compression: str = _setting("none", "bf16: exchange half the bytes", choices=("none", "bf16"))
    num_workers: int = _setting(4, "processes that decode crops, per device", 0, 1024, machine=True)
    max_failed_share: float = _setting(0.01, "share of clips that may be unreadable", 0.0, 1.0, machine=True)
    log_every: int = _setting(50, "steps between two records", 1, 10**9, machine=True)
    save_every: int = _setting(5_000, "steps between two checkpoints", 1, 10**9, machine=True)
    keep_last: int = _setting(2, "newest checkpoints to keep", 1, 10**9, machine=True)
    keep_every: int = _setting(0, "keep those of every so many steps for good; 0: none", 0, 10**9, machine=True)
    probe_corpus: str | None = _setting(None, "labelled corpus to probe during the run", machine=True)
    probe_label: str = _setting("genre", "its column of labels", machine=True)
    probe_every: int = _setting(10_000, "steps between two such probes", 1, 10**9, machine=True)
    report_to: str = _setting("none", "tracker that gets the records, too", choices=_TRACKERS, machine=True)
    max_skipped_in_a_row: int = _setting(20, "updates in a row that may be skipped as not finite", 0, 10**9)
    collapse_after_steps: int = _setting(5_000, "steps after which the collapse guard acts", 0, 10**9)
    min_target_std: float = _setting(0.1, "", 0.0, 100.0)
    min_prediction_std: float = _setting(0.01, "", 0.0, 100.0)
    min_feature_std: float = _setting(0.01, "", 0.0, 100.0)
    max_position_share: float = _setting(0.9, "", 0.0, 1.0)

    def __getattr__(self, name: str):
        if name in MODEL_KEYS:
            return getattr(self.model, name)
        raise AttributeError(f"A recipe has no `{name}`.")

    def validate_combinations(self) -> None:
        """Part of the `@strict` validation: values that do not go together."""
        if self.num_frames <= self.mask_time_length:
            raise ValueError(
                f"`mask_time_length` is {self.mask_time_length} frames but a crop of {self.crop_seconds} s has only "
                f"{self.num_frames}. Use a longer `crop_seconds` or a shorter `mask_time_length`."
            )
        if self.mask_time_prob == 0:
            raise ValueError("`mask_time_prob` is 0, but the loss is that of masked frames. Use a share above 0.")
        if round(self.mask_dropout * self.mask_time_length) >= self.mask_time_length:
            raise ValueError(
                f"`mask_dropout` is {self.mask_dropout}, which can show all {self.mask_time_length} frames of a span "
                "again. Use a smaller share."
            )
        if self.distill_from and self.init_from:
            raise ValueError(
                f"`init_from` is {self.init_from} in a distillation, whose student starts from its teacher. Leave it "
                "out, and set `distill_init` to false for random weights."
            )
        if self.distill_from and self.distill_cosine == self.distill_l1 == 0:
            raise ValueError("`distill_cosine` and `distill_l1` are both 0. Give one of them a weight.")
        if self.batch_seconds < self.crop_seconds:
            raise ValueError(
                f"`batch_seconds` is {self.batch_seconds} but one crop has {self.crop_seconds} s. Use a batch of at "
                "least one crop."
            )
        if len(self.phase_ratio) != 3 or abs(sum(self.phase_ratio) - 1.0) > 1e-6 or min(self.phase_ratio) < 0:
            raise ValueError(f"`phase_ratio` is {self.phase_ratio}. Use three shares from 0 to 1 that add up to 1.")
        if len(self.mix_snr_db) != 2 or self.mix_snr_db[0] > self.mix_snr_db[1]:
            raise ValueError(f"`mix_snr_db` is {self.mix_snr_db}. Use two values in dB, the lower one first.")
        if len(self.adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.adam_betas):
            raise ValueError(f"`adam_betas` is {self.adam_betas}. Use two values from 0 to below 1.")

    @property
    def num_samples(self) -> int:
        """Samples of a crop."""
        return round(self.crop_seconds * _SAMPLING_RATE)

    @property
    def num_frames(self) -> int:
        """Frames of a crop."""
        return self.model.num_frames(self.num_samples)

    @property
    def rows_per_update(self) -> int:
        """Crops in one optimiser step."""
        return int(self.batch_seconds / self.crop_seconds + 1e-9)

    @property
    def mask_group_rows(self) -> int:
        """Crops that share the equal-count rule of the masks."""
        return max(1, int(self.mask_group_seconds / self.crop_seconds + 1e-9))

    def model_config(self) -> Music2VecConfig:
        """A configuration for a new model."""
        return copy.deepcopy(self.model)

    def to_dict(self) -> dict:
        """Every value by its key, as in YAML files and checkpoints."""
        names = [spec.name for spec in fields(self)]
        place = names.index("model")
        names[place : place + 1] = MODEL_KEYS
        return {name: getattr(self, name) for name in names}

    def to_yaml(self) -> str:
        """Every value, one `key: value` per line."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)


MACHINE_KEYS = frozenset(spec.name for spec in fields(Recipe) if spec.metadata.get("machine"))
"""Values that may differ between a checkpoint and the run that resumes it: they do not change what is computed."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _recipe_folder().iterdir() if path.name.endswith(".yaml")
    )


def recipe_title(name: str) -> str:
    """The first line of a recipe's header: what it is."""
    first = (_recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def load_recipe(name: str | Path, **overrides) -> Recipe:
    """Resolve a recipe.

    Args:
        name (`str` or `Path`): one of [`recipe_names`], or the path of a YAML file of differences.
        overrides: values that replace the recipe's.

    Returns:
        [`Recipe`]: with the paper's values where the file says nothing.

    Raises:
        ValueError: for an unknown recipe, a misspelt key or an impossible value, naming the key, the value and what
            is allowed.
    """
    values = {**_read_yaml(name), **overrides}
    known = {spec.name: spec.type for spec in fields(Recipe)}
    known |= {key: Music2VecConfig.__dataclass_fields__[key].type for key in MODEL_KEYS}
    del known["model"]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Allowed are {', '.join(sorted(known))}."
            raise ValueError(f"The recipe {name} has an unknown key `{key}` (value {values[key]!r}). {hint}")
    recipe = Recipe()
    for key, value in values.items():
        try:
            setattr(recipe.model if key in MODEL_KEYS else recipe, key, _as_type(known[key], value))
        except StrictDataclassError as error:
            if isinstance(error.__cause__, TypeError):
                kind = getattr(known[key], "__name__", str(known[key]))
                raise ValueError(f"`{key}` is {value!r}. Use a value of type {kind}.") from error
            raise ValueError(f"`{key}` {error.__cause__}") from error
    try:
        recipe.model = Music2VecConfig(**{key: getattr(recipe.model, key) for key in MODEL_KEYS})
        recipe.validate()
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__)) from error
    return recipe


def _read_yaml(name: str | Path) -> dict:
    """What a recipe's file says; a section `model:` is as good as its keys beside the others."""
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ValueError(
                f"There is no recipe file {name}. Name a YAML file or one of {', '.join(recipe_names())}."
            )
        text = Path(name).read_text(encoding="utf-8")
    elif str(name) in recipe_names():
        text = (_recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(f"There is no recipe {str(name)!r}. Use one of {', '.join(recipe_names())}, or a .yaml file.")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {name} is not valid YAML: {' '.join(str(error).split())}.") from error
    model = values.pop("model", {}) if isinstance(values, dict) else values
    if not isinstance(model, dict):
        raise ValueError(f"The recipe {name} holds a {type(model).__name__}. Write one `key: value` per line.")
    return {**values, **model}


def _recipe_folder():
    return files("music2vec_hf") / "recipes"


def _as_type(kind, value):
    """`value` as a field of this type has it: YAML reads 1e-3 as text, and 5 is no float. What cannot be stays."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    inner = [get_args(each)[0] for each in kinds if get_origin(each) is list]
    if inner and str in get_args(inner[0]) and isinstance(value, (int, str)):
        value = [value]  # one layer, on the command line
    if isinstance(value, (list, tuple)):
        return [_as_type(inner[0], item) for item in value] if inner else value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool) and {int, float} & set(kinds):
        try:
            number = float(value)
        except ValueError:
            return value
        if float in kinds:
            return number
        return int(number) if number.is_integer() else value
    return value


__all__ = ["MACHINE_KEYS", "MODEL_KEYS", "SHAPE_KEYS", "Recipe", "load_recipe", "recipe_names", "recipe_title"]
