"""What no table can list: files changed at random, decoders that crash, permissions, an hour in one file."""

import json
import resource
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import soundfile
from awkward import encoded, music
from toy_corpus import contents
from warm_python import fork

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.corpus.loading import load_corpus, read_clip
from music2vec_hf.corpus.prepare import prepare_corpus

FORMATS = {"flac": "FLAC", "wav": "WAV", "ogg": "OGG", "mp3": "MP3"}


def mutate(data, rng):
    """Flip bits, cut a piece out or off, insert bytes: one to three times."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        # Every other change near the beginning, where the headers are.
        place = int(rng.integers(0, max(1, min(200, len(data)) if rng.random() < 0.5 else len(data))))
        length = int(rng.integers(1, 100))
        match rng.integers(0, 4):
            case 0:
                for position in rng.integers(0, max(1, len(data)), length):
                    data[position : position + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                data[place : place + 1] = bytes([data[place] ^ 1 << int(rng.integers(0, 8))]) if data else b"\0"
            case 2:
                del data[place : place + length if rng.random() < 0.7 else len(data)]
            case 3:
                data[place:place] = rng.bytes(length)
    return bytes(data)


def mutants(count):
    whole = [
        (name, encoded(music(1 + rate / 44100, rate, channels, seed=rate), rate, kind))
        for name, kind in FORMATS.items()
        for rate, channels in ((16000, 1), (44100, 2))
    ]
    for seed in range(count):
        name, data = whole[seed % len(whole)]
        yield f"{name} {seed}", mutate(data, np.random.default_rng(seed))


def decode(data):
    """ "whole", "cut" or the kind of the error; never anything else."""
    try:
        with AudioReader(data) as reader:
            for block in reader.blocks():
                assert np.isfinite(block).all() and np.abs(block).max() <= 1.0
        return "cut" if reader.shortfall else "whole"
    except AudioError as error:
        return error.kind


def decode_all(count, log):
    """Log the name of each mutant before it is decoded; then the kinds, and the memory grown after the first tenth."""
    kinds, peaks = Counter(), []
    with open(log, "w") as file:
        for name, data in mutants(count):
            print(name, file=file, flush=True)
            kinds[decode(data)] += 1
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps([kinds, peaks[-1] - peaks[count // 10]]), file=file)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_decoded_or_refused(count, tmp_path):
    process = fork(decode_all, count, tmp_path / "log")
    process.join(timeout=280)
    process.kill()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    # A crash or a hang is seen from outside; the last line names the file.
    assert process.exitcode == 0, (process.exitcode, last)
    kinds, megabytes = json.loads(last)
    assert sum(kinds.values()) == count and len(kinds) >= 3 and megabytes < 100, last


# A process whose decoder ends it for files called so, and hangs on others, in workers too.
CRASH = """
import ctypes, os, sys
from music2vec_hf.corpus import clips, prepare
class Crashing(clips.AudioReader):
    def __init__(self, path, name=None):
        if name.startswith("crash"):
            os.kill(os.getpid(), 11)
        if name.startswith("hang"):
            ctypes.PyDLL(None).sleep(600)  # holds the lock of Python's threads
        super().__init__(path, name)
clips.AudioReader = Crashing
if __name__ == "__main__":
    timeout = float(sys.argv[4]) if len(sys.argv) > 4 else 600.0
    settings = {"clip_seconds": 5.0, "num_proc": int(sys.argv[3]), "file_timeout": timeout, "progress": False}
    prepare.prepare_corpus(sys.argv[1], sys.argv[2], **settings)
"""


def write_source(folder, names, script):
    """SOURCE with a song of each name, OUT, and a script."""
    (folder / "source").mkdir()
    for index, name in enumerate(names):
        (folder / "source" / f"{name}.wav").write_bytes(encoded(music(3, seed=index)))
    (folder / "script.py").write_text(script)
    return folder / "source", folder / "out", folder / "script.py"


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_decoder_that_crashes_costs_one_reject(tmp_path, num_proc):
    source, out, script = write_source(tmp_path, ["a", "crash 1", "d", "crash 2", "z"], CRASH)
    command = [sys.executable, str(script), str(source), str(out), str(num_proc)]
    # Alone, the process dies with its decoder; started again, it decodes that shard in a process of its own.
    codes = [subprocess.run(command).returncode for _ in range(3 - num_proc)]
    assert codes == ([-11, 0] if num_proc == 1 else [0])
    assert (out / "rejects.csv").read_text().splitlines()[1:] == [
        "crash 1.wav,undecodable: the decoder crashes on it.",
        "crash 2.wav,undecodable: the decoder crashes on it.",
    ]
    assert prepare_corpus(source, out, clip_seconds=5.0)["clips"] == 3


@pytest.mark.slow
def test_a_decoder_that_hangs_costs_one_reject(tmp_path):
    source, out, script = write_source(tmp_path, ["a", "hang", "z"], CRASH)
    subprocess.run([sys.executable, str(script), str(source), str(out), "2", "10"], check=True, timeout=280)
    assert (out / "rejects.csv").read_text().splitlines()[1:] == [
        "hang.wav,too slow: decoding it takes longer than 12 s.",  # 10 s and two for its 96 kB
    ]
    assert prepare_corpus(source, out, clip_seconds=5.0)["clips"] == 2


@pytest.mark.slow
def test_workers_that_cannot_start_are_no_decoders_that_crash(tmp_path):
    _, out, script = write_source(
        tmp_path,
        "012",
        "import sys\nfrom music2vec_hf.corpus.prepare import prepare_corpus\n"
        "prepare_corpus(*sys.argv[1:], num_proc=2, progress=False)\n",
    )
    process = subprocess.run([sys.executable, script, tmp_path / "source", out], capture_output=True, text=True)
    assert process.returncode == 1 and 'call `prepare_corpus` below `if __name__ == "__main__":`' in process.stderr
    assert not list(out.glob(".unfinished/0*"))


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for index in range(60):
        (source / f"{index:02d}.wav").write_bytes(encoded(music(20, 44100, 2, seed=index), 44100))
    (source / "30.wav").write_bytes(b"no audio")
    settings = {"clip_seconds": 5.0, "shard_megabytes": 1, "progress": False}
    summary = prepare_corpus(source, tmp_path / "undisturbed", **settings)
    assert summary["splits"]["train"]["shards"] > 10
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom music2vec_hf.corpus.prepare import prepare_corpus\n"
        f'if __name__ == "__main__":\n    prepare_corpus({str(source)!r}, {str(out)!r}, '
        f"num_proc=int(sys.argv[1]), **{settings!r})\n"
    )
    done = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        process = subprocess.Popen([sys.executable, str(script), str(1 + seed // 4)])
        # At once, or when a few more shards are written; and a little later than that.
        wanted = len(list(out.glob(".unfinished/*.json"))) + int(rng.integers(0, 4))
        while len(list(out.glob(".unfinished/*.json"))) < wanted:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        assert not (out / "corpus.json").exists()
        done.append(len(list(out.glob(".unfinished/0*.json"))))
    assert done == sorted(done) and done[-1] > 5
    assert prepare_corpus(source, out, **settings) == summary
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_an_hour_is_120_clips(tmp_path):
    (tmp_path / "source").mkdir()
    minute = music(60, level=0.05)
    with soundfile.SoundFile(tmp_path / "source" / "hour.flac", "w", 16000, 1) as file:
        for _ in range(60):
            file.write(minute)
    assert prepare_corpus(tmp_path / "source", tmp_path / "out", progress=False)["clips"] == 120
    rows = load_corpus(tmp_path / "out")
    assert rows["clip_start"][:] == [30.0 * index for index in range(120)] and set(rows["duration"]) == {30.0}
    np.testing.assert_array_equal(read_clip(rows[0]), read_clip(rows[118]))
