"""The toy recipe; as a program, a run of it that a test can kill: `python -m toy_run CORPUS OUTPUT`."""

import sys

from music2vec_hf.pretraining.arguments import Recipe, load_recipe
from music2vec_hf.pretraining.loop import pretrain

TOY = {
    "crop_seconds": 1.0,
    "batch_seconds": 4.0,
    "mask_group_seconds": 4.0,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 4,
    "average_top_k_layers": 2,
    "max_steps": 6,
    "log_every": 1,
    "save_every": 2,
    "num_workers": 0,
    "precision": "fp32",
}


def toy(**changes) -> Recipe:
    """The toy recipe with some values changed."""
    return load_recipe("crop5s", **{**TOY, **changes})


if __name__ == "__main__":
    pretrain(toy(), sys.argv[1], sys.argv[2], resume=True)
