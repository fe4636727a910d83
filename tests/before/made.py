"""What the fixtures in this folder were made from: songs of exact bytes, a toy recipe, a toy model."""

import wave
from pathlib import Path

import numpy as np

SPLITS = {"train": 6, "validation": 4, "test": 4}
# Values of a pretraining recipe, as its YAML file or the command line gives them.
RECIPE = {
    "crop_seconds": 0.5,
    "batch_seconds": 2.0,
    "mask_group_seconds": 2.0,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 16,
    "average_top_k_layers": 2,
    "max_steps": 4,
    "log_every": 1,
    "save_every": 2,
    "keep_last": 5,
    "num_workers": 0,
    "precision": "fp32",
}


def write_songs(folder: Path) -> None:
    """Songs `split/label/number.wav` of one second; of whole numbers, so that every machine writes the same bytes."""
    for split, count in SPLITS.items():
        for number in range(count):
            label = ("low", "high")[number % 2]
            period = (97, 23)[number % 2] + number + 7 * len(split)
            time = np.arange(16_000, dtype=np.int64)
            samples = ((time % period) * 12_000 // period - 6_000 + (time * time * (number + 3)) % 1_001).astype("<i2")
            path = folder / split / label / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16_000)
                file.writeframes(samples.tobytes())
