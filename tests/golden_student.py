"""The model of the golden values (tests/golden/README.md), under our names."""

import torch

from music2vec_hf import Music2VecConfig, Music2VecForPreTraining, convert_fairseq_state_dict


def golden_config(config) -> Music2VecConfig:
    """The golden model: 4 layers, 48 wide, 7 convolutions of 32 channels, top 3."""
    model = config["model"]
    return Music2VecConfig(
        hidden_size=model["encoder_embed_dim"],
        num_hidden_layers=model["encoder_layers"],
        num_attention_heads=model["encoder_attention_heads"],
        intermediate_size=model["encoder_ffn_embed_dim"],
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=model["pos_conv_depth"],
        conv_pos_kernel_size=model["conv_pos"] // model["pos_conv_depth"],
        num_conv_pos_embedding_groups=model["conv_pos_groups"],
        hidden_dropout=model["dropout"],
        attention_dropout=model["attention_dropout"],
        activation_dropout=model["activation_dropout"],
        layerdrop=model["encoder_layerdrop"],
        average_top_k_layers=model["average_top_k_layers"],
        ema_decay=model["ema_decay"],
        ema_end_decay=model["ema_end_decay"],
        ema_anneal_end_step=model["ema_anneal_end_step"],
    )


def golden_student(arrays) -> Music2VecForPreTraining:
    student = Music2VecForPreTraining(golden_config(arrays["config"]))
    student.load_state_dict(convert_fairseq_state_dict(golden_weights(arrays, "init/"))[0], strict=True)
    return student.train()


def golden_weights(arrays, prefix):
    return {k.removeprefix(prefix): torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}


def teacher_names(encoder_weights):
    return convert_fairseq_state_dict({"_ema": encoder_weights})[1]
