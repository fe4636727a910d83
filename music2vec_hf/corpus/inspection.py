"""Looking at a corpus before training on it: what it holds, counted from the columns beside the audio."""

import csv
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.audio.containers import CORPUS_COLUMNS
from music2vec_hf.audio.listing import choose_splits, find_files
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.hub import download_files, download_if_there
from music2vec_hf.corpus.loading import STATISTICS

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


@dataclass(frozen=True)
class Inspection:
    """What the columns of a corpus say.

    Args:
        corpus (`Path`): its folder, or its Hub id.
        summary (`dict`): the content of corpus.json; empty if there is none.
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
        with open_shard(path) as shard:
            missing = [name for name in NEEDED_COLUMNS if name not in shard.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}, thus is no shard of a prepared corpus; run "
                    "`music2vec prepare SOURCE OUT` and inspect OUT."
                )
            names = [name for name in shard.schema_arrow.names if name != "audio"]
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
        if name in SOURCE_COLUMNS.values():
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
        corpus: a folder made by `prepare_corpus`, the Hub id of one that was pushed, or a folder or glob of its
            shards alone.
        progress (`bool`): show a bar over the shards.

    Raises:
        ValueError: if it is no finished corpus of ours, or a file of it is damaged or holds no clips.
    """
    files, summary, rejects = _open_corpus(corpus)
    columns = _Columns()
    shards = [(split, path) for split, paths in files.items() for path in paths]
    for split, path in tqdm(shards, desc="reading columns", unit="shard", disable=not progress):
        columns.add_shard(split, path)
    durations, means, stds = (np.concatenate(columns.statistics[name] or [[]]) for name in STATISTICS)
    if not len(durations):
        raise ValueError(f"{corpus} holds no clips; remove it and prepare it anew.")
    return Inspection(
        corpus=Path(corpus),
        summary=summary,
        files=files,
        splits=columns.splits,
        durations=durations,
        means=means,
        levels=20 * np.log10(np.maximum(np.hypot(means, stds), RMS_FLOOR)),
        counts=columns.counts,
        metadata=columns.metadata,
        leaks=columns.leaks(),
        reject_examples=_first_rejects(rejects),
    )


def _open_corpus(corpus: str | os.PathLike) -> tuple[dict[str, list[str]], dict, Path]:
    """The shards by split, the content of corpus.json, and where rejects.csv would be."""
    beside = Path(corpus)
    summary = _read_summary(beside / "corpus.json")
    found = find_files(corpus)
    if found.kind != "parquet":
        raise ValueError(
            f"{corpus} is not a prepared corpus (it holds no shards but audio files or archives), and only those can "
            "be inspected; run `music2vec prepare SOURCE OUT` and inspect OUT."
        )
    files = {split: found.files[split] for split in choose_splits(corpus, found, "all")}
    if found.on_hub:
        root = re.match(r"hf://datasets/[^/]+/[^/]+/", next(iter(files.values()))[0])[0]
        files = {split: download_files(urls) for split, urls in files.items()}
        # Absent where somebody pushed the shards alone.
        path = download_if_there(root + "corpus.json")
        summary = _read_summary(Path(path)) if path else {}
        beside = Path(download_if_there(root + "rejects.csv") or "").parent
    return files, summary, beside / "rejects.csv"


def _read_summary(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the corpus again.") from error


def open_shard(path: str) -> pq.ParquetFile:
    """Open a shard; one that is no Parquet file is named in the ValueError."""
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


__all__ = ["Inspection", "describe_corpus", "find_warnings", "format_summary", "inspect_corpus", "open_shard"]
