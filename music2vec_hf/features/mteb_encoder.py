"""Any audio model that `embed` takes, as an encoder of MTEB 2 (https://github.com/embeddings-benchmark/mteb)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Audio
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import cached_file, extract_commit_hash

from music2vec_hf.audio.containers import name_audio_column
from music2vec_hf.common.weights import model_source
from music2vec_hf.features.embeddings import embed
from music2vec_hf.features.encoders import choose_device, load_encoder

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise ImportError("MTEB's encoder needs mteb: pip install 'music2vec_hf[mteb]'.") from error


class MTEBEncoder(AbsEncoder):
    """One layer of a frozen audio model, by MTEB's `EncoderProtocol`, for `mteb.evaluate(MTEBEncoder("tiny"), tasks)`.

    A clip is heard as [`embed`] hears it: read whole at its own sampling rate, resampled to the model's, normalised,
    cut into windows, and described by the mean over the frames of all windows, so that a window weighs by its
    duration. Nothing is cut off or padded, and what else is in a batch does not matter. A data set whose column is
    `Audio` is read by our decoder; torchcodec is not needed.

    Args:
        model_name (`str`): `"tiny"`, a folder or a Hub id.
        revision (`str`, *optional*): of a repository of the Hub; by default its newest.
        device (`str`, *optional*): `cpu`, `cuda`, `mps` or `auto`, the default.
        layer (`str` or `int`, *optional*): whose frames are averaged, `"conv"` or a number; by default the last.
        window_seconds (`float`): longest piece that the model hears at once; choose what it was trained on.
        precision (`str`): of matrix products, see [`HearingSettings`].
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Attributes:
        mteb_model_meta (`ModelMeta`): what the model itself tells; a folder is called `local/<its name>`, and its
            revision is the hash of its weights. `None` is unknown: licence, training data, date. Fill in what you
            know by `model_copy(update={...})`, before you publish scores.

    Raises:
        ValueError: for a model, layer or device that is not there.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        layer: str | int | None = None,
        window_seconds: float = 30.0,
        precision: str = "fp32",
        trust_remote_code: bool = False,
    ):
        encoder = load_encoder(model_name, trust_remote_code=trust_remote_code, revision=revision)
        encoder.model.to(choose_device(device or "auto"))
        (self.layer,) = encoder.check_layers([encoder.layers[-1] if layer is None else layer])
        self.model, self._extractor = encoder.model, encoder.extractor
        self.window_seconds, self.precision = window_seconds, precision
        second = np.zeros(max(encoder.sampling_rate, encoder.front_end.receptive_field), np.float32)
        num_parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
        commit = extract_commit_hash(cached_file(model_source(model_name), "config.json", revision=revision), None)
        on_the_hub = "/" in str(model_name) and not Path(model_name).exists()
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "loader": type(self) if on_the_hub else None,
                "loader_kwargs": {"trust_remote_code": True} if trust_remote_code else {},
                "name": model_name if on_the_hub else f"local/{Path(model_name).resolve().name}",
                "revision": commit or encoder.hash,
                "experiment_kwargs": {"layer": self.layer, "window_seconds": window_seconds, "precision": precision},
                "n_parameters": num_parameters,
                "n_embedding_parameters": 0,
                "memory_usage_mb": num_parameters * 4 / 2**20,
                "embed_dim": len(self._embed([second])[0]),
                "open_weights": True if on_the_hub else None,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
                "modalities": ["audio"],
            }
        )

    def encode(
        self, inputs: DataLoader, *, task_metadata, hf_split: str, hf_subset: str, prompt_type=None, **kwargs
    ) -> np.ndarray:
        """The embeddings `[clips, channels]`, float32, of what a loader gives, in its order.

        Args:
            inputs: of batches with `audio`: rows with `array` and `sampling_rate`, or encoded `bytes` or `path`.
            kwargs: MTEB's; `show_progress_bar` is heeded, `batch_size` has no say (the loader has its own).

        Raises:
            ValueError: for batches without audio, a clip that cannot be read or is shorter than one frame, and for a
                `precision` of the embeddings other than float32.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise ValueError(f"`precision` is {kwargs['precision']!r}; embeddings are given as float32 only.")
        rows = _clips(inputs, task_metadata.name, kwargs.get("show_progress_bar", True))
        return np.stack(self._embed(rows))

    def _embed(self, clips) -> list[np.ndarray] | np.ndarray:
        settings = {"feature_extractor": self._extractor, "precision": self.precision}
        return embed(self.model, clips, self.layer, window_seconds=self.window_seconds, **settings)


def _clips(inputs: DataLoader, task: str, show_progress_bar: bool) -> Iterator[dict]:
    """The audio of a loader, clip by clip; of a column of files their bytes."""
    if isinstance((getattr(inputs.dataset, "features", None) or {}).get("audio"), Audio):
        encoded = name_audio_column(task, inputs.dataset)
        order = {"batch_sampler": inputs.batch_sampler, "num_workers": inputs.num_workers}
        inputs = DataLoader(encoded, collate_fn=inputs.collate_fn, **order)
    for batch in tqdm(inputs, desc=task, disable=not show_progress_bar):
        if "audio" not in batch:
            raise ValueError(f"{task} has {', '.join(batch) or 'nothing'} where this model hears audio only.")
        yield from batch["audio"]
