"""Weights from and for elsewhere: fairseq data2vec-audio checkpoints in, plain data2vec-audio out."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor
from transformers.utils import logging

from music2vec_hf.common.files import check_new_folder
from music2vec_hf.features.encoders import load_model
from music2vec_hf.hub.fairseq_reader import plain_values, read_checkpoint
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining

logger = logging.get_logger(__name__)

# fairseq's encoder-relative names -> transformers'. The rest of a name (`.weight`, `.bias`) stays.
_ENCODER_NAMES = (
    (r"^pos_conv\.(\d+)\.0\.", r"pos_conv_embed.layers.\1.conv."),
    (r"^layers\.(\d+)\.self_attn\.", r"layers.\1.attention."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"layers.\1.layer_norm."),
    (r"^layers\.(\d+)\.fc1\.", r"layers.\1.feed_forward.intermediate_dense."),
    (r"^layers\.(\d+)\.fc2\.", r"layers.\1.feed_forward.output_dense."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"layers.\1.final_layer_norm."),
    (r"^layer_norm\.", r"layer_norm."),
)
_FRONT_END = r"data2vec_audio.feature_extractor.conv_layers.\1"
_MODEL_NAMES = (
    *((rf"^encoder\.{theirs[1:]}", f"data2vec_audio.encoder.{ours}") for theirs, ours in _ENCODER_NAMES),
    (r"^mask_emb$", r"data2vec_audio.masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", f"{_FRONT_END}.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.", f"{_FRONT_END}.layer_norm."),
    (r"^layer_norm\.", r"data2vec_audio.feature_projection.layer_norm."),
    (r"^post_extract_proj\.", r"data2vec_audio.feature_projection.projection."),
    (r"^final_proj\.(0\.)?", r"final_proj."),
)
# fairseq's field -> ours, where the value stays. Heads, strides and activations show in no weight's shape.
_SAME_NAME = (
    *("conv_bias", "attention_dropout", "activation_dropout", "mask_dropout", "require_same_masks"),
    *("feature_grad_mult", "average_top_k_layers", "layer_norm_targets", "loss_beta", "loss_scale"),
    *("ema_decay", "ema_end_decay", "ema_anneal_end_step", "ema_layers_only"),
)
_FIELDS = {name: name for name in _SAME_NAME} | {
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "activation_fn": "hidden_act",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "pos_conv_depth": "num_conv_pos_embeddings",
    "dropout": "hidden_dropout",
    "dropout_input": "feat_proj_dropout",
    "encoder_layerdrop": "layerdrop",
    "mask_prob": "mask_time_prob",
    "mask_length": "mask_time_length",
}
# Other values make another network, which our modules cannot compute.
_NETWORK = {
    "extractor_mode": ("layer_norm",),
    "layer_norm_first": (False,),
    "layer_type": ("transformer",),
    "activation_fn": ("gelu", "relu"),
    "sample_rate": (16_000,),
}
# Other values make another objective: the weights are right, but pretraining would go on differently.
_OBJECTIVE = {
    "instance_norm_target_layer": True,
    "layer_norm_target_layer": False,
    "batch_norm_target_layer": False,
    "group_norm_target_layer": False,
    "instance_norm_targets": False,
    "mask_selection": "static",
    "no_mask_overlap": False,
    "mask_channel_prob": 0,
}
_ADVICE = "Give the .pt file of a data2vec_audio pretraining run that fairseq itself wrote, before fine-tuning."


def convert_fairseq_state_dict(state_dict: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """Rename the weights of a fairseq data2vec-audio checkpoint.

    Args:
        state_dict (`dict`): fairseq's `checkpoint["model"]`; its `_ema` entry, if there, is the teacher.

    Returns:
        `tuple`: state dict for [`Music2VecForPreTraining`], and one for [`EMATeacher`] (`None` without `_ema`).

    Raises:
        ValueError: for names that no data2vec-audio model has, listing them.

    Source: METHOD of fairseq `examples/data2vec/models/data2vec_audio.py` at 3d262bb2.
    """
    teacher, unknown = state_dict.get("_ema"), []
    model = _renamed({name: value for name, value in state_dict.items() if name != "_ema"}, _MODEL_NAMES, unknown)
    if teacher is not None:
        teacher = _renamed(teacher, _ENCODER_NAMES, unknown, "_ema.")
    if unknown:
        raise ValueError(
            f"The checkpoint has {len(unknown)} names that no data2vec-audio model has ({', '.join(unknown[:5])}). "
            "Give the `model` entry of a data2vec-audio pretraining checkpoint."
        )
    return model, teacher


def _renamed(weights: dict, rules: Iterable[tuple[str, str]], unknown: list[str], prefix: str = "") -> dict:
    """Weights under our names; a name that no rule knows is added to `unknown`."""
    found = {}
    for name, value in weights.items():
        rule = next((rule for rule in rules if re.search(rule[0], name)), None)
        if rule is None:
            unknown.append(prefix + name)
        else:
            found[re.sub(*rule, name)] = value
    return found


def convert_fairseq_checkpoint(checkpoint: str | Path, out: str | Path) -> Path:
    """Write a fairseq data2vec-audio pretraining checkpoint as a folder that [`Music2VecForPreTraining`] loads.

    The folder holds configuration, student and prediction head in float32, the feature extractor and, where the file
    has a teacher (`_ema`), `teacher.safetensors` under [`EMATeacher`]'s names. What had to be assumed is logged.

    Args:
        checkpoint (`str` or `Path`): the `.pt` file, in torch's zip or older format; it is read, never run.

    Raises:
        ValueError: if the file is damaged, no checkpoint, of another model, or at odds with its own configuration;
            or if `out` is not empty.
        FileNotFoundError: if there is no such file.

    Source: fairseq `trainer.py` (`state_dict`) and `examples/data2vec/models/data2vec_audio.py` at 3d262bb2.
    """
    checkpoint, out = Path(checkpoint), check_new_folder(out, "the converted model")
    content = read_checkpoint(checkpoint)
    settings = _settings(content)
    weights, teacher = _weights(checkpoint, content["model"], settings.get("_name"))
    config = _config(checkpoint, settings, _shapes(checkpoint, weights))
    with torch.device("meta"):  # nothing is drawn at random only to be overwritten
        model = Music2VecForPreTraining(config)
    _check_names(checkpoint, "student", weights, model.state_dict())
    if teacher is not None:
        _check_names(checkpoint, "teacher (`_ema`)", teacher, model.data2vec_audio.encoder.state_dict())
    model.load_state_dict(weights, assign=True)
    model.save_pretrained(out)
    Music2VecFeatureExtractor(
        do_normalize=bool(settings.get("normalize", True)), receptive_field=config.receptive_field
    ).save_pretrained(out)
    if teacher is not None:
        save_file(teacher, out / "teacher.safetensors")
    return out


def _settings(content: Mapping) -> dict:
    """The configuration as one flat dict of fairseq's names (empty if there is none): `cfg` of newer files, be it a
    dict or a pickled omegaconf tree, or the `args` namespace of older ones."""
    cfg = plain_values(content.get("cfg"))
    if isinstance(cfg, dict) and isinstance(cfg.get("model"), dict):
        task = cfg.get("task") if isinstance(cfg.get("task"), dict) else {}
        found = {**{key: task[key] for key in ("normalize", "sample_rate") if key in task}, **cfg["model"]}
    else:
        found = plain_values(content.get("args"))
        found = {"_name": found.get("arch"), **found} if isinstance(found, dict) else {}
    resolved = {}
    for key, value in found.items():
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference:  # omegaconf's interpolation: a path from the root
            value = cfg
            for part in reference[1].split("."):
                value = value.get(part) if isinstance(value, dict) else None
        if value != "???" and (value is not None or key == "loss_scale"):
            resolved[key] = value
    return resolved


def _weights(checkpoint: Path, model: dict, name: str | None) -> tuple[dict, dict | None]:
    """Student and teacher under our names, in float32; a file of another model is refused."""
    marks = ("mask_emb", "post_extract_proj.weight", "encoder.pos_conv.0.0.weight")
    model = {str(key): value for key, value in model.items()}
    if name not in (None, "data2vec_audio") or not all(mark in model for mark in marks):
        example = next(iter(model))
        raise ValueError(
            f"{checkpoint} is a fairseq checkpoint of {name or 'another model'} with weights such as `{example}`. "
            f"{_ADVICE}"
        )
    teacher = model.get("_ema")
    if not isinstance(teacher, dict | None) or any(str(key).startswith("encoder.") for key in teacher or ()):
        logger.warning(
            f"The teacher in {checkpoint} was left out: it is no encoder (`ema_transformer_only` is False)."
        )
        del model["_ema"]
    weights, teacher = convert_fairseq_state_dict(model)
    return _float32(checkpoint, weights), None if teacher is None else _float32(checkpoint, teacher)


def _float32(checkpoint: Path, weights: dict) -> dict[str, torch.Tensor]:
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`{name}` in {checkpoint} is no tensor. {_ADVICE}")
    # Copies: safetensors takes no tensors that share memory.
    kind = {"dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
    return {name: tensor.detach().to(**kind) for name, tensor in weights.items()}


def _shapes(checkpoint: Path, weights: dict[str, torch.Tensor]) -> dict:
    """The configuration's fields that the shapes of the (renamed) weights show."""

    def shapes_of(before: str, after: str) -> list[tuple[int, ...]]:
        name = "data2vec_audio.{}.{}.{}.weight"
        numbers = range(next(n for n in range(len(weights) + 1) if name.format(before, n, after) not in weights))
        return [tuple(weights[name.format(before, number, after)].shape) for number in numbers]

    convolutions = shapes_of("feature_extractor.conv_layers", "conv")
    positional = shapes_of("encoder.pos_conv_embed.layers", "conv")
    feed_forward = shapes_of("encoder.layers", "feed_forward.intermediate_dense")
    if not (convolutions and feed_forward and feed_forward[0]) or {len(s) for s in convolutions + positional} != {3}:
        raise ValueError(f"{checkpoint} lacks the convolutions or the layers of a data2vec-audio model. {_ADVICE}")
    width, width_of_group, pos_kernel = positional[0]
    return {
        "hidden_size": width,
        "num_hidden_layers": len(feed_forward),
        "intermediate_size": feed_forward[0][0],
        "conv_dim": [shape[0] for shape in convolutions],
        "conv_kernel": [shape[2] for shape in convolutions],
        "conv_bias": "data2vec_audio.feature_extractor.conv_layers.0.conv.bias" in weights,
        "num_conv_pos_embeddings": len(positional),
        "conv_pos_kernel_size": pos_kernel,
        "num_conv_pos_embedding_groups": width // max(1, width_of_group),
    }


def _config(checkpoint: Path, settings: dict, shapes: dict) -> Music2VecConfig:
    """Our configuration: what the file states, checked against its shapes, and the reference's values elsewhere."""
    stated = _stated(checkpoint, settings)
    for field, value in shapes.items():
        if stated.get(field, value) != value:
            raise ValueError(f"{checkpoint} states `{field}` {stated[field]} but its weights have {value}. {_ADVICE}")
    stated = {**shapes, **stated}
    stated = {**_assumed(checkpoint, settings, stated), **stated}
    try:
        return Music2VecConfig(**stated)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"The configuration in {checkpoint} cannot be used: {error}") from error


def _stated(checkpoint: Path, settings: dict) -> dict:
    """Our fields for fairseq's; a network that our modules cannot compute is refused."""
    for key, allowed in _NETWORK.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"{checkpoint} was trained with `{key}` {settings[key]!r}, a network that this library has not. "
                f"It takes {' or '.join(map(repr, allowed))}."
            )
    stated = {ours: settings[theirs] for theirs, ours in _FIELDS.items() if theirs in settings}
    if "conv_feature_layers" in settings:
        columns = zip(*parse_conv_layers(settings["conv_feature_layers"]), strict=True)
        stated |= dict(zip(("conv_dim", "conv_kernel", "conv_stride"), map(list, columns), strict=True))
    if isinstance(settings.get("conv_pos"), int) and settings.get("pos_conv_depth"):
        stated["conv_pos_kernel_size"] = max(3, settings["conv_pos"] // int(settings["pos_conv_depth"]))
    return stated


def _assumed(checkpoint: Path, settings: dict, stated: dict) -> dict:
    """Values for what neither the file states nor its shapes show, as far as a guess is safe; says so in the log."""
    unknown = [theirs for theirs, ours in _FIELDS.items() if ours not in stated]
    assumed = {}
    if "num_attention_heads" not in stated:  # 64 channels a head in all of the reference's models
        assumed["num_attention_heads"], rest = divmod(stated["hidden_size"], 64)
        if rest:
            raise ValueError(
                f"{checkpoint} does not state `encoder_attention_heads` and its width of {stated['hidden_size']} is "
                f"no multiple of 64, the reference's width of a head. {_ADVICE}"
            )
    if "conv_stride" not in stated:
        unknown.append("conv_feature_layers")
        if stated["conv_kernel"] != Music2VecConfig().conv_kernel:
            raise ValueError(
                f"{checkpoint} does not state `conv_feature_layers` and its kernels {stated['conv_kernel']} are not "
                f"the reference's, so its strides are unknown. {_ADVICE}"
            )
    if not settings:
        logger.warning(f"{checkpoint} has no configuration: beside its shapes the reference's values were assumed.")
    elif unknown:
        logger.warning(f"{checkpoint} does not state {', '.join(unknown)}: the reference's values were assumed.")
    foreign = {key: settings[key] for key, ours in _OBJECTIVE.items() if settings.get(key, ours) != ours}
    if foreign:
        logger.warning(
            f"{checkpoint} was trained with {foreign}, an objective that this library has not: its embeddings are "
            "the same, but pretraining would go on with another objective."
        )
    return assumed


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of each convolution from fairseq's sums and multiples of lists, without `eval`.

    For example `"[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2"`. Raises ValueError for anything else.
    """
    layer = r"\((\d{1,6}),(\d{1,6}),(\d{1,6}),?\)"
    layers = []
    for part in re.sub(r"\s", "", str(text)).split("+"):
        match = re.fullmatch(rf"\[((?:{layer},?)+)\](?:\*(\d\d?))?", part)
        found = [tuple(map(int, numbers)) for numbers in re.findall(layer, match[1])] if match else []
        if not found or not all(map(min, found)):
            raise ValueError(
                f"`conv_feature_layers` is {text!r}. It has to be a sum of lists of (channels, kernel, stride), such "
                "as '[(512, 10, 5)] + [(512, 3, 2)] * 4'."
            )
        layers += found * int(match[5] or 1)
    return layers


def _check_names(checkpoint: Path, what: str, weights: dict, expected: dict) -> None:
    """Refuse weights that are not exactly the model's, in name and shape."""
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    misshapen = [name for name in expected.keys() & weights.keys() if weights[name].shape != expected[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has misshapen", misshapen)):
        if names:
            shown = ", ".join(sorted(names)[:3])
            raise ValueError(f"The {what} in {checkpoint} {problem} weights ({len(names)}: {shown}). {_ADVICE}")


def export_data2vec_audio(model: str | Path, out: str | Path) -> Path:
    """Write a Music2Vec encoder as a plain `data2vec-audio` folder, which transformers loads without this library.

    Raises ValueError if `out` is not empty, or the Hub does not give the model.
    """
    out = check_new_folder(out, "the exported model")
    encoder, extractor = load_model(model)
    known = Data2VecAudioConfig().to_dict().keys() - {"model_type", "architectures"} | {"apply_spec_augment"}
    plain = Data2VecAudioModel(
        Data2VecAudioConfig(**{key: value for key, value in encoder.config.to_dict().items() if key in known})
    )
    plain.load_state_dict(encoder.state_dict(), strict="masked_spec_embed" in plain.state_dict())
    plain.save_pretrained(out)
    Wav2Vec2FeatureExtractor(do_normalize=extractor.do_normalize, return_attention_mask=True).save_pretrained(out)
    return out
