"""fairseq data2vec-audio checkpoints in: student, prediction head, teacher and configuration, as a folder of ours."""

import ast
import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers.utils import logging

from music2vec_hf.hub.conversion import convert_fairseq_state_dict
from music2vec_hf.hub.fairseq_reader import plain_values, read_checkpoint
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining

logger = logging.get_logger(__name__)

# fairseq's field -> ours, where the value stays. Heads, strides and activations show in no weight's shape.
_FIELDS = {
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "activation_fn": "hidden_act",
    "conv_bias": "conv_bias",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "pos_conv_depth": "num_conv_pos_embeddings",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
    "encoder_layerdrop": "layerdrop",
    "mask_prob": "mask_time_prob",
    "mask_length": "mask_time_length",
    "mask_dropout": "mask_dropout",
    "require_same_masks": "require_same_masks",
    "feature_grad_mult": "feature_grad_mult",
    "average_top_k_layers": "average_top_k_layers",
    "layer_norm_targets": "layer_norm_targets",
    "loss_beta": "loss_beta",
    "loss_scale": "loss_scale",
    "ema_decay": "ema_decay",
    "ema_end_decay": "ema_end_decay",
    "ema_anneal_end_step": "ema_anneal_end_step",
    "ema_layers_only": "ema_layers_only",
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


def convert_fairseq_checkpoint(checkpoint: str | Path, out: str | Path) -> Path:
    """Write a fairseq data2vec-audio pretraining checkpoint as a folder that [`Music2VecForPreTraining`] loads.

    The folder holds configuration, student and prediction head in float32, the feature extractor and, where the file
    has a teacher (`_ema`), `teacher.safetensors` under [`EMATeacher`]'s names. What had to be assumed is logged.

    Args:
        checkpoint (`str` or `Path`): the `.pt` file, in torch's zip or older format; it is read, never run.
        out (`str` or `Path`): new folder.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if the file is damaged, no checkpoint, of another model, or at odds with its own configuration;
            or if `out` is not empty.
        FileNotFoundError: if there is no such file.

    Source: fairseq `trainer.py` (`state_dict`) and `examples/data2vec/models/data2vec_audio.py` at 3d262bb2.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty. Name a new folder for the converted model.")
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


def _settings(content: dict) -> dict:
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
        raise ValueError(
            f"{checkpoint} is a fairseq checkpoint of {name or 'another model'} with weights such as "
            f"`{next(iter(model))}`. Give the .pt file of a data2vec_audio pretraining run, before fine-tuning."
        )
    teacher = model.get("_ema")
    if teacher is not None and (
        not isinstance(teacher, dict) or any(str(key).startswith("encoder.") for key in teacher)
    ):
        logger.warning(
            f"The teacher in {checkpoint} is no encoder (`ema_transformer_only` is False) and was left out."
        )
        model = {key: value for key, value in model.items() if key != "_ema"}
    weights, teacher = convert_fairseq_state_dict(model)
    return _float32(checkpoint, weights), None if teacher is None else _float32(checkpoint, teacher)


def _float32(checkpoint: Path, weights: dict) -> dict[str, torch.Tensor]:
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`{name}` in {checkpoint} is no tensor. Give the .pt file that fairseq itself wrote.")
    # Copies: safetensors takes no tensors that share memory.
    return {
        name: tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }


def _shapes(checkpoint: Path, weights: dict[str, torch.Tensor]) -> dict:
    """The configuration's fields that the shapes of the (renamed) weights show."""
    prefix = "data2vec_audio."

    def numbered(pattern):
        found = {}
        for name, tensor in weights.items():
            match = re.fullmatch(pattern, name.removeprefix(prefix))
            if match:
                found[int(match[1])] = tuple(tensor.shape)
        return [found[index] for index in sorted(found)]

    convolutions = numbered(r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    positional = numbered(r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.weight")
    feed_forward = numbered(r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.weight")
    if not convolutions or not feed_forward or any(len(shape) != 3 for shape in [*convolutions, *positional]):
        raise ValueError(
            f"{checkpoint} lacks the convolutions or the layers of a data2vec-audio model. "
            "Give the .pt file that fairseq itself wrote."
        )
    return {
        "hidden_size": positional[0][0],
        "num_hidden_layers": len(feed_forward),
        "intermediate_size": feed_forward[0][0],
        "conv_dim": [shape[0] for shape in convolutions],
        "conv_kernel": [shape[2] for shape in convolutions],
        "conv_bias": f"{prefix}feature_extractor.conv_layers.0.conv.bias" in weights,
        "num_conv_pos_embeddings": len(positional),
        "conv_pos_kernel_size": positional[0][2],
        "num_conv_pos_embedding_groups": positional[0][0] // max(1, positional[0][1]),
    }


def _config(checkpoint: Path, settings: dict, shapes: dict) -> Music2VecConfig:
    """Our configuration: what the file states, checked against its shapes, and the reference's values elsewhere."""
    stated = _stated(checkpoint, settings)
    for field, value in shapes.items():
        if stated.get(field, value) != value:
            raise ValueError(
                f"{checkpoint} states `{field}` {stated[field]} but its weights have {value}. "
                "Give the file that fairseq itself wrote."
            )
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
        layers = parse_conv_layers(settings["conv_feature_layers"])
        stated |= dict(
            zip(("conv_dim", "conv_kernel", "conv_stride"), map(list, zip(*layers, strict=True)), strict=True)
        )
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
                "no multiple of 64, the reference's width of a head. Give the file that fairseq itself wrote."
            )
    if "conv_stride" not in stated:
        unknown.append("conv_feature_layers")
        if stated["conv_kernel"] != Music2VecConfig().conv_kernel:
            raise ValueError(
                f"{checkpoint} does not state `conv_feature_layers` and its kernels {stated['conv_kernel']} are not "
                "the reference's, so its strides are unknown. Give the file that fairseq itself wrote."
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
    """Read fairseq's notation of the convolutions, sums and multiples of lists, without `eval`.

    Args:
        text (`str`): for example `"[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2"`.

    Returns:
        `list[tuple[int, int, int]]`: channels, kernel and stride of each convolution.

    Raises:
        ValueError: for anything else.
    """

    def value(node):
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Tuple(elts=parts):
                return tuple(value(part) for part in parts)
            case ast.List(elts=parts):
                return [value(part) for part in parts]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=ast.List() as left, op=ast.Mult(), right=ast.Constant(value=int(times))) if (
                times < 100
            ):
                return value(left) * times
        raise ValueError(ast.unparse(node))

    try:
        layers = value(ast.parse(text.strip(), mode="eval").body)
        if not layers or not all(min(layer) > 0 and len(layer) == 3 for layer in layers):
            raise ValueError(text)
    except (SyntaxError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`conv_feature_layers` is {text!r}. It has to be a sum of lists of (channels, kernel, stride), such as "
            "'[(512, 10, 5)] + [(512, 3, 2)] * 4'."
        ) from error
    return layers


def _check_names(checkpoint: Path, what: str, weights: dict, expected: dict) -> None:
    """Refuse weights that are not exactly the model's, in name and shape."""
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    misshapen = [name for name in expected.keys() & weights.keys() if weights[name].shape != expected[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has misshapen", misshapen)):
        if names:
            raise ValueError(
                f"The {what} in {checkpoint} {problem} weights ({len(names)}: {', '.join(sorted(names)[:3])}). "
                "Give the .pt file of a data2vec-audio pretraining run, before fine-tuning."
            )


__all__ = ["convert_fairseq_checkpoint", "parse_conv_layers"]
