"""Preparing small corpora and comparing them."""

import csv
import hashlib
import subprocess
import sys

import soundfile

from music2vec_hf.corpus.prepare import prepare_corpus

# A run that says when it comes to the track `sys.argv[1]`, and waits there for a line.
WAITING_RUN = """
import sys
from music2vec_hf.corpus import clips, prepare
class Waiting(clips.AudioReader):
    def __init__(self, path, name=None):
        if name == sys.argv[1]:
            print("at work", flush=True)
            sys.stdin.readline()
        super().__init__(path, name)
clips.AudioReader = Waiting
prepare.prepare_corpus({source!r}, {out!r}, **{settings!r})
"""


def prepare(source, out, **settings):
    """Clips of 5 s, without a bar."""
    return prepare_corpus(source, out, **{"clip_seconds": 5.0, "progress": False, **settings})


def start_until(track, source, out, **settings):
    """A process that prepares a corpus and waits at a track."""
    code = WAITING_RUN.format(source=str(source), out=str(out), settings={"progress": False, **settings})
    words = [sys.executable, "-c", code, track]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    return process


def kill(process):
    process.kill()
    process.wait()


def write(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)


def contents(folder):
    """Hash of each file by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rejects_of(out):
    with open(out / "rejects.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return rows[1:]
