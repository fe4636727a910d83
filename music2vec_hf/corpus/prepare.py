"""A folder of audio, or a manifest, to a corpus of FLAC clips in Parquet shards: row 2 of the data's way.

Tracks are staged one by one, by as many processes as one likes, and joined to shards in the order of the listing. What
is staged survives a kill, and nothing depends on time or on the number of processes: the corpus is always the same
bytes.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value
from tqdm import tqdm

from music2vec_hf.audio.packed import list_source
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.audio.sources import Listing, Track
from music2vec_hf.corpus.claiming import CLAIM_LOCK, STAGING, check_same, claim_out, hold_lock, lock_out, read_finished
from music2vec_hf.corpus.clips import ClipJob, write_atomically
from music2vec_hf.corpus.duplicates import drop_duplicates
from music2vec_hf.corpus.parts import (
    begin_parts,
    check_parts_finished,
    check_parts_whole,
    check_shard,
    forget_damaged,
    part_file,
    read_begun,
)
from music2vec_hf.corpus.publishing import publish, refuse_empty
from music2vec_hf.corpus.ray_engine import staged_by_ray
from music2vec_hf.corpus.sampling import sample_tracks
from music2vec_hf.corpus.shards import ShardWriter
from music2vec_hf.corpus.staging import staged_in_order

FORMAT_VERSION = 3
# A file may take `file_timeout` seconds, and one more for so many of its bytes.
BYTES_A_SECOND = 50_000
ENGINES = {"processes": staged_in_order, "ray": staged_by_ray}


def prepare_corpus(
    source: str | os.PathLike,
    out: str | os.PathLike,
    clip_seconds: float = 30.0,
    min_seconds: float = 2.0,
    num_proc: int = 1,
    shard_megabytes: int = 500,
    progress: bool = True,
    hours: float | None = None,
    seed: int | None = None,
    shard: tuple[int, int] | None = None,
    engine: str = "processes",
    file_timeout: float = 600.0,
) -> dict:
    """Turn audio files into a corpus that pretraining reads and that loads with plain `datasets`.

    `out` gets `data/<split>-00000-of-0000n.parquet`, `rejects.csv` (`path,reason`), `README.md` (data set card) and,
    last, `corpus.json`: a corpus without it is incomplete. A run that was killed goes on where it stood when it is
    started again, and ends with the same bytes; so does any `num_proc`, and so do parts that are merged. With
    `num_proc` above 1 a script must call this below `if __name__ == "__main__":`.

    Args:
        source: a folder (searched recursively), a CSV/TSV/JSONL manifest with a column `file_name`, `path` or `file`,
            a folder with one such manifest at its top; or a data set: a folder or glob of Parquet files or of .tar
            archives, or the id of one on the Hub, `user/name` or `user/name:config`. Other columns of a manifest or
            data set come along; `split` decides the shards, `track_id` replaces ours.
        out: an absent or empty folder, or a corpus begun with the same settings.
        clip_seconds (`float`): length of a clip. The remainder of a track is a clip if it is long enough.
        min_seconds (`float`): shortest clip, and shortest track.
        num_proc (`int`): processes.
        shard_megabytes (`int`): a shard ends after the track with which it reaches this size.
        progress (`bool`): show a bar, in hours of audio.
        hours (`float`, *optional*): take so many hours of tracks at random instead of all; see [`sample_tracks`].
        seed (`int`, *optional*): of that choice; 0 by default.
        shard (`tuple[int, int]`, *optional*): `(i, n)`: stage only the i-th of n parts, i from 0 on, and join nothing;
            [`merge_corpus`] does when all parts are there. Parts may run at the same time, on several machines.
        engine (`str`): what stages the tracks: `"processes"` of this machine, or `"ray"`; see [`staged_by_ray`].
        file_timeout (`float`): seconds, and one more for each 50 kB, after which a file is given up and rejected as
            "too slow"; 0 is never. Only where a process of its own decodes it, thus not with a `num_proc` of 1.

    Returns:
        `dict`: the content of `corpus.json`: hours, clips, tracks, splits, rejects, settings, versions. For a part
        `part` and `parts` (i and n), `tracks`, `clips`, `hours`, `rejected_files`, `settings`.

    Raises:
        ValueError: if a setting makes no sense, nothing is found, no file can be used, `out` holds something else, or
            another run is writing into it.
    """
    _check_settings(clip_seconds, min_seconds, num_proc, shard_megabytes, hours, seed)
    if not (file_timeout >= 0 and math.isfinite(file_timeout)):
        raise ValueError(f"`file_timeout` is {file_timeout}; give a number of seconds, or 0 for no limit.")
    if engine not in ENGINES:
        raise ValueError(f"There is no engine '{engine}'; use one of {', '.join(ENGINES)}.")
    stage_all = partial(_stage_limited, ENGINES[engine], num_proc, file_timeout)
    if shard is not None:
        check_shard(shard)
    out = Path(out)
    settings = {
        "clip_seconds": float(clip_seconds),
        "min_seconds": float(min_seconds),
        "shard_megabytes": float(shard_megabytes),
        "hours": None if hours is None else float(hours),
        "seed": None if hours is None else seed or 0,
    }
    listing, plan = _list(source, settings, progress)
    finished = None if (out / STAGING).exists() else read_finished(out, plan)
    if finished is not None:
        return finished
    with lock_out(out, shared=shard is not None):
        if shard is not None:
            return _prepare_part(source, out, listing, plan, shard, stage_all, progress)
        return claim_out(out, plan) or _join(source, out, listing, plan, stage_all, progress)


def merge_corpus(out: str | os.PathLike, progress: bool = True) -> dict:
    """Join the parts that `prepare_corpus(..., shard=(i, n))` staged in `out` to the corpus of a single run.

    It checks first that all parts are there, whole, of the same settings and of what the source holds now, which must
    still be where it was. A merge that was killed goes on when it is started again.

    Args:
        out: the folder of the corpus.
        progress (`bool`): show a bar, in hours of audio.

    Returns:
        `dict`: the content of `corpus.json`.

    Raises:
        ValueError: if a part is missing, damaged or of another kind, nothing can be used, or another run is writing
            into `out`.
    """
    out = Path(out)
    if not out.is_dir():
        raise ValueError(f"{out} is not a folder; give the one that `music2vec prepare SOURCE OUT --shard i/n` wrote.")
    with lock_out(out):
        finished = read_finished(out, {})
        if finished is not None:
            shutil.rmtree(out / STAGING, ignore_errors=True)
            return finished
        before, parts = read_begun(out)
        check_parts_finished(out, before, parts["parts"])
        listing, plan = _list(parts["source"], before, progress)
        check_same(out, "was begun with", before, plan)
        check_parts_whole(out, [job.stem for job in _jobs(out, listing, plan)], parts["parts"])
        return _join(parts["source"], out, listing, plan, partial(staged_in_order, num_proc=1), progress)


def _check_settings(clip_seconds, min_seconds, num_proc, shard_megabytes, hours, seed) -> None:
    if clip_seconds <= 0 or not 0 < min_seconds <= clip_seconds or num_proc < 1 or shard_megabytes <= 0:
        raise ValueError(
            "`prepare_corpus` needs 0 < min_seconds <= clip_seconds, num_proc >= 1 and shard_megabytes > 0, got "
            f"min_seconds {min_seconds}, clip_seconds {clip_seconds}, num_proc {num_proc}, "
            f"shard_megabytes {shard_megabytes}."
        )
    if hours is not None and not (hours > 0 and math.isfinite(hours)):
        raise ValueError(f"`hours` is {hours}; give a number above 0, or leave it out to take all tracks.")
    if hours is None and seed is not None:
        raise ValueError(f"`seed` is {seed} but `hours` is not given; it chooses the tracks of a sample of `hours`.")


def _list(source: str | os.PathLike, settings: dict, progress: bool) -> tuple[Listing, dict]:
    """What is to be prepared, and the plan: the settings that decide the bytes, and what they are applied to."""
    listing = list_source(source)
    if settings["hours"] is not None:
        listing = sample_tracks(listing, settings["hours"], settings["seed"], progress)
    plan = {
        "format_version": FORMAT_VERSION,
        **{name: settings[name] for name in ("clip_seconds", "min_seconds", "shard_megabytes", "hours", "seed")},
        "files": len(listing.tracks) + len(listing.rejects),
        "source_digest": listing.digest(),
    }
    return listing, plan


def corpus_features(listing: Listing) -> Features:
    """The columns of a corpus; `Audio(decode=False)` so that loading needs no decoder of `datasets`."""
    features = Features(
        {
            "audio": Audio(sampling_rate=SAMPLING_RATE, decode=False),
            "track_id": Value("string"),
            "source": Value("string"),
            "clip_start": Value("float64"),
            "duration": Value("float64"),
            "clip_mean": Value("float64"),
            "clip_std": Value("float64"),
            "source_sampling_rate": Value("int64"),
            "source_channels": Value("int64"),
            "source_format": Value("string"),
        }
    )
    return Features({**features, **Features.from_arrow_schema(pa.schema(listing.metadata_types))})


# ---- tracks to shards ----


BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}{postfix}]"


def _jobs(out: Path, listing: Listing, plan: dict) -> list[ClipJob]:
    return [
        ClipJob(
            path=track.path,
            source=track.source,
            track_id=track.track_id,
            stem=os.fspath(out / STAGING / "tracks" / f"{index // 1000:05d}" / f"{index:08d}"),
            clip_samples=round(plan["clip_seconds"] * SAMPLING_RATE),
            min_samples=round(plan["min_seconds"] * SAMPLING_RATE),
            num_bytes=track.num_bytes,
        )
        for index, track in enumerate(listing.tracks)
    ]


def _stage_limited(stage: Callable, num_proc: int, file_timeout: float, jobs: list[ClipJob], first: int):
    """Stage all jobs by an engine, each within the seconds that it is given."""
    if file_timeout:
        jobs = [replace(job, max_seconds=file_timeout + job.num_bytes / BYTES_A_SECOND) for job in jobs]
    return stage(jobs, first, num_proc)


def _prepare_part(
    source: str | os.PathLike,
    out: Path,
    listing: Listing,
    plan: dict,
    shard: tuple[int, int],
    stage_all: Callable,
    progress: bool,
) -> dict:
    """Stage every n-th track. Parts may begin at the same time: they claim `out` one after the other."""
    index, count = shard
    with hold_lock(out / CLAIM_LOCK, f"{out} is being claimed.", wait=True):
        finished = claim_out(out, plan)
        if finished is not None:
            return finished
        begin_parts(out, source, count)
    busy = f"Another process prepares part {index}/{count} of {out}; wait until it has ended, or take another part."
    with hold_lock(part_file(out, index).with_suffix(".lock"), busy):
        jobs, share = _jobs(out, listing, plan), list(range(index, len(listing.tracks), count))
        forget_damaged(out, [job.stem for job in jobs], share)
        staged = stage_all([jobs[track] for track in share], 0)
        results = list(_with_bar([listing.tracks[track] for track in share], staged, progress))
        record = {
            "part": index,
            "parts": count,
            "tracks": len(results),
            "clips": sum(result["clips"] for result in results),
            "hours": round(sum(result["seconds"] for result in results) / 3600, 6),
            "rejected_files": sum(result["rejected_file"] for result in results),
            "settings": plan,
        }
        write_atomically(part_file(out, index), json.dumps(record))
    return record


def _join(
    source: str | os.PathLike, out: Path, listing: Listing, plan: dict, stage_all: Callable, progress: bool
) -> dict:
    """Stage what is not staged yet, join all to shards, and publish the corpus."""
    jobs = _jobs(out, listing, plan)
    shards = ShardWriter(out / STAGING / "shards", corpus_features(listing), plan["shard_megabytes"] * 1e6)
    staged = _with_bar(listing.tracks, stage_all(jobs, shards.next_track), progress)
    results = _fill_shards(shards, listing, jobs, drop_duplicates(listing.tracks, staged))
    if not any(result["clips"] for result in results):
        shutil.rmtree(out / STAGING)
        refuse_empty(source, listing, results)
    return publish(out, plan, listing, results, shards.closed)


def _fill_shards(shards: ShardWriter, listing: Listing, jobs: list[ClipJob], results: Iterable[dict]) -> list[dict]:
    """Join the clips of all tracks to shards, in order, after the shards that are closed. Returns all results."""
    first, kept = shards.next_track, []
    for index, result in enumerate(results):
        track = listing.tracks[index]
        kept.append(result)
        if index >= first:
            shards.start_track(index, track.split)
            if result["clips"]:
                for table in _read_clips(jobs[index].stem, track, shards.schema):
                    shards.write(table)
        shards.end_track(index, [job.stem for job in jobs[shards.next_track : index + 1]])
    shards.close(len(jobs), [job.stem for job in jobs[shards.next_track :]])
    return kept


def _with_bar(tracks: list[Track], results: Iterable[dict], progress: bool) -> Iterator[dict]:
    """Pass the results on, and show how many hours of audio they are."""
    rejects, done_bytes, all_bytes = 0, 0, sum(track.num_bytes for track in tracks)
    with tqdm(disable=not progress, total=0.0, bar_format=BAR) as bar:
        for number, (track, result) in enumerate(zip(tracks, results, strict=True), start=1):
            rejects += len(result["rejects"])
            done_bytes += track.num_bytes
            bar.set_postfix_str(f"{number}/{len(tracks)} files, {rejects} rejects", refresh=False)
            hours = result["decoded_seconds"] / 3600
            # How many hours the rest holds is known only from its bytes.
            bar.total = (bar.n + hours) * all_bytes / done_bytes if done_bytes else 0.0
            bar.update(hours)
            yield result


def _read_clips(stem: str, track: Track, schema: pa.Schema) -> Iterator[pa.Table]:
    """The staged clips of a track with the columns of the corpus, a group at a time."""
    with pq.ParquetFile(stem + ".parquet") as file:
        for group in range(file.num_row_groups):
            clips = file.read_row_group(group)
            row = {"track_id": track.track_id, "source": track.source, **track.metadata}
            columns = [
                clips[name].combine_chunks()
                if name in clips.column_names
                else pa.array([row.get(name)] * len(clips), schema.field(name).type)
                for name in schema.names
            ]
            yield pa.Table.from_arrays(columns, schema=schema)
