"""One track to clips: decode, cut, judge, encode. This is what each process of `prepare_corpus` runs.

The result is staged on disk: `<stem>.parquet` with the clips, if any, then `<stem>.json` with what happened. The
second file is written last, so that its presence means that the track is done.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from music2vec_hf.audio.decoding import AudioError, AudioSource
from music2vec_hf.audio.reading import AudioReader, encode_flac_pcm, to_pcm
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.threads import torch_threads

# A clip below either level, its mean removed, is silence.
SILENCE_PEAK_DBFS = -60.0
SILENCE_RMS_DBFS = -70.0

# A clip of which so large a share lies so near full scale is clipped to nothing.
CLIPPED_LEVEL, CLIPPED_SHARE = 0.98, 0.5

# Rows are written in groups of about this size, which bounds the memory of everyone who reads or writes them.
GROUP_ROWS, GROUP_BYTES = 100, 32_000_000

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
    """A track to stage: what to open, what to call it, where to put the result, how to cut.

    A process of its own gives it up after `max_seconds`; 0 is never.
    """

    path: AudioSource
    source: str
    track_id: str
    stem: str
    clip_samples: int
    min_samples: int
    num_bytes: int = 0
    max_seconds: float = 0.0


def stage_track(job: ClipJob) -> dict:
    """Decode, cut and encode one track, unless it is staged already.

    Returns:
        `dict`: `clips`, `seconds` (kept), `decoded_seconds`, `remainder_seconds` (cut off because too short),
        `rejects` (list of `[kind, reason]`), `rejected_file` (bool); where there are clips, `sha256` of all decoded
        samples and `staged_bytes`, the size of the file of clips.
    """
    staged = read_staged(job.stem)
    if staged is not None:
        return staged
    # One thread: the number of threads may change the last bit of a sum, and each process has its own core.
    with torch_threads(1):
        result = _write_clips(job)
    write_atomically(Path(job.stem + ".json"), json.dumps(result))
    return result


def rejection(kind: str, detail: str) -> dict:
    """What `stage_track` returns for a track of which nothing is kept."""
    totals = dict.fromkeys(("clips", "seconds", "decoded_seconds", "remainder_seconds"), 0)
    return {**totals, "rejects": [(kind, f"{kind}: {detail}")], "rejected_file": True}


def end_with_parent() -> None:
    """Let this process end when the one that started it is killed; else it would go on writing beside the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_staged(stem: str) -> dict | None:
    """What an earlier run staged for a track, or None."""
    path = Path(stem + ".json")
    return json.loads(path.read_text()) if path.exists() else None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either absent or whole."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _write_clips(job: ClipJob) -> dict:
    rejects: list[tuple[str, str]] = []
    totals = {"clips": 0, "seconds": 0.0, "decoded_seconds": 0.0, "remainder_seconds": 0.0}
    aside, samples_digest = Path(f"{job.stem}.{os.getpid()}.tmp"), hashlib.sha256()
    try:
        with AudioReader(job.path, name=job.source) as reader, _clip_writer(aside) as writer:
            about = {
                "source_sampling_rate": reader.sampling_rate,
                "source_channels": reader.num_channels,
                "source_format": reader.format,
            }
            rows: list[dict] = []
            for start, samples in _cut(reader, job.clip_samples):
                totals["decoded_seconds"] += len(samples) / SAMPLING_RATE
                samples_digest.update(to_pcm(samples).tobytes())
                if len(samples) < min(job.min_samples, job.clip_samples):
                    totals["remainder_seconds"] += len(samples) / SAMPLING_RATE
                    continue
                row = _encode_clip(samples, start, job.track_id, rejects)
                if row is not None:
                    totals["clips"] += 1
                    totals["seconds"] += row["duration"]
                    rows.append({**row, **about})
                if len(rows) >= GROUP_ROWS or sum(len(row["audio"]["bytes"]) for row in rows) >= GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, CLIP_SCHEMA))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, CLIP_SCHEMA))
        decoded = totals["decoded_seconds"]
        if decoded == 0:
            raise AudioError(job.source, "empty", "it holds no samples.")
        if decoded * SAMPLING_RATE < job.min_samples:
            least = job.min_samples / SAMPLING_RATE
            raise AudioError(job.source, "too short", f"it lasts {decoded:.2f} s, at least {least:g} s are needed.")
        if reader.cancellation:
            raise AudioError(job.source, "cancelling", reader.cancellation)
    except AudioError as error:
        aside.unlink(missing_ok=True)
        # A file with NaN at its end is not to be trusted at its beginning: nothing of it is kept.
        return rejection(error.kind, error.detail)
    if reader.shortfall:
        rejects.append(("truncated", f"truncated: {reader.shortfall}"))
    result = {**totals, "rejects": rejects, "rejected_file": totals["clips"] == 0}
    if not totals["clips"]:
        aside.unlink()
        return result
    staged_bytes = aside.stat().st_size
    os.replace(aside, job.stem + ".parquet")
    return {**result, "sha256": samples_digest.hexdigest(), "staged_bytes": staged_bytes}


def _clip_writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, CLIP_SCHEMA, compression="NONE", use_dictionary=False)


def _cut(reader: AudioReader, clip_samples: int):
    """Yield `(start_sample, samples)` for one clip after the other; the last may be shorter."""
    held, start = np.zeros(0, np.float32), 0
    for block in reader.blocks():
        held = np.concatenate([held, block])
        while len(held) >= clip_samples:
            yield start, held[:clip_samples]
            held, start = held[clip_samples:], start + clip_samples
    if len(held):
        yield start, held


def _encode_clip(samples: np.ndarray, start: int, track_id: str, rejects: list) -> dict | None:
    """The row of one clip, or None and an entry in `rejects` if it is silence or clipped to nothing."""
    pcm = to_pcm(samples)
    # Statistics of what is stored, not of what was decoded: FLAC gives back exactly pcm / 32768.
    stored = pcm.astype(np.float64) / 32768.0
    mean, std = float(stored.mean()), float(stored.std())
    peak = float(np.abs(stored - mean).max())
    peak_dbfs, rms_dbfs = _dbfs(peak), _dbfs(std)
    start_seconds = start / SAMPLING_RATE
    if peak_dbfs < SILENCE_PEAK_DBFS or rms_dbfs < SILENCE_RMS_DBFS:
        level = f"peak {peak_dbfs:.1f} dBFS, RMS {rms_dbfs:.1f} dBFS"
        level = "all samples are equal" if pcm.min() == pcm.max() else level
        rejects.append(("silence", f"silence: the clip at {start_seconds:g} s ({level})."))
        return None
    clipped = float(np.mean(np.abs(stored) >= CLIPPED_LEVEL))
    if clipped > CLIPPED_SHARE:
        rejects.append(("clipped", f"clipped: {clipped:.0%} of the clip at {start_seconds:g} s lie at full scale."))
        return None
    return {
        "audio": {"bytes": encode_flac_pcm(pcm), "path": f"{track_id}_{start_seconds:.3f}.flac"},
        "clip_start": start_seconds,
        "duration": len(pcm) / SAMPLING_RATE,
        "clip_mean": mean,
        "clip_std": std,
    }


def _dbfs(level: float) -> float:
    return 20.0 * np.log10(level) if level > 0 else -np.inf
