"""Weights from and for elsewhere: fairseq checkpoints in, plain data2vec-audio out."""

import re
from pathlib import Path

import torch
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

from music2vec_hf.features.embedding_model import load_model

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
_MODEL_NAMES = (
    (r"^mask_emb$", r"data2vec_audio.masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"data2vec_audio.feature_extractor.conv_layers.\1.conv."),
    (
        r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.",
        r"data2vec_audio.feature_extractor.conv_layers.\1.layer_norm.",
    ),
    (r"^layer_norm\.", r"data2vec_audio.feature_projection.layer_norm."),
    (r"^post_extract_proj\.", r"data2vec_audio.feature_projection.projection."),
    (r"^final_proj\.(0\.)?", r"final_proj."),
)


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
    teacher = state_dict.get("_ema")
    model, unknown = {}, []
    for name, tensor in state_dict.items():
        if name == "_ema":
            continue
        if name.startswith("encoder."):
            renamed = _rename(name.removeprefix("encoder."), _ENCODER_NAMES)
            renamed = renamed and f"data2vec_audio.encoder.{renamed}"
        else:
            renamed = _rename(name, _MODEL_NAMES)
        if renamed is None:
            unknown.append(name)
        else:
            model[renamed] = tensor
    if teacher is not None:
        renamed = {name: _rename(name, _ENCODER_NAMES) for name in teacher}
        unknown += [f"_ema.{name}" for name, new in renamed.items() if new is None]
        teacher = {new: teacher[name] for name, new in renamed.items() if new is not None}
    if unknown:
        raise ValueError(
            f"The checkpoint has {len(unknown)} names that no data2vec-audio model has ({', '.join(unknown[:5])}). "
            "Give the `model` entry of a data2vec-audio pretraining checkpoint."
        )
    return model, teacher


def _rename(name: str, rules) -> str | None:
    for pattern, replacement in rules:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def check_new_folder(out: str | Path) -> Path:
    """`out`, if it can take an export: it is not there, or an empty folder. Else a ValueError."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty. Name a new folder for the export.")
    return out


def export_data2vec_audio(model: str | Path, out: str | Path) -> Path:
    """Write a Music2Vec encoder as a plain `data2vec-audio` folder, which transformers loads without this library.

    Args:
        model (`str` or `Path`): folder or Hub id of any Music2Vec model.
        out (`str` or `Path`): new folder for config, weights and feature extractor.

    Returns:
        `Path`: the folder, for `AutoModel.from_pretrained`.

    Raises:
        ValueError: if `out` exists and is not empty, or the Hub does not give the model.
    """
    out = check_new_folder(out)
    encoder, extractor = load_model(model)
    known = {**Data2VecAudioConfig().to_dict(), "apply_spec_augment": False}
    fields = {key: value for key, value in encoder.config.to_dict().items() if key in known and key != "model_type"}
    fields.pop("architectures", None)
    plain = Data2VecAudioModel(Data2VecAudioConfig(**fields))
    plain.load_state_dict(encoder.state_dict(), strict="masked_spec_embed" in plain.state_dict())
    plain.save_pretrained(out)
    Wav2Vec2FeatureExtractor(do_normalize=extractor.do_normalize, return_attention_mask=True).save_pretrained(out)
    return out


__all__ = ["check_new_folder", "convert_fairseq_state_dict", "export_data2vec_audio"]
