"""How fast one core reads random crops, and prepares a corpus: `python benchmarks/data.py [--output FILE.md]`.

Synthesises eight tracks, prepares them, and takes all measurements in turn, round by round, in one process. Numbers
are medians over the rounds, of processor time: other work on the machine disturbs it less than it disturbs the clock.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Audio, disable_progress_bars

from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.clips import convert_to_wav
from music2vec_hf.corpus.crops import BatchPlan
from music2vec_hf.corpus.loading import load_corpus
from music2vec_hf.corpus.prepare import prepare_corpus

CROP_SECONDS, CROP_SAMPLES, MICRO_BATCH_ROWS = 5, 80_000, 47
TRACKS, TRACK_SECONDS, MP3_RATE = 8, 60, 44_100
NEEDED = 8_000  # audio seconds per second, about what an H200 can learn from


def synthesise(folder: Path) -> None:
    """Write stereo mp3 files of 44.1 kHz: decaying chords over noise, which FLAC packs about as well as music."""
    folder.mkdir()
    seconds = np.arange(TRACK_SECONDS // 4 * MP3_RATE) / MP3_RATE
    envelope = np.exp(-3 * (seconds % 0.5))
    for track in range(TRACKS):
        rng = np.random.default_rng(track)
        chord = np.zeros((len(seconds), 2))
        for pitch in rng.uniform(80, 800, 3):
            for harmonic in range(1, 7):
                tone = np.sin(2 * np.pi * pitch * harmonic * seconds + rng.uniform(0, 6)) * envelope
                chord += 0.15 / harmonic * tone[:, None] * rng.uniform(0.3, 1, 2)
        samples = np.tile(chord, (4, 1)) + 0.01 * rng.standard_normal((4 * len(chord), 2))
        soundfile.write(folder / f"{track}.mp3", np.clip(samples, -1, 1), MP3_RATE)


def batches_of(corpus, rows: int, crops_per_clip: int = 1) -> Callable[[int], None]:
    """`run(step)` reads one update as training does, in micro-batches with their masks, without workers."""
    plan = BatchPlan(1, rows, CROP_SAMPLES, 249, MICRO_BATCH_ROWS, 0.65, 10, crops_per_clip=crops_per_clip)
    dataset = CropDataset(corpus, plan)

    def run(step: int) -> None:
        for batch in training_batches(dataset, step, step + 1, -(-rows // MICRO_BATCH_ROWS)):
            assert batch["input_values"].shape[1] == CROP_SAMPLES

    return run


def soundfile_loop(files: list[Path], rows: int) -> Callable[[int], None]:
    """The plain loop: open a file, seek, read; nothing is normalised and no batch is made."""

    def run(step: int) -> None:
        rng = np.random.default_rng(step)
        for file in rng.choice(files, rows):
            with soundfile.SoundFile(file) as clip:
                clip.seek(int(rng.integers(clip.frames - CROP_SAMPLES + 1)))
                assert len(clip.read(CROP_SAMPLES, dtype="float32")) == CROP_SAMPLES

    return run


def datasets_audio(corpus, rows: int) -> Callable[[int], None] | str:
    """Crops by `datasets.Audio`, which decodes with torchcodec; a sentence where that is not there."""
    try:
        from torchcodec.decoders import AudioDecoder  # noqa: F401
    except ImportError:
        return "torchcodec is not installed"
    except (OSError, RuntimeError):
        return "torchcodec finds no FFmpeg"
    clips = corpus.cast_column("audio", Audio(sampling_rate=16_000, num_channels=1))
    durations = clips["duration"][:]

    def run(step: int) -> None:
        rng = np.random.default_rng(step)
        for clip in rng.integers(len(clips), size=rows).tolist():
            start = rng.uniform(0, durations[clip] - CROP_SECONDS)
            crop = clips[clip]["audio"].get_samples_played_in_range(start, start + CROP_SECONDS).data
            assert crop.shape[-1] >= CROP_SAMPLES - 1

    return run


def measure(root: Path, rounds: int) -> tuple[dict[str, float | str], float]:
    """Crops per second of processor time by what they are read from, and preparing as a multiple of real time."""
    synthesise(root / "mp3")
    speeds, seconds = [], TRACKS * TRACK_SECONDS
    for number in range(rounds):
        corpus = root / f"corpus{number}"
        speeds.append(seconds / processor_seconds(lambda: prepare_corpus(root / "mp3", corpus, progress=False)))  # noqa: B023
    clips, tracks = load_corpus(corpus), load_corpus(root / "mp3")
    shutil.copytree(corpus, root / "wav")
    convert_to_wav(root / "wav", progress=False)
    files = []
    for number, row in enumerate(clips):
        files.append(root / f"{number}.flac")
        files[-1].write_bytes(row["audio"]["bytes"])

    cases = {
        "corpus (FLAC)": (200, batches_of(clips, 200)),
        "corpus (FLAC), `crops_per_clip` 4": (200, batches_of(clips, 200, crops_per_clip=4)),
        "corpus (FLAC), `crops_per_clip` 8": (200, batches_of(clips, 200, crops_per_clip=8)),
        "corpus stored as wav": (1_000, batches_of(load_corpus(root / "wav"), 1_000)),
        "folder of 44.1 kHz stereo mp3, not prepared": (48, batches_of(tracks, 48)),
        "peer: soundfile, plain loop over FLAC files": (200, soundfile_loop(files, 200)),
        "peer: `datasets.Audio` (torchcodec) on the corpus": (200, datasets_audio(clips, 200)),
        "peer: `datasets.Audio` (torchcodec) on the mp3 folder": (48, datasets_audio(tracks, 48)),
    }
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first warms up
        for name, (rows, run) in cases.items():
            if callable(run):
                found.setdefault(name, []).append(rows / processor_seconds(lambda: run(number)))  # noqa: B023
    medians = {name: statistics.median(speeds[1:]) for name, speeds in found.items()}
    return {name: medians.get(name, run) for name, (_, run) in cases.items()}, statistics.median(speeds)


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of some work in this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


def format_report(crops: dict[str, float | str], prepare: float, rounds: int) -> str:
    """The table, the machine, and how many cores feed a GPU."""
    lines = [
        f"# Reading random {CROP_SECONDS} s crops of 16 kHz mono, and preparing: one core",
        "",
        "| from | crops a second | ms a crop | cores for 8,000 s of audio a second |",
        "| --- | --- | --- | --- |",
    ]
    for name, speed in crops.items():
        if isinstance(speed, str):
            lines.append(f"| {name} | {speed} | | |")
        else:
            cores = NEEDED / (speed * CROP_SECONDS)
            lines.append(f"| {name} | {speed:,.0f} | {1e3 / speed:.2f} | {cores:.1f} |")
    flac, stored = (NEEDED / (crops[name] * CROP_SECONDS) for name in ("corpus (FLAC)", "corpus stored as wav"))
    lines += [
        "",
        f"{flac:.1f} cores feed {NEEDED:,} audio seconds per second from FLAC, {stored:.1f} stored as wav.",
        f"Preparing from 44.1 kHz stereo mp3: {prepare:,.0f} x real time.",
        "",
        f"Medians of {rounds} rounds, of processor time, from files in the page cache. Clips of the corpus last 30 s, "
        f"mp3 tracks {TRACK_SECONDS} s. Rows without `peer` are whole micro-batches of {MICRO_BATCH_ROWS}: crops, "
        "normalisation, masks.",
        "",
        f"- command: `{' '.join(['python benchmarks/data.py', *sys.argv[1:]])}`",
        f"- machine: {cpu_model()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}",
        f"- versions: Python {platform.python_version()}, libsndfile {soundfile.__libsndfile_version__}, "
        + ", ".join(f"{name} {version(name)}" for name in ("soundfile", "numpy", "torch", "torchaudio", "datasets"))
        + f", torchcodec {torchcodec_version()}",
    ]
    return "\n".join(lines) + "\n"


def torchcodec_version() -> str:
    """Of the optional package."""
    try:
        return version("torchcodec")
    except PackageNotFoundError:
        return "none"


def cpu_model() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print, and write the report where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", help="file to write the report to, too")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    start = time.time()
    with tempfile.TemporaryDirectory() as root:
        report = format_report(*measure(Path(root), args.rounds), args.rounds)
    print(report)
    print(f"This took {time.time() - start:.0f} s.")
    if args.output:
        Path(args.output).write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
