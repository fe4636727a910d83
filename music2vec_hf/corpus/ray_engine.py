"""Staging all tracks in order by Ray, on one host or on many that share SOURCE and OUT (extra `cluster`)."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from music2vec_hf.audio.packed import PackedFile
from music2vec_hf.corpus.clips import ClipJob, read_staged
from music2vec_hf.corpus.staging import reject_lost, stage_guarded

# Tracks that are begun before the first of them is waited for, for each core of the cluster.
LEAD = 8


def staged_by_ray(jobs: list[ClipJob], first: int, num_proc: int) -> Iterator[dict]:
    """Do what [`staged_in_order`] does, by tasks of Ray.

    The cluster is the one that the program is connected to, else that of `RAY_ADDRESS`, else one of `num_proc`
    processes on this host. A track whose process ends four times, on whatever host, is rejected.

    Raises:
        ValueError: if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("`engine` is ray, which is not installed: `pip install music2vec_hf[cluster]`.") from error

    for job in jobs[:first]:
        yield read_staged(job.stem)
    jobs = [_anywhere(job) for job in jobs[first:]]
    for folder in sorted({Path(job.stem).parent for job in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address, log_to_driver=False, **({} if address else {"num_cpus": num_proc}))
    stage = ray.remote(stage_guarded)
    lead = LEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque = deque()
    for number, job in enumerate(jobs, start=1):
        waiting.append((job, stage.remote(job)))
        while waiting and (len(waiting) >= lead or number == len(jobs)):
            job, result = waiting.popleft()
            try:
                yield ray.get(result)
            except ray.exceptions.WorkerCrashedError:
                yield reject_lost(job)


def _anywhere(job: ClipJob) -> ClipJob:
    """The job with paths that do not depend on the working folder."""
    path = job.path
    if isinstance(path, PackedFile):
        local = "://" not in path.container
        path = replace(path, container=os.path.abspath(path.container)) if local else path
    else:
        path = os.path.abspath(path)
    return replace(job, path=path, stem=os.path.abspath(job.stem))


__all__ = ["staged_by_ray"]
