"""One track to clips: decode, cut, judge, encode, as each process of `prepare_corpus` does; and a corpus to WAV."""

import hashlib
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError, AudioSource
from music2vec_hf.audio.reading import AudioReader, encode_clip, read_flac_crop, to_pcm
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.computing import torch_threads
from music2vec_hf.common.files import hold_lock, read_json, write_json, write_text, written_aside

# A clip below either level, its mean removed, is silence.
SILENCE_PEAK_DBFS = -60.0
SILENCE_RMS_DBFS = -70.0

# A clip of which so large a share lies so near full scale is clipped to nothing.
CLIPPED_LEVEL, CLIPPED_SHARE = 0.98, 0.5

# Rows are written in groups of about this size, which bounds the memory of everyone who reads or writes them.
GROUP_ROWS, GROUP_BYTES = 100, 32_000_000

# How the samples of a clip are stored.
STORES = ("flac", "wav")

CLIP_SCHEMA = pa.schema(
    {
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "clip_start": pa.float64(),
        "duration": pa.float64(),
        "clip_mean": pa.float64(),
        "clip_std": pa.float64(),
        "source_sampling_rate": pa.int64(),
        "source_channels": pa.int64(),
        "source_format": pa.string(),
    }
)


@dataclass(frozen=True)
class ClipJob:
    """A track to prepare.

    Args:
        clips (`Path`): the Parquet file that its clips are written to.
        clip_samples, min_samples (`int`): length of a clip; of the shortest.
        max_seconds (`float`): a process of its own gives it up after so long; 0 is never.
    """

    path: AudioSource
    source: str
    track_id: str
    clips: Path
    clip_samples: int
    min_samples: int
    store: str = "flac"
    max_seconds: float = 0.0


def end_with_parent() -> None:
    """Let this process end when the one that started it is killed; else it would go on writing beside the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_track(job: ClipJob) -> dict:
    """Decode, cut and encode one track; `job.clips` is there afterwards if it has clips.

    Returns:
        `dict`: `clips`, `seconds` (kept), `decoded_seconds`, `remainder_seconds` (cut off because too short),
        `rejects` (list of `(kind, reason)`), `rejected_file` (bool), and where there are clips `sha256` of all
        decoded samples.
    """
    job.clips.parent.mkdir(parents=True, exist_ok=True)
    try:
        # One thread: the number of threads may change the last bit of a sum, and each process has its own core.
        with torch_threads(1):
            result = _write_clips(job)
    except AudioError as error:
        # A file with NaN at its end is not to be trusted at its beginning: nothing of it is kept.
        result = rejection(error.kind, error.detail)
    if not result["clips"]:
        job.clips.unlink(missing_ok=True)
    return result


def rejection(kind: str, detail: str) -> dict:
    """What `prepare_track` returns for a track of which nothing is kept."""
    totals = dict.fromkeys(("clips", "seconds", "decoded_seconds", "remainder_seconds"), 0)
    return {**totals, "rejects": [(kind, f"{kind}: {detail}")], "rejected_file": True}


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables to one Parquet file, in groups of rows of about one size."""
    held: list[pa.Table] = []

    def flush() -> None:
        if held:
            table = pa.concat_tables(held).combine_chunks()
            writer.write_table(table, row_group_size=max(1, len(table)))
            held.clear()

    # The audio is compressed already, the rest is small: plain pages are read without a copy.
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= GROUP_ROWS or sum(table.nbytes for table in held) >= GROUP_BYTES:
                flush()
        flush()


def _write_clips(job: ClipJob) -> dict:
    rejects: list[tuple[str, str]] = []
    totals = {"clips": 0, "seconds": 0.0, "decoded_seconds": 0.0, "remainder_seconds": 0.0}
    digest = hashlib.sha256()

    def clips() -> Iterator[pa.Table]:
        for start, samples in _cut(reader, job.clip_samples):
            totals["decoded_seconds"] += len(samples) / SAMPLING_RATE
            pcm = to_pcm(samples)
            digest.update(pcm.tobytes())
            if len(samples) < min(job.min_samples, job.clip_samples):
                totals["remainder_seconds"] += len(samples) / SAMPLING_RATE
                continue
            row = _encode_clip(pcm, start / SAMPLING_RATE, job, rejects)
            if row is not None:
                totals["clips"] += 1
                totals["seconds"] += row["duration"]
                yield pa.Table.from_pylist([{**row, **about}], CLIP_SCHEMA)

    with AudioReader(job.path, name=job.source) as reader:
        about = {
            "source_sampling_rate": reader.sampling_rate,
            "source_channels": reader.num_channels,
            "source_format": reader.format,
        }
        write_tables(job.clips, CLIP_SCHEMA, clips())
    decoded = totals["decoded_seconds"]
    if decoded == 0:
        raise AudioError(job.source, "empty", "it holds no samples.")
    if decoded * SAMPLING_RATE < job.min_samples:
        least = job.min_samples / SAMPLING_RATE
        raise AudioError(job.source, "too short", f"it lasts {decoded:.2f} s, at least {least:g} s are needed.")
    if reader.cancellation:
        raise AudioError(job.source, "cancelling", reader.cancellation)
    if reader.shortfall:
        rejects.append(("truncated", f"truncated: {reader.shortfall}"))
    result = {**totals, "rejects": rejects, "rejected_file": totals["clips"] == 0}
    return {**result, "sha256": digest.hexdigest()} if totals["clips"] else result


def _cut(reader: AudioReader, clip_samples: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(start_sample, samples)` for one clip after the other; the last may be shorter."""
    held, start = np.zeros(0, np.float32), 0
    for block in reader.blocks():
        held = np.concatenate([held, block])
        while len(held) >= clip_samples:
            yield start, held[:clip_samples]
            held, start = held[clip_samples:], start + clip_samples
    if len(held):
        yield start, held


def _encode_clip(pcm: np.ndarray, start: float, job: ClipJob, rejects: list) -> dict | None:
    """The row of one clip, or None and an entry in `rejects` if it is silence or clipped to nothing."""
    # Statistics of what is stored, not of what was decoded: FLAC gives back exactly pcm / 32768.
    stored = pcm.astype(np.float64) / 32768.0
    mean, std = float(stored.mean()), float(stored.std())
    peak_dbfs, rms_dbfs = _dbfs(float(np.abs(stored - mean).max())), _dbfs(std)
    if peak_dbfs < SILENCE_PEAK_DBFS or rms_dbfs < SILENCE_RMS_DBFS:
        level = f"peak {peak_dbfs:.1f} dBFS, RMS {rms_dbfs:.1f} dBFS"
        level = "all samples are equal" if pcm.min() == pcm.max() else level
        rejects.append(("silence", f"silence: the clip at {start:g} s ({level})."))
        return None
    clipped = float(np.mean(np.abs(stored) >= CLIPPED_LEVEL))
    if clipped > CLIPPED_SHARE:
        rejects.append(("clipped", f"clipped: {clipped:.0%} of the clip at {start:g} s lie at full scale."))
        return None
    return {
        "audio": {"bytes": encode_clip(pcm, job.store), "path": f"{job.track_id}_{start:.3f}.{job.store}"},
        "clip_start": start,
        "duration": len(pcm) / SAMPLING_RATE,
        "clip_mean": mean,
        "clip_std": std,
    }


def _dbfs(level: float) -> float:
    return 20.0 * np.log10(level) if level > 0 else -np.inf


# ---- a corpus to WAV ----

logger = logging.getLogger(__name__)


def convert_to_wav(corpus: str | os.PathLike, progress: bool = True) -> dict:
    """Store the clips of a prepared corpus as 16-bit WAV, shard by shard: 115 GB for 1,000 hours.

    The samples stay the same bit for bit. Each shard is written aside and replaced when it is whole, so a run that was
    killed leaves a corpus of both kinds, which trains as well, and goes on when it is started again.

    Returns:
        `dict`: `clips` (all), `bytes` of the shards, and `failed`, the names of clips that cannot be decoded; these
        stay as they are.

    Raises:
        ValueError: if there is no prepared corpus, another run is converting it, or the disk is too small.
    """
    # Here, so that a process that decodes starts without `datasets`.
    from music2vec_hf.audio.listing import find_files

    corpus = Path(corpus)
    if not (corpus / "corpus.json").exists():
        raise ValueError(f"{corpus} is not a corpus that `music2vec prepare` made; make one of your audio first.")
    shards = [Path(path) for paths in find_files(corpus).files.values() for path in paths]
    with hold_lock(corpus / ".convert.lock", f"Another run is converting {corpus}; wait until it has ended."):
        todo = [shard for shard in shards if any(not path.endswith(".wav") for path in _clip_names(shard))]
        needed, free = sum(map(_growth, todo)), shutil.disk_usage(corpus).free
        if needed > free:
            raise ValueError(f"{corpus} needs {needed / 1e9:.1f} GB, but its disk has only {free / 1e9:.1f} GB left.")
        failed: list[str] = []
        for shard in tqdm(todo, "storing clips as wav", unit="shard", disable=not progress):
            with written_aside(shard) as aside, pq.ParquetFile(shard) as file:
                write_tables(aside, file.schema_arrow, _converted(file, failed))
        summary = read_json(corpus / "corpus.json", "prepare the corpus anew")
        if todo:
            write_json(corpus / "corpus.json", {**summary, "converted": "wav"})
            _correct_card(corpus / "README.md")
    return {"clips": summary["clips"], "bytes": sum(shard.stat().st_size for shard in shards), "failed": failed}


def _correct_card(card: Path) -> None:
    """Say WAV for FLAC, and change the line by which `datasets` tells what it has in its cache from this."""
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace("16-bit FLAC", "16-bit WAV")
        text = text.replace("a FLAC file", "a WAV file")
        write_text(card, text.replace("description: content ", "description: WAV of content "))


def _clip_names(shard: Path) -> list[str]:
    with pq.ParquetFile(shard) as file:
        return [audio["path"] for audio in file.read(columns=["audio.path"])["audio"].to_pylist()]


def _growth(shard: Path) -> int:
    """Bytes by which a shard grows, with room for its old state beside it, which goes when the new one is whole."""
    with pq.ParquetFile(shard) as file:
        seconds = sum(file.read(columns=["duration"])["duration"].to_pylist())
    return max(0, round(2 * SAMPLING_RATE * seconds) - shard.stat().st_size) + 1_000_000


def _converted(file: pq.ParquetFile, failed: list[str]) -> Iterator[pa.Table]:
    """The rows of a shard with their clips as WAV; `failed` gets the names of those that cannot be decoded."""
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rows = []
        for audio, seconds in zip(table["audio"].to_pylist(), table["duration"].to_pylist(), strict=True):
            try:
                if audio["bytes"][:4] == b"fLaC":
                    samples = read_flac_crop(audio["bytes"], 0, round(seconds * SAMPLING_RATE))
                    name = os.path.splitext(audio["path"])[0] + ".wav"
                    audio = {"bytes": encode_clip(to_pcm(samples), "wav"), "path": name}
            except (AudioError, ValueError) as error:
                logger.warning("%s: %s It stays as it is.", audio["path"], error)
                failed.append(audio["path"])
            rows.append(audio)
        index = table.schema.get_field_index("audio")
        yield table.set_column(index, table.schema.field("audio"), pa.array(rows, table.schema.field("audio").type))
