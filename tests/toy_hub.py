"""What pages and examples name on the Hub, in small, for a Hub on loopback."""

import io
import json

import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset, Value
from toy_audio import noise
from toy_model import SIZES, save_model
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor


def publish_model(hub):
    """`m-a-p/music2vec-v1`: the shape of the published model, narrow inside."""
    model = hub.root / "models" / "m-a-p" / "music2vec-v1" / "main"
    if not model.is_dir():
        sizes = {"intermediate_size": 32, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 256}
        save_model(Data2VecAudioModel(Data2VecAudioConfig(**sizes)).to(torch.bfloat16), model)


def save_published(folder):
    """A toy laid out as m-a-p/music2vec-v1: transformers 4.21's files, a path in `vocab_size`, HF's defaults for all
    training values, weights of the bare encoder as pytorch_model.bin. The plain model that the folder then holds."""
    config = Data2VecAudioConfig(**SIZES)
    torch.manual_seed(0)
    plain = Data2VecAudioModel(config)
    folder.mkdir(parents=True)
    torch.save(plain.state_dict(), folder / "pytorch_model.bin")
    values = config.to_dict() | {
        "vocab_size": "/home/someone/src/convert_HF/data2vec_base/config.json",
        "architectures": ["Data2VecAudioModel"],
        "torch_dtype": "float32",
        "transformers_version": "4.21.3",
    }
    values.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return plain


def publish_task(hub, name):
    """The data of a task of MTEB, at the revision that the installed version asks for: 20 clips of two classes."""
    import mteb  # takes seconds

    source = mteb.get_task(name).metadata.dataset
    folder = hub.root / "datasets" / source["path"] / source["revision"] / "data"
    folder.mkdir(parents=True, exist_ok=True)
    tones = 0.3 * np.sin(np.arange(8_000) * np.linspace(0.1, 0.2, 10)[:, None])
    clips = [clip for number, tone in enumerate(tones) for clip in (tone, noise(0.5, number))]
    rows = [{"audio": {"bytes": wav(clip), "path": None}, "label": number % 2} for number, clip in enumerate(clips)]
    of_files(rows).to_parquet(folder / "train-00000-of-00001.parquet")


def wav(samples, rate=16_000):
    """The bytes of a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def of_files(rows):
    """A data set of rows with `audio`, bytes and path, as from the Hub: `datasets` would decode it by torchcodec."""
    files = Dataset.from_list(list(rows)).cast_column("audio", {"bytes": Value("binary"), "path": Value("string")})
    return files.cast_column("audio", Audio())
