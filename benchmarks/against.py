"""This checkout against another one, in pairs: update step, prepare, crops, embeddings and the quick probe.

    git worktree add ../before REVISION
    python benchmarks/against.py ../before --rounds 5 --output benchmarks/results/against.md

Each round runs every job once in a new process of either checkout, which goes first changes from round to round. A job
measures its own work, not the start of Python. The table has medians of seconds and of the ratio of each pair.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve().parents[1]
TINY = {
    **{"num_workers": 0, "precision": "fp32", "log_every": 1, "save_every": 1_000},
    **{"crop_seconds": 4.8, "batch_seconds": 48.0, "mask_group_seconds": 48.0, "max_seconds_per_device": 48.0},
    **{"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 768},
    **{"conv_dim": [96] * 7, "average_top_k_layers": 3, "require_same_masks": False, "layerdrop": 0.0},
    **{"ema_decay": 0.9999, "ema_layers_only": False, "hidden_dropout": 0.0, "attention_dropout": 0.0},
}  # written out: recipes differ between checkouts


def name_of(name: str, *modules: str):
    """A name from the first of some modules that has it; checkouts differ in where it is."""
    for module in modules:
        try:
            return getattr(importlib.import_module(f"music2vec_hf.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"no {name} in {', '.join(modules)}")


def prepare_corpus(*args, **settings):
    return name_of("prepare_corpus", "corpus.prepare", "data.corpus")(*args, progress=False, **settings)


def job_prepare(work: Path) -> float:
    """40 stereo files of 30 s at 44.1 kHz to a corpus, one process."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        start = time.perf_counter()
        prepare_corpus(work / "music", Path(out) / "corpus")
        return time.perf_counter() - start


def decode(kind: str, work: Path) -> float:
    """Five tracks of 60 s, 44.1 kHz stereo, to 16 kHz mono."""
    read = name_of("read_audio", "audio.reading", "data.audio")
    read(work / f"song.{kind}", seconds=5)
    start = time.perf_counter()
    for _ in range(5):
        read(work / f"song.{kind}")
    return time.perf_counter() - start


def job_crops(work: Path) -> float:
    """800 crops of 5 s from a corpus of 30 s clips."""
    plan = name_of("BatchPlan", "corpus.crops", "corpus.batches", "corpus.batch_plan", "data.batch_plan")
    dataset = name_of("CropDataset", "corpus.batches", "corpus.crops", "data.batches")
    batches = name_of("training_batches", "corpus.batches", "corpus.crops", "data.batches")
    load = name_of("load_corpus", "corpus.loading", "data.corpus")
    rows = plan(
        seed=0,
        rows_per_update=20,
        num_samples=80_000,
        num_frames=249,
        mask_group_rows=20,
        mask_time_prob=0.65,
        mask_time_length=10,
    )
    loader = batches(dataset(load(work / "corpus"), rows), 0, 40)
    next(iter(loader))
    start = time.perf_counter()
    assert sum(len(batch["input_values"]) for batch in loader) == 800
    return time.perf_counter() - start


def job_update(work: Path) -> float:
    """An update of a model 192 wide with four layers, median of ten after two."""
    pretrain, recipe = (
        name_of("pretrain", "pretraining.loop"),
        name_of("load_recipe", "pretraining.arguments", "pretraining.recipe"),
    )
    with tempfile.TemporaryDirectory(dir=work) as out:
        pretrain(recipe("crop5s", **TINY, max_steps=12), work / "corpus", Path(out) / "run")
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(48.0 / line["audio_seconds_per_second"] for line in lines[2:] if "loss" in line)


def job_embed(work: Path) -> float:
    """Embeddings of 40 tracks of 30 s by a model of the shape of tiny."""
    import music2vec_hf

    model = music2vec_hf.Music2VecModel(
        music2vec_hf.Music2VecConfig(
            hidden_size=192, num_hidden_layers=4, num_attention_heads=2, intermediate_size=768, conv_dim=[96] * 7
        )
    ).eval()
    tracks = sorted(map(str, (work / "music").glob("*.wav")))
    music2vec_hf.embed(model, tracks[:2])
    start = time.perf_counter()
    music2vec_hf.embed(model, tracks)
    return time.perf_counter() - start


def job_probe(work: Path) -> float:
    """`quick` of chroma statistics on the genres of 400 synthetic clips, features computed before."""
    run_suite = name_of("run_suite", "probing.suite")
    with tempfile.TemporaryDirectory(dir=work) as out:
        output = run_suite(["chroma"], "synthetic-genre", work / "synthetic", Path(out), progress=False)
        timings = json.loads(Path(output).read_text())["timings"]
    return timings[0]["probe_seconds"]


JOBS = {
    "update of tiny, 48 s of audio": job_update,
    "prepare, 20 min of stereo": job_prepare,
    "800 crops of 5 s": job_crops,
    "embed, 20 min": job_embed,
    **{f"decode {kind}, 5 min": partial(decode, kind) for kind in ("wav", "flac", "ogg", "mp3")},
    "quick probe, chroma, genre": job_probe,
}


def make_material(work: Path) -> None:
    rng = np.random.default_rng(0)
    (work / "music").mkdir()
    for number in range(40):
        soundfile.write(work / "music" / f"{number:02}.wav", 0.1 * rng.standard_normal((30 * 44_100, 2)), 44_100)
    for kind in ("wav", "flac", "ogg", "mp3"):
        with soundfile.SoundFile(work / f"song.{kind}", "w", 44_100, 2) as file:
            for _ in range(60):  # libsndfile encodes no minute of Ogg at once
                file.write(0.1 * rng.standard_normal((44_100, 2)))
    prepare_corpus(work / "music", work / "corpus")
    name_of("synthesize_corpus", "synthetic.generator", "synthetic.generate")(work / "synthetic", 400, 0)


def seconds_of(checkout: Path, job: str, work: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_DATASETS_CACHE": str(work / "cache" / checkout.name)}
    command = [sys.executable, "-W", "ignore", __file__, "--job", job, "--work", str(work)]
    run = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{checkout}, {job}: {run.stderr[-2000:]}")
    return float(run.stdout.splitlines()[-1])


def compare(other: Path, rounds: int, jobs: list[str]) -> str:
    lines = ["| job | before, s | now, s | before / now |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_material(work)
        for job in jobs:
            pairs = []
            for number in range(rounds):
                order = (other, HERE) if number % 2 else (HERE, other)
                found = {checkout: seconds_of(checkout, job, work) for checkout in order}
                pairs.append((found[other], found[HERE]))
            before, now = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratios = sorted(first / second for first, second in pairs)
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {job} | {before:.3f} | {now:.3f} | {spread} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        warnings.simplefilter("ignore")
        print(JOBS[args.job](args.work))
        return
    if args.other is None:
        parser.error("name the other checkout")
    table = compare(args.other.resolve(), args.rounds, args.jobs)
    if args.output:
        args.output.write_text(table)


if __name__ == "__main__":
    main()
