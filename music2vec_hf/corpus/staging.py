"""Staging all tracks in order, by one or many processes, past decoders that crash or hang.

A decoder is C code that is fed whatever lies on the disk. Where one ends its process, the tracks that were being
decoded are tried again, each in a process of its own; one that ends this too is rejected. So is one that takes
longer than it may, at which its process ends itself.
"""

import faulthandler
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from music2vec_hf.corpus.clips import ClipJob, end_with_parent, read_staged, rejection, stage_track, write_atomically


def staged_in_order(jobs: list[ClipJob], first: int, num_proc: int) -> Iterator[dict]:
    """Yield what [`stage_track`] returns for all jobs, in order; those before `first` are only read.

    With one process a crash ends this one too, and a decoder that hangs has to be interrupted. Started again, it goes
    on past the track.
    """
    for job in jobs[:first]:
        yield read_staged(job.stem)
    jobs = jobs[first:]
    for folder in sorted({Path(job.stem).parent for job in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    if num_proc == 1:
        for job in jobs:
            yield _stage_apart(job) if _mark(job).exists() else _stage_marked(job)
        return
    for job in jobs:
        # Left by a run that was killed as a whole: no sign of a crash.
        _mark(job).unlink(missing_ok=True)
    done = 0
    while done < len(jobs):
        try:
            for result in _staged_by_pool(jobs[done:], num_proc):
                done += 1
                yield result
        except BrokenProcessPool:
            begun = [job for job in jobs[done : done + 8 * num_proc] if _mark(job).exists()]
            if not begun:
                raise _no_processes() from None
            for job in begun:
                if _timed_out(job):
                    reject_lost(job)
                else:
                    _stage_apart(job)


def _staged_by_pool(jobs: list[ClipJob], num_proc: int) -> Iterator[dict]:
    pool = _open_pool(min(num_proc, len(jobs)))
    try:
        waiting: deque = deque()
        for job in jobs:
            waiting.append(pool.submit(stage_guarded, job))
            # A bounded lead keeps the staged, not yet joined clips few.
            if len(waiting) >= 8 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _stage_marked(job: ClipJob) -> dict:
    """Stage a track; while that lasts, and after a crash, a file says so."""
    _mark(job).touch()
    result = stage_track(job)
    _mark(job).unlink()
    return result


def stage_guarded(job: ClipJob) -> dict:
    """Stage a track and end this process if that takes longer than it may; the file that marks it then says so."""
    with open(_mark(job), "w") as mark:
        if job.max_seconds:
            # A thread that needs no lock of Python's, which a decoder that hangs may hold.
            faulthandler.dump_traceback_later(job.max_seconds, exit=True, file=mark)
        try:
            result = stage_track(job)
        finally:
            faulthandler.cancel_dump_traceback_later()
    _mark(job).unlink()
    return result


def _stage_apart(job: ClipJob) -> dict:
    """Stage a track in a process of its own, and reject it if that ends."""
    pool = _open_pool(1)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise _no_processes() from None
    try:
        return pool.submit(stage_guarded, job).result()
    except BrokenProcessPool:
        return reject_lost(job)
    finally:
        pool.shutdown()


def reject_lost(job: ClipJob) -> dict:
    """Stage the rejection of a track on which its process has ended, and return it."""
    if _timed_out(job):
        result = rejection("too slow", f"decoding it takes longer than {job.max_seconds:.0f} s.")
    else:
        result = rejection("undecodable", "the decoder crashes on it.")
    write_atomically(Path(job.stem + ".json"), json.dumps(result))
    _mark(job).unlink(missing_ok=True)
    return result


def _timed_out(job: ClipJob) -> bool:
    return _mark(job).exists() and _mark(job).stat().st_size > 0


def _open_pool(num_proc: int) -> ProcessPoolExecutor:
    # Not fork: a forked process can hang in the threads that torch had started.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_proc, mp_context=context, initializer=end_with_parent)


def _mark(job: ClipJob) -> Path:
    return Path(job.stem + ".begun")


def _no_processes() -> RuntimeError:
    return RuntimeError(
        "The processes that `num_proc` asks for end before they begin; call `prepare_corpus` below "
        '`if __name__ == "__main__":`, or look for their error above.'
    )
