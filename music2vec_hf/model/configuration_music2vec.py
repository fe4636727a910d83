"""Configuration of Music2Vec: data2vec-audio's fields, with the values that Music2Vec was trained with, the
pretraining objective's switches under the reference's names, and the settings of the classification head."""

from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import Data2VecAudioConfig

if TYPE_CHECKING:  # transformers fetches and copies, with this file, all that it names so: none is left behind
    from .heads_music2vec import Music2VecForSequenceClassification  # noqa: F401
    from .modeling_music2vec import Music2VecForPreTraining  # noqa: F401
    from .pipeline_music2vec import Music2VecAudioClassificationPipeline  # noqa: F401

# What a `config.json` says of the code that lies beside it.
AUTO_MAP = {
    "AutoConfig": "configuration_music2vec.Music2VecConfig",
    "AutoModel": "encoder_music2vec.Music2VecModel",
    "AutoModelForPreTraining": "modeling_music2vec.Music2VecForPreTraining",
    "AutoModelForAudioClassification": "heads_music2vec.Music2VecForSequenceClassification",
    "AutoModelForAudioFrameClassification": "heads_music2vec.Music2VecForAudioFrameClassification",
}
_PIPELINE_MODELS = {
    "Music2VecForSequenceClassification": "AutoModelForAudioClassification",
    "Music2VecForAudioFrameClassification": "AutoModelForAudioFrameClassification",
}


def custom_pipelines(architectures: list[str] | None, frame_events: str | None) -> dict | None:
    """What a `config.json` says of the pipeline that lies beside it; None where it serves none of the architectures:
    a head for frames only where `frame_events` says what it finds."""
    models = [_PIPELINE_MODELS[name] for name in architectures or () if name in _PIPELINE_MODELS]
    if not models or (frame_events is None and models != ["AutoModelForAudioClassification"]):
        return None
    return {"audio-classification": {"impl": "pipeline_music2vec.Music2VecAudioClassificationPipeline", "pt": models}}


_POOLING_HEADS = ("mean", "attention")
_WINDOW_AVERAGES = ("logits", "features")
_FRONTEND_INITS = ("random", "log_frequency")


@strict
class Music2VecConfig(Data2VecAudioConfig):
    r"""Shape and objective of a Music2Vec model. The defaults are the paper's base model (12 layers, 768 wide, 95 M
    parameters, 50 frames a second) and data2vec-audio's training values, not those of `Data2VecAudioConfig`.

    Args:
        average_top_k_layers (`int`, *optional*): how many of the teacher's last layers are averaged into the targets
            (the paper's "target"). `None` means 8, or all layers where there are fewer.
        ema_decay, ema_end_decay (`float`): the teacher's decay at its creation and after `ema_anneal_end_step`.
        ema_anneal_end_step (`int`): number of optimiser steps over which the decay grows linearly.
        ema_layers_only (`bool`): `True` copies the positional convolution into the teacher at each step and averages
            the rest of the encoder (the reference's setting); `False` averages the positional convolution too.
        loss_beta (`float`): 0 for the squared error, else the beta of the smooth L1 loss.
        loss_scale (`float`, *optional*): factor of the loss; `None` means `1 / sqrt(hidden_size)`.
        layer_norm_targets (`bool`): normalise the averaged targets over channels too.
        feature_grad_mult (`float`): factor of the gradient that reaches the convolutional front end; 0 freezes it.
        acoustic_weight (`float`): weight of a second loss, by which the student predicts spectra at all frames, masked
            or not; 0, as in the paper, leaves it out.
        frontend_init (`str`): first weights of the front end's first layer: `"random"`, or `"log_frequency"`: sines
            and cosines at equal ratios of frequency, for a layer that sees long enough.
        mask_time_prob (`float`): upper bound of the expected masked share of frames; spans overlap.
        mask_time_length (`int`): span length in frames (1 frame = 20 ms).
        mask_dropout (`float`): share of the masked frames of a row that is shown again.
        require_same_masks (`bool`): mask equally many frames in every row of a mask group.
        apply_spec_augment (`bool`): read by plain `Data2VecAudioModel` only. `False` keeps it from masking by itself
            in training; Music2Vec's own models mask only where they are handed `mask_time_indices`.
        classifier_layer (`int` or `str`, *optional*): what a classification head reads: a layer (0 is the encoder's
            input, `num_hidden_layers` the last layer), `"weighted"` (learned softmax-weighted sum of all layers) or
            `"conv"` (raw front-end output). `None` means the last layer.
        classifier_pooling (`str`): `"mean"` or `"attention"` over the valid frames.
        classifier_hidden_size (`int`): width of the head's hidden layer; 0 for a linear head.
        classifier_dropout (`float`): dropout before each of the head's linear layers.
        target_mean, target_std (`list[float]`, *optional*): for regression, the affine map from the head's output back
            to the labels' own units (for emotion the 1-9 scale).
        window_seconds (`float`): longest piece of a song that the audio-classification pipeline gives a head at once.
        window_average (`str`): what that pipeline averages over a song's windows, each weighted by its frames:
            `"logits"`, or the head's `"features"` before its one answer, as a probe was trained. For a linear head on
            mean-pooled features both are the same.
        frame_events (`str`, *optional*): what a head for frames finds: `"beats"`, `"chords"` or `"melody"`.
        frame_event_settings (`list[float]`, *optional*): of beats, the probability above which a peak of each label
            counts; else the seconds over which log-probabilities are averaged.

    Raises:
        ValueError: for values out of range, naming the field, the value and what is allowed.

    Source: METHOD of fairseq `examples/data2vec/config/audio/pretraining/base_librispeech.yaml` at 3d262bb2.
    """

    model_type = "music2vec"

    activation_dropout: float | int = 0.0
    layerdrop: float | int = 0.05
    mask_time_prob: float | int = 0.65
    apply_spec_augment: bool = False

    average_top_k_layers: int | None = None
    ema_decay: float | int = 0.999
    ema_end_decay: float | int = 0.9999
    ema_anneal_end_step: int = 30_000
    ema_layers_only: bool = True
    loss_beta: float | int = 0.0
    loss_scale: float | int | None = None
    layer_norm_targets: bool = False
    feature_grad_mult: float | int = 1.0
    acoustic_weight: float | int = 0.0
    frontend_init: str = "random"
    mask_dropout: float | int = 0.0
    require_same_masks: bool = True

    classifier_layer: int | str | None = None
    classifier_pooling: str = "mean"
    classifier_hidden_size: int = 0
    classifier_dropout: float | int = 0.0
    target_mean: list[float] | None = None
    target_std: list[float] | None = None
    window_seconds: float | int = 30.0
    window_average: str = "logits"
    frame_events: str | None = None
    frame_event_settings: list[float] | None = None

    def __post_init__(self, **kwargs):
        # Lists, because JSON knows no tuples: a reloaded configuration equals the saved one.
        self.conv_dim, self.conv_stride, self.conv_kernel = map(
            list, (self.conv_dim, self.conv_stride, self.conv_kernel)
        )
        if self.average_top_k_layers is None:
            self.average_top_k_layers = min(8, self.num_hidden_layers)
        if not __name__.startswith("transformers_modules."):
            # A repository's own code: ours is here, and saving this configuration would not copy that code.
            kwargs.pop("custom_pipelines", None)
            kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers. Code that is saved along is named as lying there, not in the repository it is from."""
        if self._auto_class is not None:
            names = {auto: name.rpartition("--")[2] for auto, name in (getattr(self, "auto_map", None) or {}).items()}
            self.auto_map = {**AUTO_MAP, **names}
            self.__dict__.pop("custom_pipelines", None)
            if pipelines := custom_pipelines(self.architectures, self.frame_events):
                self.custom_pipelines = pipelines
        super().save_pretrained(save_directory, **kwargs)

    def validate_objective(self):
        """Part of the `@strict` validation: ranges of the objective's fields."""
        if not 1 <= self.average_top_k_layers <= self.num_hidden_layers:
            raise ValueError(
                f"`average_top_k_layers` is {self.average_top_k_layers} but the encoder has "
                f"{self.num_hidden_layers} layers. Use a value from 1 to {self.num_hidden_layers}."
            )
        shares = ("mask_time_prob", "mask_dropout", "ema_decay", "ema_end_decay", "layerdrop", "classifier_dropout")
        for name in shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use a value from 0 to 1.")
        sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_conv_pos_embedding_groups")
        lows = dict.fromkeys(("mask_time_length", *sizes), 1) | {"ema_anneal_end_step": 0, "classifier_hidden_size": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use a value of at least {low}.")
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            if min([1, *getattr(self, name)]) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use values of at least 1.")
        for name in ("loss_beta", "feature_grad_mult", "acoustic_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}. It may not be negative.")
        if self.frontend_init not in _FRONTEND_INITS:
            raise ValueError(f"`frontend_init` is {self.frontend_init!r}. Use one of {_FRONTEND_INITS}.")

    def validate_classifier(self):
        """Part of the `@strict` validation: what a classification head may read and how it pools."""
        layer = self.classifier_layer
        names_a_layer = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer <= self.num_hidden_layers
        if layer is not None and layer not in ("weighted", "conv") and not names_a_layer:
            raise ValueError(
                f"`classifier_layer` is {layer!r}. Use a layer from 0 to {self.num_hidden_layers}, 'weighted' or "
                "'conv'."
            )
        if self.classifier_pooling not in _POOLING_HEADS:
            raise ValueError(f"`classifier_pooling` is {self.classifier_pooling!r}. Use one of {_POOLING_HEADS}.")
        if self.window_average not in _WINDOW_AVERAGES:
            raise ValueError(f"`window_average` is {self.window_average!r}. Use one of {_WINDOW_AVERAGES}.")
        if self.frame_events not in (None, "beats", "chords", "melody"):
            raise ValueError(f"`frame_events` is {self.frame_events!r}. Use 'beats', 'chords', 'melody' or None.")
        if not self.window_seconds > 0:
            raise ValueError(f"`window_seconds` is {self.window_seconds}. Use a value above 0, for example 30.")

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees (400 = 25 ms for the base model): the shortest input that yields a frame."""
        field, hop = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            field, hop = field + (kernel - 1) * hop, hop * stride
        return field

    def num_frames(self, num_samples: int) -> int:
        """Frames that the front end yields for `num_samples` samples (0 if there are too few)."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

    def frame_times(self, num_frames: int, sampling_rate: int = 16_000) -> np.ndarray:
        """Where frames lie: the centre of what each sees, in seconds.

        Frame `t` of the base model sees the 400 samples from `320 t` on, so its centre is at `0.02 t + 0.0125` s.

        Args:
            num_frames (`int`): how many, as `num_frames(num_samples)` gives them.
            sampling_rate (`int`): of the model's input, in Hz.

        Returns:
            `np.ndarray` of shape `(num_frames,)`.
        """
        return (np.arange(num_frames) * self.inputs_to_logits_ratio + self.receptive_field / 2) / sampling_rate

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As the parent's, reading plain data2vec-audio repositories as ours, without a warning.

        The published music2vec-v1 has a file path in `vocab_size`, which transformers 5 refuses; the field has no
        meaning for these models, so a value that is not a number is dropped.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == Data2VecAudioConfig.model_type:
            config_dict = {**config_dict, "model_type": cls.model_type}
            if not isinstance(config_dict.get("vocab_size", 0), int):
                del config_dict["vocab_size"]
        return config_dict, kwargs


__all__ = ["Music2VecConfig"]
