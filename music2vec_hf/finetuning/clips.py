"""Clips of a labelled corpus as items for `Trainer`: random crops to train on, windows of whole clips to score."""

import os

import numpy as np
import torch
from datasets import Dataset as Corpus
from torch.utils.data import Dataset
from transformers import TrainerCallback

from music2vec_hf.audio.labels import list_labelled
from music2vec_hf.audio.listing import find_files
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.corpus.loading import clip_lengths, load_corpus, read_crop
from music2vec_hf.features.windows import WindowPlan
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor


def load_labelled_corpus(corpus: str | os.PathLike, split: str) -> Corpus:
    """[`load_corpus`] for one split; a folder of audio files without tables gets the labels of [`list_labelled`].

    Raises:
        ValueError: as in [`load_corpus`] and [`list_labelled`]; if the split is empty, or the tables of a folder do
            not name all its files.
    """
    found = find_files(corpus)
    tracks = {}
    if os.path.isdir(corpus) and found.kind in ("audiofolder", "manifest"):
        tracks = {os.fspath(track.path): track for track in list_labelled(corpus) if track.metadata}
    try:
        dataset = load_corpus(corpus, split)
    except ValueError as error:  # Parquet without a row: `datasets` does not say which
        if "corresponds to no data" not in str(error):
            raise
        dataset = ()
    if len(dataset) == 0:
        raise ValueError(f"The split {split} of {corpus} is empty. Name a split with clips in it.")
    if tracks:
        paths = [os.path.abspath(audio["path"]) for audio in dataset["audio"][:]]
        missing = [path for path in map(os.path.abspath, find_audio_files(corpus)) if path not in tracks]
        if missing and (found.kind == "manifest" or not {*missing}.isdisjoint(paths)):
            raise ValueError(
                f"The metadata of {corpus} does not name {len(missing)} of the files, the first is {missing[0]}."
            )
        if found.kind == "audiofolder" and not found.tables:
            dataset = dataset.add_column("label", [tracks[path].metadata["label"] for path in paths])
    return dataset


class Clips(Dataset):
    """Parts of clips as items `input_values [num_samples]` and `labels`, normalised by the whole clip.

    Args:
        corpus (`datasets.Dataset`): from [`load_labelled_corpus`].
        targets (`np.ndarray`): from [`Labels.targets`].

    Raises:
        ValueError: if a clip is shorter than one frame.
    """

    def __init__(self, corpus: Corpus, targets: np.ndarray, extractor: Music2VecFeatureExtractor):
        self.lengths, self.targets, self.extractor = clip_lengths(corpus), targets, extractor
        self.means, self.stds = (np.asarray(corpus[name][:]) for name in ("clip_mean", "clip_std"))
        self.audio = corpus.select_columns("audio")
        short = int((self.lengths < extractor.receptive_field).sum())
        if short:
            raise ValueError(f"{short} of the {len(corpus)} clips are shorter than one frame, 25 ms. Take them out.")

    def part(self, clip: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """The item of the samples from `start` to `stop` of a clip."""
        samples = read_crop(self.audio[clip], start, stop - start)
        if self.extractor.do_normalize:
            samples = self.extractor.standardize(samples, float(self.means[clip]), float(self.stds[clip]) ** 2)
        return {"input_values": samples, "labels": self.targets[clip]}


class RandomCrops(Clips):
    """One crop of each clip, another one in each `epoch`: a pure function of (seed, epoch, clip). Clips that are
    shorter are taken whole."""

    def __init__(self, corpus, targets, extractor, crop_seconds: float, seed: int):
        super().__init__(corpus, targets, extractor)
        self.num_samples, self.seed = round(crop_seconds * SAMPLING_RATE), seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see it too

    @property
    def epoch(self) -> int:
        """Whose crops are read, in this process and in the workers of a `DataLoader`."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, clip: int) -> dict[str, np.ndarray]:
        num_samples = min(self.num_samples, int(self.lengths[clip]))
        rng = np.random.default_rng([self.seed, self.epoch, clip])
        start = int(rng.integers(self.lengths[clip] - num_samples + 1))
        return self.part(clip, start, start + num_samples)


class EpochCallback(TrainerCallback):
    """Tells [`RandomCrops`] which epoch begins, also in a run that goes on from a checkpoint."""

    def __init__(self, crops: RandomCrops):
        self.crops = crops

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Called by `Trainer` before it starts to read."""
        self.crops.epoch = int(state.epoch)


class Windows(Clips):
    """All clips, whole, cut into windows as the pipeline cuts a song.

    Of each window `clips` says which clip it is of and `num_frames` its frames, the weight of its answer.
    """

    def __init__(self, corpus, targets, extractor, window_seconds: float, config: Music2VecConfig):
        super().__init__(corpus, targets, extractor)
        plan = WindowPlan.from_seconds(config, window_seconds)
        self.rows = [
            (clip, window.start, window.stop)
            for clip, length in enumerate(self.lengths)
            for window in plan.windows(int(length))
        ]
        self.clips = np.array([clip for clip, _, _ in self.rows])
        self.num_frames = np.array([config.num_frames(stop - start) for _, start, stop in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.part(*self.rows[index])

    def clip_logits(self, logits: np.ndarray) -> np.ndarray:
        """Average the logits `(num_windows, K)` of each clip's windows, each weighted by its frames: `(clips, K)`."""
        sums = np.zeros((len(self.lengths), logits.shape[1]))
        np.add.at(sums, self.clips, logits * self.num_frames[:, None])
        return sums / np.bincount(self.clips, self.num_frames)[:, None]


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Items -> `input_values [B, N]`, `labels`, and `attention_mask [B, N]` where lengths differ."""
    lengths = torch.tensor([len(item["input_values"]) for item in items])
    values = [torch.from_numpy(item["input_values"]) for item in items]
    batch = {
        "input_values": torch.nn.utils.rnn.pad_sequence(values, batch_first=True),
        "labels": torch.from_numpy(np.stack([item["labels"] for item in items])),
    }
    if lengths.min() < lengths.max():
        batch["attention_mask"] = (torch.arange(lengths.max()) < lengths[:, None]).long()
    return batch
