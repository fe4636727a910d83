"""The sizes of toy models, of ours as of transformers' own, and folders of them."""

from music2vec_hf import Music2VecFeatureExtractor

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 4,
}


def save_model(model, folder):
    """Save a model with our feature extractor; the folder."""
    model.save_pretrained(folder)
    Music2VecFeatureExtractor().save_pretrained(folder)
    return folder
