"""The common API of HEAR 2021 (https://hearbenchmark.com/hear-api.html): name this module to `heareval`."""

import torch

from music2vec_hf.features.embeddings import embed
from music2vec_hf.features.encoders import Encoder, load_encoder

# What windows share, so that frames lie at regular times across their seams.
OVERLAP_SECONDS = 2.0


class HearModel(torch.nn.Module):
    """A frozen audio model as HEAR names its parts; it moves by `.to(device)`.

    Attributes:
        sample_rate (`int`): in Hz, of the audio that it takes.
        scene_embedding_size, timestamp_embedding_size (`int`): channels.
    """

    def __init__(self, encoder: Encoder, layer: str | int | None):
        super().__init__()
        self.encoder, self.extractor, self.sample_rate = encoder.model, encoder.extractor, encoder.sampling_rate
        (self.layer,) = encoder.check_layers([encoder.layers[-1] if layer is None else layer])
        silence = torch.zeros(1, max(self.sample_rate, encoder.front_end.receptive_field))
        self.scene_embedding_size = self.timestamp_embedding_size = get_scene_embeddings(silence, self).shape[1]


def load_model(model_file_path: str = "tiny", layer: str | int | None = None) -> HearModel:
    """The model of a folder, a Hub id or `"tiny"`, on the CPU.

    Args:
        layer (*optional*): which to take, `"conv"` or a number; by default the last. HEAR itself names none.

    Raises:
        ValueError: for a model or layer that is not there.
    """
    return HearModel(load_encoder(model_file_path or "tiny"), layer)


def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """`audio [n_sounds, n_samples]`, mono in [-1, 1] at the model's rate -> float32 `[n_sounds,
    scene_embedding_size]` on the device of `audio`: [`embed`]'s mean over all frames, of any length. ValueError for
    another shape, and audio that is shorter than one frame."""
    return torch.from_numpy(_embed(audio, model)).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: HearModel) -> tuple[torch.Tensor, torch.Tensor]:
    """`audio` as in [`get_scene_embeddings`] -> float32 `[n_sounds, n_timestamps, timestamp_embedding_size]` and the
    centres of the frames in milliseconds, `[n_sounds, n_timestamps]`, at regular times (50 a second for ours)."""
    frames, times = _embed(audio, model, pool="none", overlap_seconds=OVERLAP_SECONDS, return_times=True)
    milliseconds = torch.tensor([[1000 * time for time in each] for each in times], dtype=torch.float32)
    return torch.from_numpy(frames).to(audio.device), milliseconds.to(audio.device)


def _embed(audio: torch.Tensor, model: HearModel, **settings):
    if audio.ndim != 2 or len(audio) == 0:
        raise ValueError(f"`audio` has shape {tuple(audio.shape)}. Give `(n_sounds, n_samples)`.")
    settings |= {"sampling_rate": model.sample_rate, "feature_extractor": model.extractor}
    return embed(model.encoder, list(audio), model.layer, **settings)
