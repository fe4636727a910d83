"""Shards: so many tracks become one Parquet file, whole or not at all, with a JSON of what became of each track.

They are cut from the listing by what its files weigh, so that they do not depend on who writes them. Decoders are C
code that is fed whatever lies on the disk: with several processes each track is decoded in a process that may crash or
hang at the cost of that track. A single process decodes here; where it died, the next run decodes the shard apart.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value
from pebble import ProcessExpired, ProcessPool

from music2vec_hf.audio.containers import PackedFile
from music2vec_hf.audio.listing import Listing, Track
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import write_json, written_aside
from music2vec_hf.corpus.clips import CLIP_SCHEMA, ClipJob, end_with_parent, prepare_track, rejection, write_tables

# A file may take `file_timeout` seconds, and one more for so many of its bytes.
BYTES_A_SECOND = 50_000
# Tracks, for each process, that are begun before the first of them is written: keeps the clips beside the shards few.
LEAD = 8

Report = Callable[[Track, dict], None]


@dataclass(frozen=True)
class Shard:
    """The tracks of one Parquet file.

    Args:
        path (`Path`): of the file while the corpus is unfinished.
        tracks (`list[Track]`), jobs (`list[ClipJob]`): its tracks in order, all of one split.
    """

    path: Path
    tracks: list[Track]
    jobs: list[ClipJob]
    schema: pa.Schema

    @property
    def is_whole(self) -> bool:
        """Whether it is written."""
        if not self._record.exists():
            return False
        num_bytes = json.loads(self._record.read_text(encoding="utf-8"))["num_bytes"]
        return self.path.exists() and self.path.stat().st_size == num_bytes

    @property
    def results(self) -> list[dict]:
        """What [`prepare_track`] returned for each track of a written shard."""
        return json.loads(self._record.read_text(encoding="utf-8"))["results"]

    @property
    def mark(self) -> Path:
        """A file that is there while this process decodes a track, and after it died of that."""
        return self.path.with_suffix(".decoding")

    @property
    def _record(self) -> Path:
        return self.path.with_suffix(".json")

    def write(self, results: Iterable[dict], report: Report) -> None:
        """Write the clips of all tracks, whose results come in order; `report` is told of each."""
        kept: list[dict] = []
        for left in self.path.parent.glob(f".{self.path.name}.*"):  # by a run that was killed
            left.unlink()
        with written_aside(self.path) as aside:
            write_tables(aside, self.schema, self._tables(results, kept, report))
        write_json(self._record, {"num_bytes": self.path.stat().st_size, "results": kept}, indent=None)

    def _tables(self, results: Iterable[dict], kept: list[dict], report: Report) -> Iterator[pa.Table]:
        for track, job, result in zip(self.tracks, self.jobs, results, strict=False):
            if result["clips"]:
                with pq.ParquetFile(job.clips) as file:
                    for group in range(file.num_row_groups):
                        yield self._with_columns(track, file.read_row_group(group))
                job.clips.unlink()
            kept.append(result)
            report(track, result)

    def _with_columns(self, track: Track, clips: pa.Table) -> pa.Table:
        row = {"track_id": track.track_id, "source": track.source, **track.metadata}
        columns = [
            clips[name].combine_chunks()
            if name in clips.column_names
            else pa.array([row.get(name)] * len(clips), self.schema.field(name).type)
            for name in self.schema.names
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def cut_shards(folder: Path, listing: Listing, plan: dict, file_timeout: float = 0.0) -> list[Shard]:
    """Cut a listing into shards: one ends with the track with which its files reach `shard_megabytes`, or its split.

    Args:
        file_timeout (`float`): seconds that a file may take whatever its size; 0 for no limit.
    """
    tracks, bounds, num_bytes = listing.tracks, [0], 0
    for index, track in enumerate(tracks):
        if num_bytes >= plan["shard_megabytes"] * 1e6 or track.split != tracks[bounds[-1]].split:
            bounds.append(index)
            num_bytes = 0
        num_bytes += track.num_bytes
    folder, schema = folder.absolute(), corpus_features(listing).arrow_schema
    jobs = [
        ClipJob(
            path=_absolute(track.path),
            source=track.source,
            track_id=track.track_id,
            clips=folder / "tracks" / f"{index:08d}.parquet",
            clip_samples=round(plan["clip_seconds"] * SAMPLING_RATE),
            min_samples=round(plan["min_seconds"] * SAMPLING_RATE),
            store=plan["store"],
            max_seconds=file_timeout and file_timeout + track.num_bytes / BYTES_A_SECOND,
        )
        for index, track in enumerate(tracks)
    ]
    return [
        Shard(folder / f"{number:05d}.parquet", tracks[first:end], jobs[first:end], schema)
        for number, (first, end) in enumerate(pairwise([*bounds, len(tracks)]))
    ]


def corpus_features(listing: Listing) -> Features:
    """The columns of a corpus; `Audio(decode=False)` so that loading needs no decoder of `datasets`."""
    first = {
        "audio": Audio(sampling_rate=SAMPLING_RATE, decode=False),
        **dict.fromkeys(("track_id", "source"), Value("string")),
    }
    schema = pa.unify_schemas([CLIP_SCHEMA, pa.schema(listing.metadata_types)])
    return Features({**first, **Features.from_arrow_schema(schema), **first})


def _absolute(path):
    """What to open, wherever the process that opens it works."""
    if not isinstance(path, PackedFile):
        return Path(os.path.abspath(path))
    return path if "://" in path.container else replace(path, container=os.path.abspath(path.container))


# ---- who writes them ----


def write_shards(shards: list[Shard], num_proc: int, report: Report) -> None:
    """Write shards one after the other, their tracks decoded by processes of this machine."""
    for group in [shards] if num_proc > 1 else [[shard] for shard in shards]:
        jobs = [job for shard in group for job in shard.jobs]
        here = num_proc == 1 and not group[0].mark.exists()
        with closing(_decode_here(jobs, group[0].mark) if here else decode_apart(jobs, num_proc)) as results:
            for shard in group:
                shard.write(results, report)
        if num_proc == 1:
            group[0].mark.unlink(missing_ok=True)


def write_shards_by_ray(shards: list[Shard], num_proc: int, report: Report) -> None:
    """Write shards by tasks of Ray, on one host or on many that share SOURCE and OUT (extra `cluster`).

    The cluster is the one that the program is connected to, else that of `RAY_ADDRESS`, else one of `num_proc`
    processes on this host. Raises ValueError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("`engine` is ray, which is not installed: `pip install 'music2vec_hf[cluster]'`.") from error

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address, log_to_driver=False, **({} if address else {"num_cpus": num_proc}))
    write = ray.remote(_write_apart)
    running = {write.remote(shard): shard for shard in shards}
    while running:
        (task,), _ = ray.wait(list(running))
        ray.get(task)
        shard = running.pop(task)
        for track, result in zip(shard.tracks, shard.results, strict=True):
            report(track, result)


def _write_apart(shard: Shard) -> None:
    with closing(decode_apart(shard.jobs, 1)) as results:
        shard.write(results, lambda track, result: None)


def _decode_here(jobs: list[ClipJob], mark: Path) -> Iterator[dict]:
    """Yield what [`prepare_track`] returns for all jobs. The file `mark` is left by one that ends this process."""
    for job in jobs:
        mark.touch()
        began = time.monotonic()
        try:
            result = prepare_track(job)
        finally:
            # Interrupted after more time than a file may take, it counts as dead: the next run decodes it apart.
            if not 0 < job.max_seconds < time.monotonic() - began:
                mark.unlink()
        yield result


def decode_apart(jobs: list[ClipJob], num_proc: int) -> Iterator[dict]:
    """Yield what [`prepare_track`] returns for all jobs, in order, each run in one of `num_proc` processes.

    A track that ends its process, or takes longer than it may, is rejected, and the process replaced.
    """
    pools = _start_processes(min(num_proc, len(jobs)))
    idle, running, results, begun = list(pools), {}, {}, 0
    try:
        for number in range(len(jobs)):
            while number not in results:
                while idle and begun < min(len(jobs), number + LEAD * num_proc):
                    pool, job = idle.pop(), jobs[begun]
                    running[pool.schedule(prepare_track, [job], timeout=job.max_seconds or None)] = begun, pool
                    begun += 1
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done, pool = running.pop(future)
                    results[done] = _result(future, jobs[done])
                    if not pool.active:
                        pools.remove(pool)
                        pools += (fresh := _start_processes(1))
                        pool = fresh[0]
                    idle.append(pool)
            yield results.pop(number)
    finally:
        for pool in pools:
            pool.stop()
        for pool in pools:
            pool.join()


def _result(future: Future, job: ClipJob) -> dict:
    """What became of a track; an error that is not about its audio, such as a full disk, is raised."""
    error = future.exception()
    if isinstance(error, (ProcessExpired, BrokenProcessPool)):
        result = rejection("undecodable", "the decoder crashes on it.")
    elif isinstance(error, TimeoutError) and error.__cause__ is None:  # of the pool, not of a network
        result = rejection("too slow", f"decoding it takes longer than {job.max_seconds:.0f} s.")
    else:
        return future.result()
    job.clips.unlink(missing_ok=True)
    return result


def _start_processes(number: int) -> list[ProcessPool]:
    """Pools of one process each: what ends a process ends the one track that it was given, and no other."""
    # Not fork: a forked process can hang in the threads that torch had started.
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPool(1, initializer=end_with_parent, context=context) for _ in range(number)]
    started = [pool.schedule(callable, [prepare_track]) for pool in pools]  # imports what a track needs
    for future in started:
        if future.exception() is not None:
            raise RuntimeError(
                "The processes that `num_proc` asks for end before they begin; call `prepare_corpus` below "
                '`if __name__ == "__main__":`, or look for their error above.'
            )
    return pools
