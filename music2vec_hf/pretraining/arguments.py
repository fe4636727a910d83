"""Recipes: everything that defines a pretraining run, as YAML files of differences from the paper's best setting."""

import difflib
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path

import yaml

from music2vec_hf.model.configuration_music2vec import Music2VecConfig

_SAMPLING_RATE = 16_000

# What each number may be; keys that are missing here are checked by type alone.
_RANGES = {
    "crop_seconds": (0.1, 600.0),
    "batch_seconds": (0.1, 1e7),
    "mask_group_seconds": (0.1, 1e7),
    "buffer_size": (1, 10**9),
    "crops_per_clip": (1, 10**6),
    "masks_per_crop": (1, 1000),
    "mix_prob": (0.0, 1.0),
    "gain_db": (0.0, 60.0),
    "max_failed_share": (0.0, 1.0),
    "max_steps": (1, 10**9),
    "learning_rate": (0.0, 10.0),
    "adam_epsilon": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "max_grad_norm": (0.0, 1e9),
    "initializer_range": (0.0, 10.0),
    "init_lr_scale": (0.0, 1.0),
    "final_lr_scale": (1e-9, 1.0),
    "seed": (0, 2**32 - 1),
    "max_seconds_per_device": (0.1, 1e7),
    "num_workers": (0, 1024),
    "log_every": (1, 10**9),
    "save_every": (1, 10**9),
    "keep_last": (1, 10**9),
    "keep_every": (0, 10**9),
    "probe_every": (1, 10**9),
    "max_skipped_in_a_row": (0, 10**9),
    "collapse_after_steps": (0, 10**9),
    "min_target_std": (0.0, 100.0),
    "min_prediction_std": (0.0, 100.0),
    "min_feature_std": (0.0, 100.0),
    "max_position_share": (0.0, 1.0),
}
_CHOICES = {
    "normalize": ("clip", "crop"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "gradient_compression": ("none", "bf16"),
    "report_to": ("none", "tensorboard", "trackio", "wandb"),
}
# May differ between a checkpoint and the run that resumes it: they do not change what is computed.
MACHINE_KEYS = frozenset(
    {
        "max_seconds_per_device",
        "gradient_checkpointing",
        "num_workers",
        "max_failed_share",
        "log_every",
        "save_every",
        "keep_last",
        "keep_every",
        "report_to",
        "probe_corpus",
        "probe_label",
        "probe_every",
    }
)


@dataclass
class Recipe:
    """One pretraining run. The defaults are the paper's best setting, `crop5s`.

    Seconds are seconds of audio. Model fields have the meaning that [`Music2VecConfig`] gives them.
    """

    crop_seconds: float = field(default=5.0, metadata={"help": "length of a training crop"})
    batch_seconds: float = field(default=3760.0, metadata={"help": "audio per optimiser step, over all devices"})
    mask_group_seconds: float = field(
        default=237.5, metadata={"help": "audio that shares the equal-count rule of the masks (3.8 M samples)"}
    )
    normalize: str = field(default="clip", metadata={"help": "zero mean, unit variance over the whole clip or crop"})
    split: str | None = field(default=None, metadata={"help": "split of a corpus that has several"})
    streaming: bool = field(default=False, metadata={"help": "read the corpus as a stream, without keeping it"})
    buffer_size: int = field(default=512, metadata={"help": "clips that a stream is shuffled among"})
    crops_per_clip: int = field(default=1, metadata={"help": "crops that are taken each time a clip is opened"})
    mix_prob: float = field(default=0.0, metadata={"help": "share of crops to which another of the update is added"})
    mix_snr_db: list[float] = field(
        default_factory=lambda: [0.0, 10.0], metadata={"help": "lowest and highest level of a crop over what is added"}
    )
    gain_db: float = field(default=0.0, metadata={"help": "random gain of up to so many dB, after normalisation"})
    max_steps: int = field(default=400_000, metadata={"help": "optimiser steps"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak of the tri-stage schedule"})
    phase_ratio: list[float] = field(
        default_factory=lambda: [0.03, 0.9, 0.07], metadata={"help": "shares of warm-up, hold and decay"}
    )
    init_lr_scale: float = 0.01
    final_lr_scale: float = 0.01
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = field(default=0.0, metadata={"help": "clip the gradient's norm; 0 for no clipping"})
    seed: int = 1
    precision: str = field(
        default="auto", metadata={"help": "fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it"}
    )
    init_from: str | None = field(
        default=None, metadata={"help": "folder or Hub id of a model to start from instead of random weights"}
    )

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7)
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    num_conv_pos_embeddings: int = 5
    conv_pos_kernel_size: int = 19
    num_conv_pos_embedding_groups: int = 16
    initializer_range: float = field(default=0.02, metadata={"help": "standard deviation of new linear layers"})
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feat_proj_dropout: float = 0.0
    layerdrop: float = 0.05
    mask_time_prob: float = 0.65
    mask_time_length: int = 10
    mask_dropout: float = 0.0
    require_same_masks: bool = True
    masks_per_crop: int = field(
        default=1, metadata={"help": "masked views of a crop, which share one pass of front end and teacher"}
    )
    average_top_k_layers: int = 8
    ema_decay: float = 0.999
    ema_end_decay: float = 0.9999
    ema_anneal_end_step: int = 30_000
    ema_layers_only: bool = True
    loss_beta: float = 0.0
    loss_scale: float | None = None
    layer_norm_targets: bool = False
    feature_grad_mult: float = 1.0

    max_seconds_per_device: float | str = field(
        default=237.5, metadata={"help": "audio in one forward pass on one device; auto: what fits, found by trying"}
    )
    compile: bool = field(
        default=False,
        metadata={"help": "torch.compile front end and layers: for long runs on a GPU; draws other dropout"},
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "keep fewer activations and compute the others again in the backward pass"}
    )
    gradient_compression: str = field(
        default="none", metadata={"help": "none, or bf16: processes exchange gradients in half as many bytes"}
    )
    num_workers: int = field(default=4, metadata={"help": "processes that decode crops, per device"})
    max_failed_share: float = field(
        default=0.01, metadata={"help": "share of the clips that may be unreadable; others stand in for them"}
    )
    log_every: int = 50
    save_every: int = 5_000
    keep_last: int = field(default=2, metadata={"help": "newest checkpoints to keep"})
    keep_every: int = field(default=0, metadata={"help": "keep those of every so many steps for good; 0 for none"})
    probe_corpus: str | None = field(default=None, metadata={"help": "labelled corpus to probe during the run"})
    probe_label: str = field(default="genre", metadata={"help": "its column of labels"})
    probe_every: int = field(default=10_000, metadata={"help": "steps between two such probes"})
    report_to: str = field(default="none", metadata={"help": "tracker that gets the records too"})
    max_skipped_in_a_row: int = field(
        default=20, metadata={"help": "updates in a row that may be skipped because they are not finite"}
    )
    collapse_after_steps: int = field(default=5_000, metadata={"help": "steps after which the collapse guard acts"})
    min_target_std: float = 0.1
    min_prediction_std: float = 0.01
    min_feature_std: float = 0.01
    max_position_share: float = 0.9

    def __post_init__(self):
        for spec in fields(self):
            setattr(self, spec.name, _checked(spec, getattr(self, spec.name)))
        self.model_config()  # its own ranges and combinations
        if self.num_frames <= self.mask_time_length:
            raise ValueError(
                f"`mask_time_length` is {self.mask_time_length} frames but a crop of {self.crop_seconds} s has only "
                f"{self.num_frames}. Use a longer `crop_seconds` or a shorter `mask_time_length`."
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
        return self.model_config().num_frames(self.num_samples)

    @property
    def rows_per_update(self) -> int:
        """Crops in one optimiser step."""
        return max(1, int(self.batch_seconds / self.crop_seconds + 1e-9))

    @property
    def mask_group_rows(self) -> int:
        """Crops that share the equal-count rule of the masks."""
        return max(1, int(self.mask_group_seconds / self.crop_seconds + 1e-9))

    def model_config(self) -> Music2VecConfig:
        """The model that the recipe trains."""
        known = Music2VecConfig.__dataclass_fields__
        return Music2VecConfig(**{key: value for key, value in asdict(self).items() if key in known})


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
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {name} holds a {type(values).__name__}. Write one `key: value` per line.")
    values.update(overrides)
    known = {spec.name for spec in fields(Recipe)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Allowed are {', '.join(sorted(known))}."
            raise ValueError(f"The recipe {name} has an unknown key `{key}` (value {values[key]!r}). {hint}")
    return Recipe(**values)


def _recipe_folder():
    return files("music2vec_hf") / "recipes"


def _checked(spec, value):
    """`value` converted to the field's type (YAML reads 1e-3 as text), or a ValueError with what is allowed."""
    name, kind = spec.name, spec.type
    if kind is bool:
        valid = isinstance(value, bool)
    elif kind in (list[int], list[float]):
        inner = int if kind == list[int] else float
        valid = isinstance(value, (list, tuple)) and all(_is_number(item, inner) for item in value)
        value = [inner(item) for item in value] if valid else value
    elif kind in (int, float):
        valid = _is_number(value, kind)
        value = kind(float(value)) if valid else value
    elif kind in (float | None, float | str):
        other = None if kind == float | None else "auto"
        valid = value == other or _is_number(value, float)
        value = float(value) if valid and value != other else value
        if not valid and other:
            raise ValueError(f"`{name}` is {value!r}. Use a number of seconds or `auto`.")
    elif kind == str | None:
        valid = value is None or isinstance(value, str)
    else:
        valid = isinstance(value, str)
    if not valid:
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"`{name}` is {value!r}. Use a value of type {wanted}.")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"`{name}` is {value!r}. Use one of {', '.join(_CHOICES[name])}.")
    low, high = _RANGES.get(name, (float("-inf"), float("inf")))
    if kind in (int, float, float | str) and value != "auto" and not low <= value <= high:
        raise ValueError(f"`{name}` is {value}. Use a value from {low} to {high}.")
    return value


def _is_number(value, kind) -> bool:
    if isinstance(value, bool):
        return False
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return kind is float or number == int(number)


__all__ = ["MACHINE_KEYS", "Recipe", "load_recipe", "recipe_names", "recipe_title"]
