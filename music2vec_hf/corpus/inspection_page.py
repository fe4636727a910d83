"""The page of `music2vec inspect`: what a corpus holds, with histograms, and ten clips to see and hear."""

import os
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from music2vec_hf.audio.containers import CORPUS_COLUMNS
from music2vec_hf.audio.reading import encode_flac
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import write_text
from music2vec_hf.common.render import as_base64, figure_as_base64, render
from music2vec_hf.corpus.inspection import RMS_FLOOR, Inspection, describe_corpus, find_warnings, open_shard
from music2vec_hf.corpus.loading import read_crop

NUM_CLIPS = 10
# Ten incompressible excerpts of this length, their spectrograms and base64 stay below 5 MB.
EXCERPT_SECONDS = 7.5
SPECTROGRAM_FFT, SPECTROGRAM_HOP = 1024, 256


def write_page(inspection: Inspection, output: str | os.PathLike = "inspection.html", seed: int = 0) -> Path:
    """Write one HTML page that needs nothing beside it: facts, histograms, rejects, and ten clips to see and hear.

    Args:
        inspection (`Inspection`): of [`inspect_corpus`].
        output: the page; by default not in the corpus, whose files are always the same bytes.
        seed (`int`): equal seeds show the same clips.

    Returns:
        `Path`: of the page.

    Raises:
        ValueError: if `output` does not end in .html.
        AudioError: if a clip that is drawn cannot be decoded.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"The page would be written to {output}; give a file whose name ends in .html.")
    page = render(
        Path(__file__).with_name("inspection.html.jinja"),
        title=f"Corpus: {inspection.corpus.resolve().name}",
        notices=find_warnings(inspection),
        facts=describe_corpus(inspection),
        histograms=_draw_histograms(inspection),
        rejects=inspection.summary.get("rejects"),
        examples=inspection.reject_examples,
        seed=seed,
        clips=[_show_clip(split, row) for split, row in draw_clips(inspection, seed)],
        versions=inspection.summary.get("versions", {}),
    )
    return write_text(output, page)


def draw_clips(inspection: Inspection, seed: int = 0, number: int = NUM_CLIPS) -> list[tuple[str, dict]]:
    """Draw clips at random, each with equal chance: `(split, row)` in the order of the corpus, audio encoded."""
    total = len(inspection.durations)
    chosen = np.sort(np.random.default_rng(seed).choice(total, size=min(number, total), replace=False)).tolist()
    rows, first = [], 0
    for split, paths in inspection.files.items():
        for path in paths:
            with open_shard(path) as shard:
                for group in range(shard.num_row_groups):
                    end = first + shard.metadata.row_group(group).num_rows
                    inside = [index - first for index in chosen if first <= index < end]
                    table = shard.read_row_group(group, columns=[*CORPUS_COLUMNS]) if inside else None
                    rows += [(split, table.slice(place, 1).to_pylist()[0]) for place in inside]
                    first = end
    return rows


def _show_clip(split: str, row: dict) -> dict:
    """What the page shows of a clip: names, the spectrogram of its beginning and the same to hear."""
    samples = read_crop(row, 0, round(min(row["duration"], EXCERPT_SECONDS) * SAMPLING_RATE))
    return {
        "source": row["source"],
        "track_id": row["track_id"],
        "split": split,
        "start": row["clip_start"],
        "duration": row["duration"],
        "excerpt": len(samples) / SAMPLING_RATE,
        "level": 20 * np.log10(max(np.hypot(row["clip_mean"], row["clip_std"]), RMS_FLOOR)),
        "spectrogram": _draw_spectrogram(samples),
        "flac": as_base64(encode_flac(samples)),
    }


def log_spectrogram(samples: np.ndarray) -> np.ndarray:
    """Magnitudes in dB, a sine at full scale being 0: `[frequencies, frames]`, Hann windows of 64 ms every 16 ms."""
    window = np.hanning(SPECTROGRAM_FFT + 1)[:-1]
    padded = np.pad(samples, (0, max(0, SPECTROGRAM_FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, SPECTROGRAM_FFT)[::SPECTROGRAM_HOP]
    return 20 * np.log10(np.maximum(2 * np.abs(np.fft.rfft(frames * window)).T / window.sum(), 1e-6))


def _draw_spectrogram(samples: np.ndarray) -> str:
    figure = Figure(figsize=(5.4, 1.8), layout="constrained")
    axis = figure.add_subplot()
    extent = (0, len(samples) / SAMPLING_RATE, 0, SAMPLING_RATE / 2000)
    # One scale for all clips: a quiet one looks quiet. 32 colours make a small file.
    style = {"origin": "lower", "aspect": "auto", "cmap": colormaps["magma"].resampled(32)}
    axis.imshow(log_spectrogram(samples), extent=extent, vmin=-100, vmax=-10, **style)
    axis.set(xlabel="s", ylabel="kHz")
    axis.tick_params(labelsize=8)
    return figure_as_base64(figure, dpi=85)


def _draw_histograms(inspection: Inspection) -> str:
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    durations, levels, hours = figure.subplots(1, 3)
    seconds = inspection.durations[inspection.durations > 0]
    heights, *_ = durations.hist(seconds, bins=40, range=(0, seconds.max(initial=1) * 1.025), color="#1f6feb")
    if heights.max() > 50 * heights[heights > 0].min(initial=np.inf):
        durations.set(yscale="log", ylim=(0.5, None))  # else the few shorter clips would not be seen
    durations.set(title="duration of a clip", xlabel="s", ylabel="clips")
    finite = inspection.levels[np.isfinite(inspection.levels)]
    edges = np.arange(np.floor(finite.min(initial=0)) - 3, np.ceil(finite.max(initial=-120)) + 4)  # 1 dB each
    levels.hist(finite, bins=edges, color="#1f6feb")
    levels.set(title="level of a clip (RMS)", xlabel="dBFS", ylabel="clips")
    names = list(inspection.splits)
    bars = hours.barh(names, [inspection.splits[name]["hours"] for name in names], color="#1f6feb", height=0.6)
    hours.bar_label(bars, fmt=lambda value: f" {value:.{2 if value >= 1 else 4}f}", fontsize=9)
    hours.set_ylim(len(names), -1)
    hours.margins(x=0.25)
    hours.set(title="audio in each split", xlabel="h")
    for axis in (durations, levels, hours):
        axis.set_axisbelow(True)
        axis.grid(alpha=0.3)
    return figure_as_base64(figure, dpi=110)


__all__ = ["draw_clips", "log_spectrogram", "write_page"]
