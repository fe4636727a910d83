"""Preparing small corpora and comparing them."""

import csv
import hashlib
import multiprocessing

import soundfile
from warm_python import fork

from music2vec_hf.corpus import clips
from music2vec_hf.corpus.prepare import prepare_corpus


def prepare(source, out, **settings):
    """Clips of 5 s, without a bar."""
    return prepare_corpus(source, out, **{"clip_seconds": 5.0, "progress": False, **settings})


def start_until(track, source, out, **settings):
    """A process that prepares a corpus and waits at a track, until it hears `go_on.set()`."""
    at_work, go_on = multiprocessing.Event(), multiprocessing.Event()
    process = fork(_wait_at, track, at_work, go_on, source, out, settings)
    process.go_on = go_on
    assert at_work.wait(timeout=240)
    return process


def _wait_at(track, at_work, go_on, source, out, settings):
    class Waiting(clips.AudioReader):
        def __init__(self, path, name=None):
            if name == track:
                at_work.set()
                go_on.wait()
            super().__init__(path, name)

    clips.AudioReader = Waiting
    prepare_corpus(source, out, **{"progress": False, **settings})


def interrupt(*args):
    raise KeyboardInterrupt


def kill(process):
    process.kill()
    process.join()


def write(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)


def contents(folder, pattern="*"):
    """Hash of each file by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def rejects_of(out):
    with open(out / "rejects.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return rows[1:]
