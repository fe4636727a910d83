"""Where a new run starts: random weights, or those of another model (`init_from`)."""

import torch
from safetensors.torch import load_file
from transformers.utils import cached_file

from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.teacher_music2vec import EMATeacher
from music2vec_hf.pretraining.arguments import Recipe

# The fields that decide which weights a model has, and what they mean.
_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "num_conv_pos_embeddings",
    "conv_pos_kernel_size",
    "num_conv_pos_embedding_groups",
)


def new_learners(recipe: Recipe) -> tuple[Music2VecForPreTraining, EMATeacher]:
    """Student and teacher of a run that has not begun, on the CPU.

    With `init_from` the student has that model's weights, and a new prediction head where the model has none; the
    teacher has those of its `teacher.safetensors` (our checkpoints and converted ones have it), else the student's.

    Args:
        recipe ([`Recipe`]): torch's generator is seeded by the caller.

    Raises:
        ValueError: if the model to start from is not there, or has another shape than the recipe's.
    """
    config, source = recipe.model_config(), recipe.init_from
    if source is None:
        student = Music2VecForPreTraining(config)
        return student, EMATeacher(student)
    with explain_hub_errors(source, "a model"):
        theirs = Music2VecConfig.from_pretrained(source)  # reads plain data2vec-audio too
    differing = [
        f"`{name}` {_plain(getattr(theirs, name, None))} there and {_plain(getattr(config, name))} here"
        for name in _SHAPE
        if _plain(getattr(theirs, name, None)) != _plain(getattr(config, name))
    ]
    if differing:
        raise ValueError(
            f"`init_from` {source} has another shape than the recipe ({', '.join(differing)}). Give the recipe the "
            "model's values."
        )
    student = Music2VecForPreTraining.from_pretrained(source, config=config, dtype=torch.float32)
    teacher = EMATeacher(student)
    weights = cached_file(source, "teacher.safetensors", _raise_exceptions_for_missing_entries=False)
    if weights is not None:
        teacher.load_state_dict(load_file(weights))
    return student, teacher


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


__all__ = ["new_learners"]
