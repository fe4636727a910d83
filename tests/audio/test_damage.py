"""What no table can list: files changed at random, decoders that crash, permissions, an hour in one file."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from awkward import encoded, music
from toy_corpus import contents

from music2vec_hf.corpus.prepare import prepare_corpus

FORMATS = {"flac": "FLAC", "wav": "WAV", "ogg": "OGG", "mp3": "MP3"}

# Decodes every mutant of the seeds given, and prints by how much its memory grew after the first tenth.
DECODE = """
import resource, sys
sys.path[:0] = {folders!r}
from test_damage import decode, mutants
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
kinds, before = {{}}, 0
for number, (name, data) in enumerate(mutants({count})):
    print(name, flush=True)
    kind = decode(data)
    kinds[kind] = kinds.get(kind, 0) + 1
    if number == {count} // 10:
        before = peak()
print("grown by", round(peak() - before), "MB", flush=True)
print(kinds)
"""


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
    from music2vec_hf.audio.decoding import AudioError
    from music2vec_hf.audio.reading import AudioReader

    try:
        with AudioReader(data) as reader:
            for block in reader.blocks():
                assert np.isfinite(block).all() and np.abs(block).max() <= 1.0
        return "cut" if reader.shortfall else "whole"
    except AudioError as error:
        return error.kind


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_decoded_or_refused(count):
    code = DECODE.format(folders=[str(Path(__file__).parent), str(Path(__file__).parents[1])], count=count)
    # A crash or a hang is seen from outside; the last line names the file.
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    lines = process.stdout.splitlines()
    assert process.returncode == 0, (process.returncode, lines[-1:], process.stderr[-2000:])
    kinds = eval(lines[-1])
    assert sum(kinds.values()) == count and len(kinds) >= 3, kinds
    assert int(lines[-2].split()[2]) < 100, lines[-2:]


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


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_decoder_that_crashes_costs_one_reject(tmp_path, num_proc):
    source, out, script = tmp_path / "source", tmp_path / "out", tmp_path / "script.py"
    source.mkdir()
    for index, name in enumerate(["a", "crash 1", "d", "crash 2", "z"]):
        (source / f"{name}.wav").write_bytes(encoded(music(3, seed=index)))
    script.write_text(CRASH)
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
    source, out, script = tmp_path / "source", tmp_path / "out", tmp_path / "script.py"
    source.mkdir()
    for index, name in enumerate(["a", "hang", "z"]):
        (source / f"{name}.wav").write_bytes(encoded(music(3, seed=index)))
    script.write_text(CRASH)
    subprocess.run([sys.executable, str(script), str(source), str(out), "2", "10"], check=True, timeout=280)
    assert (out / "rejects.csv").read_text().splitlines()[1:] == [
        "hang.wav,too slow: decoding it takes longer than 12 s.",  # 10 s and two for its 96 kB
    ]
    assert prepare_corpus(source, out, clip_seconds=5.0)["clips"] == 2


@pytest.mark.parametrize("file_timeout", [-1, float("nan")])
def test_a_timeout_that_makes_no_sense_is_refused(tmp_path, file_timeout):
    with pytest.raises(ValueError, match=r"`file_timeout` is .*give a number of seconds, or 0 for no limit"):
        prepare_corpus(tmp_path, tmp_path / "out", file_timeout=file_timeout)


@pytest.mark.slow
def test_workers_that_cannot_start_are_no_decoders_that_crash(tmp_path):
    (tmp_path / "source").mkdir()
    for index in range(3):
        (tmp_path / "source" / f"{index}.wav").write_bytes(encoded(music(3, seed=index)))
    (tmp_path / "script.py").write_text(
        "from music2vec_hf.corpus.prepare import prepare_corpus\n"
        f"prepare_corpus({str(tmp_path / 'source')!r}, {str(tmp_path / 'out')!r}, num_proc=2, progress=False)\n"
    )
    process = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert process.returncode == 1 and 'call `prepare_corpus` below `if __name__ == "__main__":`' in process.stderr
    assert not list(tmp_path.glob("out/.unfinished/0*"))


def test_a_file_that_may_not_be_read_is_rejected(tmp_path):
    # Root may read everything: be somebody else, in a folder that everybody may enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "good.wav").write_bytes(encoded(music(3)))
        (folder / "secret.wav").write_bytes(encoded(music(3, seed=1)))
        (folder / "good.wav").chmod(0o644)
        (folder / "secret.wav").chmod(0o000)
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)
            prepare_corpus(folder, folder / "out", progress=False)
        finally:
            os.seteuid(before)
        lines = (folder / "out" / "rejects.csv").read_text().splitlines()
        assert lines[1:] == ["secret.wav,unreadable: it cannot be opened (Permission denied)."]


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
    from music2vec_hf.corpus.loading import load_corpus, read_clip

    rows = load_corpus(tmp_path / "out")
    assert rows["clip_start"][:] == [30.0 * index for index in range(120)] and set(rows["duration"]) == {30.0}
    np.testing.assert_array_equal(read_clip(rows[0]), read_clip(rows[118]))
