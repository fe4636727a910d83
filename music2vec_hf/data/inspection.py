"""Looking at a corpus before training on it: what it holds, in print, and as one HTML page with ten clips to hear.

The numbers come from the columns beside the audio, so nothing is decoded but the clips that the page plays.
"""

import base64
import csv
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from .audio import SAMPLING_RATE, encode_flac
from .clips import write_atomically
from .corpus import read_crop
from .finding import choose_splits, find_corpus
from .measuring import STATISTICS
from .sources import CORPUS_COLUMNS

# A value of one of these belongs to one split only, or what is tested was seen in training.
ID_COLUMNS = ("track_id", "artist_id", "composition_id")
# What a manifest may call the rate and the format of the files that the clips are from.
RATE_COLUMNS = ("source_sampling_rate", "sampling_rate", "sample_rate")
FORMAT_COLUMNS = ("source_format", "format", "codec")

NUM_CLIPS = 10
# Ten incompressible excerpts of this length, their spectrograms and base64 stay below 5 MB.
EXCERPT_SECONDS = 7.5
RMS_FLOOR = 1e-6  # -120 dBFS
OFFSET = 0.01
SPECTROGRAM_FFT, SPECTROGRAM_HOP = 1024, 256


@dataclass(frozen=True)
class Inspection:
    """What the columns of a corpus say.

    Args:
        corpus (`Path`): its folder.
        summary (`dict`): the content of corpus.json.
        files (`dict[str, list[str]]`): shards by split.
        splits (`dict[str, dict]`): `hours`, `clips`, `tracks` of each split, counted in the shards.
        durations, means, levels (`np.ndarray`): of every clip: seconds, mean of the samples, RMS in dBFS.
        counts (`dict[str, Counter]`): clips by value of a column of rates or formats, and by `suffix` of the source.
        metadata (`dict[str, tuple[str, int]]`): further columns: type, and clips that have a value.
        leaks (`dict[str, dict[str, list[str]]]`): column of ids -> value -> the several splits that hold it.
        reject_examples (`dict[str, tuple[str, str]]`): kind -> first path and reason in rejects.csv.
    """

    corpus: Path
    summary: dict
    files: dict[str, list[str]]
    splits: dict[str, dict]
    durations: np.ndarray
    means: np.ndarray
    levels: np.ndarray
    counts: dict[str, Counter]
    metadata: dict[str, tuple[str, int]]
    leaks: dict[str, dict[str, list[str]]]
    reject_examples: dict[str, tuple[str, str]]


class _Columns:
    """Adds up the columns of the shards, a batch at a time."""

    def __init__(self):
        self.statistics: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
        self.ids: dict[str, dict[str, pa.Array]] = {}
        self.counts: dict[str, Counter] = {}
        self.metadata: dict[str, tuple[str, int]] = {}
        self.splits: dict[str, dict] = {}

    def add_shard(self, split: str, path: str) -> None:
        """Read all columns of a shard but the audio."""
        seen: dict[str, list[pa.Array]] = {}
        totals = self.splits.setdefault(split, {"hours": 0.0, "clips": 0, "tracks": 0})
        with _open_shard(path) as shard:
            names = [name for name in shard.schema_arrow.names if name != "audio"]
            missing = [name for name in STATISTICS if name not in names]
            if missing:
                raise ValueError(f"{path} has no column {', '.join(missing)}; prepare the corpus anew.")
            for batch in shard.iter_batches(columns=names):
                totals["clips"] += len(batch)
                for name in names:
                    self._add(name, batch[name], seen)
                totals["hours"] += np.nansum(self.statistics["duration"][-1]) / 3600
        for name, parts in seen.items():
            by_split = self.ids.setdefault(name, {})
            before = [by_split[split]] if split in by_split else []
            by_split[split] = pc.unique(pa.chunked_array([*before, *parts]))
        totals["tracks"] = len(self.ids.get("track_id", {}).get(split, ()))

    def _add(self, name: str, values: pa.Array, seen: dict[str, list[pa.Array]]) -> None:
        if name in STATISTICS:
            self.statistics[name].append(values.to_numpy(zero_copy_only=False).astype(np.float64))
        if name in ID_COLUMNS:
            flat = values.flatten() if pa.types.is_list(values.type) else values
            ids = pc.unique(flat.drop_null()).cast(pa.string())
            seen.setdefault(name, []).append(ids.filter(pc.not_equal(ids, "")))
        if name in (*RATE_COLUMNS, *FORMAT_COLUMNS):
            self.counts.setdefault(name, Counter()).update(map(str, values.drop_null().to_pylist()))
        if name == "source":
            suffixes = [PurePosixPath(source).suffix.lower() for source in values.drop_null().to_pylist()]
            self.counts.setdefault("suffix", Counter()).update(suffixes)
        if name not in CORPUS_COLUMNS:
            _, filled = self.metadata.get(name, ("", 0))
            self.metadata[name] = (str(values.type), filled + len(values) - values.null_count)

    def leaks(self) -> dict[str, dict[str, list[str]]]:
        """For each column of ids that is there: the values that lie in several splits."""
        found: dict[str, dict[str, list[str]]] = {}
        for name, by_split in self.ids.items():
            counted = pc.value_counts(pa.chunked_array(list(by_split.values())))
            several = counted.field("values").filter(pc.greater(counted.field("counts"), 1)).sort()
            found[name] = {value: [] for value in several.to_pylist()}
            for split, values in by_split.items():
                for value in several.filter(pc.is_in(several, value_set=values)).to_pylist():
                    found[name][value].append(split)
        return found


def inspect_corpus(corpus: str | os.PathLike, progress: bool = True) -> Inspection:
    """Read what a corpus holds, all but its audio.

    Args:
        corpus: a folder made by `prepare_corpus`.
        progress (`bool`): show a bar over the shards.

    Raises:
        ValueError: if it is no finished corpus of ours, or a file of it is damaged or holds no clips.
    """
    corpus = Path(corpus)
    if not (corpus / "corpus.json").is_file():
        if (corpus / ".staging").exists() or (corpus / "rejects.csv").exists():
            find_corpus(corpus)  # says that it is unfinished
        raise ValueError(
            f"{corpus} is not a prepared corpus (it holds no corpus.json), and only those can be inspected; "
            "run `music2vec prepare SOURCE OUT` and inspect OUT."
        )
    try:
        summary = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{corpus / 'corpus.json'} is not JSON ({error}); copy the corpus again.") from error
    found = find_corpus(corpus)
    files = {split: found.files[split] for split in choose_splits(corpus, found, "all")}
    columns = _Columns()
    shards = [(split, path) for split, paths in files.items() for path in paths]
    for split, path in tqdm(shards, desc="reading columns", unit="shard", disable=not progress):
        columns.add_shard(split, path)
    durations, means, stds = (np.concatenate(columns.statistics[name] or [[]]) for name in STATISTICS)
    if not len(durations):
        raise ValueError(f"{corpus} holds no clips; remove it and prepare it anew.")
    return Inspection(
        corpus=corpus,
        summary=summary,
        files=files,
        splits=columns.splits,
        durations=durations,
        means=means,
        levels=20 * np.log10(np.maximum(np.hypot(means, stds), RMS_FLOOR)),
        counts=columns.counts,
        metadata=columns.metadata,
        leaks=columns.leaks(),
        reject_examples=_first_rejects(corpus / "rejects.csv"),
    )


def _open_shard(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); copy it again.") from error


def _first_rejects(path: Path) -> dict[str, tuple[str, str]]:
    """Kind -> the first path and reason of that kind; none if there is no such file."""
    found: dict[str, tuple[str, str]] = {}
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["reason"] or "").split(":")[0], (row["path"], row["reason"]))
    return found


def format_summary(inspection: Inspection) -> str:
    """What `music2vec inspect` prints: one fact a line, warnings last."""
    facts = describe_corpus(inspection)
    width = max(len(label) for label, _ in facts)
    lines = [f"{inspection.corpus}", *(f"  {label.ljust(width)}  {text}" for label, text in facts)]
    return "\n".join([*lines, *(f"  WARNING: {warning}" for warning in find_warnings(inspection))])


def describe_corpus(inspection: Inspection) -> list[tuple[str, str]]:
    """The facts of print and page: `(label, text)`."""
    summary, splits = inspection.summary, inspection.splits
    durations, levels = (values[np.isfinite(values)] for values in (inspection.durations, inspection.levels))
    facts = [("all", _amount({key: sum(split[key] for split in splits.values()) for key in ("hours", "clips")}))]
    facts += [(f"split {name}", _amount(split)) for name, split in splits.items()]
    if len(durations):
        low, middle, high = np.percentile(durations, [0, 50, 100])
        facts.append(("duration of a clip", f"min {low:.2f} s, median {middle:.2f} s, max {high:.2f} s"))
    if len(levels):
        low, middle, high = np.percentile(levels, [5, 50, 95])
        facts.append(("level (RMS)", f"5 % {low:.1f}, 50 % {middle:.1f}, 95 % {high:.1f} dBFS"))
    facts.append(("constant offset", f"{(abs(inspection.means) > OFFSET).sum()} clips with a mean beyond {OFFSET:g}"))
    facts.append(("rate of the clips", f"{summary.get('sampling_rate', SAMPLING_RATE)} Hz, one channel, 16-bit FLAC"))
    counts = inspection.counts
    for label, names in (("rates of the sources", RATE_COLUMNS), ("formats of the sources", FORMAT_COLUMNS)):
        texts = [f"{name}: {_clip_counts(counts[name])}" for name in names if counts.get(name)]
        facts.append((label, "; ".join(texts) or "not recorded in this corpus"))
    facts.append(("suffixes of the sources", _clip_counts(counts.get("suffix", Counter())) or "not recorded"))
    rejects = ", ".join(f"{count} {kind}" for kind, count in summary.get("rejects", {}).items())
    facts.append(("rejects", rejects or "none"))
    if summary.get("remainder_hours"):
        facts.append(("ends dropped", f"{summary['remainder_hours'] * 3600:.1f} s in all, shorter than a clip may be"))
    if summary.get("not_sampled"):
        facts.append(("not sampled", f"{summary['not_sampled']} tracks outside the random sample"))
    facts += [("split leaks", text) for text in _describe_leaks(inspection)]
    total = len(inspection.durations)
    texts = [f"{name} ({kind}, {100 * filled / total:.0f} %)" for name, (kind, filled) in inspection.metadata.items()]
    facts.append(("metadata (type, filled)", ", ".join(texts) or "no columns beside the corpus' own"))
    return facts


def _amount(split: dict) -> str:
    tracks = f", {split['tracks']} tracks" if "tracks" in split else ""
    digits = 2 if split["hours"] >= 1 else 4  # 0.0001 h are a third of a second
    return f"{split['hours']:.{digits}f} h, {split['clips']} clips{tracks}"


def _clip_counts(counts: Counter, most: int = 8) -> str:
    parts = [f"{value or '(none)'} {count}" for value, count in counts.most_common(most)]
    rest = f" and {len(counts) - most} others" if len(counts) > most else ""
    return f"{', '.join(parts)}{rest} (clips)" if parts else ""


def _describe_leaks(inspection: Inspection, most: int = 5) -> list[str]:
    if len(inspection.splits) == 1:
        return ["none possible, there is one split"]
    texts = []
    for name, values in inspection.leaks.items():
        shown = [f"{value} ({', '.join(splits)})" for value, splits in list(values.items())[:most]]
        shown += ["..."] if len(values) > most else []
        texts.append(f"{name}: {len(values)} in several splits: {', '.join(shown)}" if values else f"{name}: none")
    absent = [name for name in ID_COLUMNS if name not in inspection.leaks]
    return texts + ([f"not checked, no such column: {', '.join(absent)}"] if absent else [])


def find_warnings(inspection: Inspection) -> list[str]:
    """What to look into before training, one sentence each."""
    found = [
        f"{len(values)} values of {name} lie in several splits, so scores on validation and test would be too good; "
        "correct the manifest's column `split` and prepare the corpus anew."
        for name, values in inspection.leaks.items()
        if values
    ]
    for name, split in inspection.summary.get("splits", {}).items():
        clips = inspection.splits.get(name, {}).get("clips", 0)
        if clips != split["clips"]:
            found.append(f"corpus.json says {split['clips']} clips of the split {name}, the shards hold {clips}.")
    broken = int((~np.isfinite(inspection.levels) | ~(inspection.durations > 0)).sum())
    if broken:
        found.append(f"{broken} clips have no duration, mean or deviation; prepare the corpus anew.")
    return found


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
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("inspection.html").render(
        title=f"Corpus: {inspection.corpus.resolve().name}",
        warnings=find_warnings(inspection),
        facts=describe_corpus(inspection),
        histograms=_draw_histograms(inspection),
        rejects=inspection.summary.get("rejects", {}),
        examples=inspection.reject_examples,
        seed=seed,
        clips=[_show_clip(split, row) for split, row in draw_clips(inspection, seed)],
        versions=inspection.summary.get("versions", {}),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page)
    return output


def draw_clips(inspection: Inspection, seed: int = 0, number: int = NUM_CLIPS) -> list[tuple[str, dict]]:
    """Draw clips at random, each with equal chance: `(split, row)` in the order of the corpus, audio encoded."""
    total = len(inspection.durations)
    chosen = np.sort(np.random.default_rng(seed).choice(total, size=min(number, total), replace=False)).tolist()
    rows, first = [], 0
    for split, paths in inspection.files.items():
        for path in paths:
            with _open_shard(path) as shard:
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
        "flac": base64.b64encode(encode_flac(samples)).decode(),
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
    return _encode_figure(figure, dpi=85)


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
    return _encode_figure(figure, dpi=110)


def _encode_figure(figure: Figure, dpi: int) -> str:
    """The figure as the base64 of a PNG file; no display is needed."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return base64.b64encode(buffer.getvalue()).decode()


__all__ = ["Inspection", "draw_clips", "find_warnings", "format_summary", "inspect_corpus", "write_page"]
