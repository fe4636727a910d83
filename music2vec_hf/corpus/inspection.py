"""Looking at a corpus before training on it: what it holds, counted from the columns beside the audio."""

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib import colormaps
from matplotlib.figure import Figure
from tqdm import tqdm

from music2vec_hf.audio.listing import choose_splits, find_files
from music2vec_hf.audio.metadata import CORPUS_COLUMNS
from music2vec_hf.audio.reading import encode_flac
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import read_json, write_text
from music2vec_hf.common.hub import download_files, download_if_there
from music2vec_hf.common.render import as_base64, figure_as_base64, render
from music2vec_hf.corpus.loading import STATISTICS, read_crop

# A value of one of these belongs to one split only, or what is tested was seen in training.
ID_COLUMNS = ("track_id", "artist_id", "composition_id")
# What the clips' files were, and the column that tells it; corpora of before format 3 have none.
SOURCE_COLUMNS = {
    "rates of the sources": "source_sampling_rate",
    "channels of the sources": "source_channels",
    "formats of the sources": "source_format",
}
# What every corpus has.
NEEDED_COLUMNS = tuple(name for name in CORPUS_COLUMNS if name not in SOURCE_COLUMNS.values())

RMS_FLOOR = 1e-6  # -120 dBFS
OFFSET = 0.01


@dataclass
class Inspection:
    """What the columns of a corpus say.

    Args:
        summary (`dict`): the content of corpus.json; empty if there is none.
        reject_examples (`dict[str, tuple[str, str]]`): kind -> first path and reason in rejects.csv.
        splits (`dict[str, dict]`): `hours`, `clips`, `tracks` of each split, counted in the shards.
        durations, means, levels (`np.ndarray`): of every clip: seconds, mean of the samples, RMS in dBFS.
        counts (`dict[str, Counter]`): clips by value of a column of rates or formats, and by `suffix` of the source.
        metadata (`dict[str, tuple[str, int]]`): further columns: type, and clips that have a value.
        found_in (`dict[str, dict[str, list[str]]]`): column of ids -> value -> the splits that hold it.
    """

    corpus: Path
    summary: dict
    files: dict[str, list[str]]
    reject_examples: dict[str, tuple[str, str]]
    splits: dict[str, dict] = field(default_factory=dict)
    durations: np.ndarray = field(default_factory=lambda: np.zeros(0))
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    levels: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: dict[str, Counter] = field(default_factory=dict)
    metadata: dict[str, tuple[str, int]] = field(default_factory=dict)
    found_in: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def leaks(self) -> dict[str, dict[str, list[str]]]:
        """Of `found_in`, the values that lie in several splits."""
        return {
            name: {value: splits for value, splits in sorted(values.items()) if len(splits) > 1}
            for name, values in self.found_in.items()
        }


def inspect_corpus(corpus: str | os.PathLike, progress: bool = True) -> Inspection:
    """Read what a corpus holds, all but its audio.

    Args:
        corpus: a folder made by `prepare_corpus`, the Hub id of one that was pushed, or a folder or glob of its
            shards alone.

    Raises:
        ValueError: if it is no finished corpus of ours, or a file of it is damaged or holds no clips.
    """
    inspection = _open_corpus(corpus)
    statistics: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
    shards = [(split, path) for split, paths in inspection.files.items() for path in paths]
    for split, path in tqdm(shards, desc="reading columns", unit="shard", disable=not progress):
        table = _read_columns(path)
        for name, parts in statistics.items():
            parts.append(table[name].to_numpy().astype(np.float64))
        totals = inspection.splits.setdefault(split, {"hours": 0.0, "clips": 0, "tracks": 0})
        totals["hours"] += np.nansum(statistics["duration"][-1]) / 3600
        totals["clips"] += len(table)
        _count(inspection, split, table)
    for split in (split for splits in inspection.found_in.get("track_id", {}).values() for split in splits):
        inspection.splits[split]["tracks"] += 1
    inspection.durations, inspection.means, stds = (np.concatenate(parts or [[]]) for parts in statistics.values())
    if not len(inspection.durations):
        raise ValueError(f"{corpus} holds no clips; remove it and prepare it anew.")
    inspection.levels = 20 * np.log10(np.maximum(np.hypot(inspection.means, stds), RMS_FLOOR))
    return inspection


def _count(inspection: Inspection, split: str, table: pa.Table) -> None:
    for name in table.column_names:
        values = table[name].drop_null()
        if name in ID_COLUMNS:
            values = pc.list_flatten(values) if pa.types.is_list(values.type) else values
            found = inspection.found_in.setdefault(name, {})
            for value in pc.unique(values.drop_null().cast(pa.string())).to_pylist():
                if value != "" and split not in found.setdefault(value, []):
                    found[value].append(split)
        if name in SOURCE_COLUMNS.values():
            inspection.counts.setdefault(name, Counter()).update(map(str, values.to_pylist()))
        if name == "source":
            suffixes = [PurePosixPath(source).suffix.lower() for source in values.to_pylist()]
            inspection.counts.setdefault("suffix", Counter()).update(suffixes)
        if name not in CORPUS_COLUMNS:
            filled = inspection.metadata.get(name, ("", 0))[1] + len(table) - table[name].null_count
            inspection.metadata[name] = (str(table[name].type), filled)


def _read_columns(path: str) -> pa.Table:
    """All columns of a shard but the audio."""
    with open_shard(path) as shard:
        names = shard.schema_arrow.names
        missing = [name for name in NEEDED_COLUMNS if name not in names]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}, thus is no shard of a prepared corpus; run "
                "`music2vec prepare SOURCE OUT` and inspect OUT."
            )
        return shard.read([name for name in names if name != "audio"])


def _open_corpus(corpus: str | os.PathLike) -> Inspection:
    """The shards by split, what corpus.json says, and examples from rejects.csv; the shards are not read."""
    corpus = Path(corpus)
    summary = read_json(corpus / "corpus.json", "copy the corpus again") if (corpus / "corpus.json").is_file() else {}
    found = find_files(corpus)
    if found.kind != "parquet":
        raise ValueError(
            f"{corpus} is not a prepared corpus (it holds no shards but audio files or archives), and only those can "
            "be inspected; run `music2vec prepare SOURCE OUT` and inspect OUT."
        )
    files, rejects = {split: found.files[split] for split in choose_splits(corpus, found, "all")}, {}
    table: str | Path | None = corpus / "rejects.csv"
    if found.on_hub:
        root = re.match(r"hf://datasets/[^/]+/[^/]+/", next(iter(files.values()))[0])[0]
        files = {split: download_files(urls) for split, urls in files.items()}
        # Absent where somebody pushed the shards alone.
        path, table = download_if_there(root + "corpus.json"), download_if_there(root + "rejects.csv")
        summary = read_json(path, "push the corpus again") if path else {}
    if table and os.path.isfile(table):
        with open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rejects.setdefault((row["reason"] or "").split(":")[0], (row["path"], row["reason"]))
    return Inspection(corpus, summary, files, rejects)


def open_shard(path: str) -> pq.ParquetFile:
    """Open a shard; one that is no Parquet file is named in the ValueError."""
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); copy it again.") from error


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
    store = (summary.get("converted") or summary.get("settings", {}).get("store", "flac")).upper()
    rate = summary.get("sampling_rate", SAMPLING_RATE)
    facts.append(("rate of the clips", f"{rate} Hz, one channel, 16-bit {store}"))
    for label, name in {**SOURCE_COLUMNS, "suffixes of the sources": "suffix"}.items():
        counts = inspection.counts.get(name)
        facts.append((label, _clip_counts(counts) if counts else "not recorded in this corpus"))
    rejects = ", ".join(f"{count} {kind}" for kind, count in summary.get("rejects", {}).items())
    facts.append(("rejects", rejects or ("none" if summary else "not known, there is no corpus.json")))
    if summary.get("remainder_hours"):
        facts.append(("ends dropped", f"{summary['remainder_hours'] * 3600:.1f} s in all, shorter than a clip may be"))
    if summary.get("not_sampled"):
        facts.append(("not sampled", f"{summary['not_sampled']} tracks outside the random sample"))
    facts += [("split leaks", text) for text in _describe_leaks(inspection)]
    total = len(inspection.durations)
    texts = [f"{name} ({kind}, {100 * filled / total:.0f} %)" for name, (kind, filled) in inspection.metadata.items()]
    return [*facts, ("metadata (type, filled)", ", ".join(texts) or "no columns beside the corpus' own")]


def _amount(split: dict) -> str:
    tracks = f", {split['tracks']} tracks" if "tracks" in split else ""
    digits = 2 if split["hours"] >= 1 else 4  # 0.0001 h are a third of a second
    return f"{split['hours']:.{digits}f} h, {split['clips']} clips{tracks}"


def _clip_counts(counts: Counter, most: int = 8) -> str:
    parts = [f"{value or '(none)'} {count}" for value, count in counts.most_common(most)]
    rest = f" and {len(counts) - most} others" if len(counts) > most else ""
    return f"{', '.join(parts)}{rest} (clips)"


def _describe_leaks(inspection: Inspection, most: int = 5) -> list[str]:
    if len(inspection.splits) == 1:
        return ["none possible, there is one split"]
    texts = []
    for name, values in inspection.leaks.items():
        shown = [f"{value} ({', '.join(splits)})" for value, splits in list(values.items())[:most]]
        shown += ["..."] if len(values) > most else []
        texts.append(f"{name}: {len(values)} in several splits: {', '.join(shown)}" if values else f"{name}: none")
    absent = [name for name in ID_COLUMNS if name not in inspection.found_in]
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


# ---- the page ----

NUM_CLIPS = 10
# Ten incompressible excerpts of this length, their spectrograms and base64 stay below 5 MB.
EXCERPT_SECONDS = 7.5
SPECTROGRAM_FFT, SPECTROGRAM_HOP = 1024, 256


def write_page(inspection: Inspection, output: str | os.PathLike = "inspection.html", seed: int = 0) -> Path:
    """Write one HTML page that needs nothing beside it: facts, histograms, rejects, and ten clips to see and hear.

    Args:
        output: the page; by default not in the corpus, whose files are always the same bytes.
        seed (`int`): equal seeds show the same clips.

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
