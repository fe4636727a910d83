"""A folder of audio, or a manifest, to a corpus of FLAC clips in Parquet shards: row 2 of the data's way.

Tracks are staged one by one, by as many processes as one likes, and joined to shards in the order of the listing. What
is staged survives a kill, and nothing depends on time or on the number of processes: the corpus is always the same
bytes.
"""

import csv
import io
import json
import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Features, Value
from tqdm import tqdm

from .audio import SAMPLING_RATE
from .card import write_card
from .clips import ClipJob, end_with_parent, read_staged, stage_track, write_atomically
from .shards import ShardWriter
from .sources import Listing, Track, list_tracks

FORMAT_VERSION = 1
STAGING = ".staging"


def prepare_corpus(
    source: str | os.PathLike,
    out: str | os.PathLike,
    clip_seconds: float = 30.0,
    min_seconds: float = 2.0,
    num_proc: int = 1,
    shard_megabytes: int = 500,
    progress: bool = True,
) -> dict:
    """Turn audio files into a corpus that pretraining reads and that loads with plain `datasets`.

    `out` gets `data/<split>-00000-of-0000n.parquet`, `rejects.csv` (`path,reason`), `README.md` (data set card) and,
    last, `corpus.json`: a corpus without it is incomplete. A run that was killed goes on where it stood when it is
    started again, and ends with the same bytes; so does any `num_proc`. With `num_proc` above 1 a script must call
    this below `if __name__ == "__main__":`.

    Args:
        source: a folder (searched recursively), a CSV/TSV/JSONL manifest with a column `file_name`, `path` or `file`,
            or a folder with one such manifest at its top. A manifest's other columns come along; its `split` decides
            the shards, its `track_id` replaces ours.
        out: an absent or empty folder, or a corpus begun with the same settings.
        clip_seconds (`float`): length of a clip. The remainder of a track is a clip if it is long enough.
        min_seconds (`float`): shortest clip, and shortest track.
        num_proc (`int`): processes.
        shard_megabytes (`int`): a shard ends after the track with which it reaches this size.
        progress (`bool`): show a bar, in hours of audio.

    Returns:
        `dict`: the content of `corpus.json`: hours, clips, tracks, splits, rejects, settings, versions.

    Raises:
        ValueError: if a setting makes no sense, nothing is found, no file can be used, or `out` holds something else.
    """
    if clip_seconds <= 0 or not 0 < min_seconds <= clip_seconds or num_proc < 1 or shard_megabytes <= 0:
        raise ValueError(
            "`prepare_corpus` needs 0 < min_seconds <= clip_seconds, num_proc >= 1 and shard_megabytes > 0, got "
            f"min_seconds {min_seconds}, clip_seconds {clip_seconds}, num_proc {num_proc}, "
            f"shard_megabytes {shard_megabytes}."
        )
    out, listing = Path(out), list_tracks(source)
    plan = {
        "format_version": FORMAT_VERSION,
        "clip_seconds": float(clip_seconds),
        "min_seconds": float(min_seconds),
        "shard_megabytes": float(shard_megabytes),
        "files": len(listing.tracks) + len(listing.rejects),
        "source_digest": listing.digest(),
    }
    finished = _claim(out, plan)
    if finished is not None:
        return finished
    jobs = [_job(out, index, track, plan) for index, track in enumerate(listing.tracks)]
    shards = ShardWriter(out / STAGING / "shards", corpus_features(listing), plan["shard_megabytes"] * 1e6)
    with tqdm(disable=not progress, total=0.0, bar_format=BAR) as bar:
        _fill_shards(shards, listing, jobs, num_proc, bar)
    results = [read_staged(job.stem) for job in jobs]
    if not any(result["clips"] for result in results):
        shutil.rmtree(out / STAGING)
        _refuse_empty(source, listing, results)
    return _publish(out, plan, listing, results, shards.closed)


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
        }
    )
    return Features({**features, **Features.from_arrow_schema(pa.schema(listing.metadata_types))})


# ---- OUT: ours or not ----


def _claim(out: Path, plan: dict) -> dict | None:
    """Make `out` ours. Returns the summary if the corpus is there already; raises if something else is."""
    corpus_json, plan_json = out / "corpus.json", out / STAGING / "plan.json"
    if corpus_json.exists():
        summary = json.loads(corpus_json.read_text(encoding="utf-8"))
        _check_same(out, "was made with", summary.get("settings", {}), plan)
        shutil.rmtree(out / STAGING, ignore_errors=True)
        return summary
    if plan_json.exists():
        _check_same(out, "was begun with", json.loads(plan_json.read_text(encoding="utf-8")), plan)
        return None
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the corpus.")
    others = sorted(path.name for path in out.iterdir() if path.name != STAGING) if out.exists() else []
    if others:
        raise ValueError(f"{out} holds something else than a corpus ({others[0]}); give an absent or empty folder.")
    # Without a plan, what is staged is of unknown settings.
    shutil.rmtree(plan_json.parent, ignore_errors=True)
    plan_json.parent.mkdir(parents=True)
    write_atomically(plan_json, json.dumps(plan))
    return None


def _check_same(out: Path, verb: str, before: dict, now: dict) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} {verb} {key} {before.get(key)}, now it is {value}; take the same, another folder, "
                "or remove this one."
            )


# ---- tracks to shards ----


BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}{postfix}]"


def _job(out: Path, index: int, track: Track, plan: dict) -> ClipJob:
    return ClipJob(
        path=os.fspath(track.path),
        source=track.source,
        track_id=track.track_id,
        stem=os.fspath(out / STAGING / "tracks" / f"{index // 1000:05d}" / f"{index:08d}"),
        clip_samples=round(plan["clip_seconds"] * SAMPLING_RATE),
        min_samples=round(plan["min_seconds"] * SAMPLING_RATE),
    )


def _fill_shards(shards: ShardWriter, listing: Listing, jobs: list[ClipJob], num_proc: int, bar: tqdm) -> None:
    """Stage every track and join the clips to shards, in order; goes on after the shards that are closed."""
    first, rejects, done_bytes = shards.next_track, 0, 0
    all_bytes = sum(track.num_bytes for track in listing.tracks)
    for index, result in enumerate(_staged_in_order(jobs, first, num_proc)):
        track = listing.tracks[index]
        if index >= first:
            shards.start_track(index, track.split)
            if result["clips"]:
                for table in _read_clips(jobs[index].stem, track, shards.schema):
                    shards.write(table)
        rejects += len(result["rejects"])
        done_bytes += track.num_bytes
        bar.set_postfix_str(f"{index + 1}/{len(jobs)} files, {rejects} rejects", refresh=False)
        hours = result["decoded_seconds"] / 3600
        # How many hours the rest holds is known only from its bytes.
        bar.total = (bar.n + hours) * all_bytes / done_bytes if done_bytes else 0.0
        bar.update(hours)
        shards.end_track(index, [job.stem for job in jobs[shards.next_track : index + 1]])
    shards.close(len(jobs), [job.stem for job in jobs[shards.next_track :]])


def _staged_in_order(jobs: list[ClipJob], first: int, num_proc: int) -> Iterator[dict]:
    """The results of all jobs, in order; those before `first` are only read."""
    for job in jobs[:first]:
        yield read_staged(job.stem)
    jobs = jobs[first:]
    for folder in sorted({Path(job.stem).parent for job in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    if num_proc == 1:
        yield from map(stage_track, jobs)
        return
    # Not fork: a forked process can hang in the threads that torch had started.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_proc, len(jobs) or 1), mp_context=context, initializer=end_with_parent)
    try:
        waiting: deque = deque()
        for job in jobs:
            waiting.append(pool.submit(stage_track, job))
            # A bounded lead keeps the staged, not yet joined clips few.
            if len(waiting) >= 8 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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


# ---- shards to corpus ----


def _refuse_empty(source: str | os.PathLike, listing: Listing, results: list[dict]) -> None:
    reasons = Counter(kind for result in results for kind, _ in result["rejects"])
    kind, count = reasons.most_common(1)[0]
    example = next(
        f"{track.source}: {reason}"
        for track, result in zip(listing.tracks, results, strict=True)
        for found, reason in result["rejects"]
        if found == kind
    )
    raise ValueError(
        f"None of the {len(results)} audio files of {source} can be used; the commonest reason is {kind!r} "
        f"({count} times), for example {example}"
    )


def _publish(out: Path, plan: dict, listing: Listing, results: list[dict], shards: list[dict]) -> dict:
    """Give the shards their final names, write the files beside them, `corpus.json` last."""
    (out / "data").mkdir(exist_ok=True)
    counts = Counter(shard["split"] for shard in shards)
    numbers: Counter = Counter()
    for shard in shards:
        split = shard["split"]
        target = out / "data" / f"{split}-{numbers[split]:05d}-of-{counts[split]:05d}.parquet"
        numbers[split] += 1
        staged = out / STAGING / "shards" / shard["file"]
        # A run that was killed here has moved some of them.
        if staged.exists() or not target.exists():
            os.replace(staged, target)
    write_atomically(out / "rejects.csv", _rejects_csv(listing, results))
    summary = _summarise(plan, listing, results, counts)
    write_atomically(out / "README.md", write_card(summary))
    write_atomically(out / "corpus.json", json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(out / STAGING)
    return summary


def _rejects_csv(listing: Listing, results: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows(listing.rejects)
    for track, result in zip(listing.tracks, results, strict=True):
        writer.writerows((track.source, reason) for _, reason in result["rejects"])
    return text.getvalue()


def _summarise(plan: dict, listing: Listing, results: list[dict], num_shards: Counter) -> dict:
    splits: dict[str, dict] = {}
    for track, result in zip(listing.tracks, results, strict=True):
        if result["clips"]:
            split = splits.setdefault(track.split, {"hours": 0.0, "clips": 0, "tracks": 0, "shards": 0})
            split["hours"] += result["seconds"] / 3600
            split["clips"] += result["clips"]
            split["tracks"] += 1
    for name, split in splits.items():
        split["shards"] = num_shards[name]
        split["hours"] = round(split["hours"], 6)
    kinds = Counter(reason.split(":")[0] for _, reason in listing.rejects)
    kinds.update(kind for result in results for kind, _ in result["rejects"])
    return {
        "hours": round(sum(result["seconds"] for result in results) / 3600, 6),
        "clips": sum(split["clips"] for split in splits.values()),
        "tracks": sum(split["tracks"] for split in splits.values()),
        "sampling_rate": SAMPLING_RATE,
        "splits": splits,
        "rejected_files": len(listing.rejects) + sum(result["rejected_file"] for result in results),
        "rejects": dict(sorted(kinds.items())),
        "remainder_hours": round(sum(result["remainder_seconds"] for result in results) / 3600, 6),
        "settings": plan,
        "versions": {
            "music2vec_hf": _version("music2vec_hf"),
            "libsndfile": soundfile.__libsndfile_version__,
            **{name: _version(name) for name in ("soundfile", "torch", "torchaudio", "pyarrow", "datasets")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
