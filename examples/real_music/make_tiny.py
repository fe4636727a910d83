"""Make the weights that come with the library again: corpus, pretraining, release, probes, card.

python examples/real_music/make_tiny.py OUT

OUT is what build.py makes; it is built if it is not there. A run that was stopped goes on. The result is OUT/tiny, the
folder that lies in the package as `music2vec_hf/weights/tiny`.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from build import MANIFEST, write_table

from music2vec_hf.common.files import RESULTS, read_json, read_results, write_json, write_text
from music2vec_hf.demo import BASELINES, NUM_CLIPS
from music2vec_hf.hub.card import read_scores, write_model_card
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.probing.report_tables import verdicts
from music2vec_hf.probing.suite import run_suite

HERE = Path(__file__).parent
TASKS = {"probes": ["synthetic", "soundtrack"], "probes-kept": ["soundtrack-kept"]}
LICENCE = "cc-by-sa-4.0"
# 4,000 updates at the full rate, then 1,500 in which the rate falls and the teacher slows down.
STAGES = {
    "rising": ["--max_steps", "4000", "--phase_ratio", "0.2", "0.8", "0"],
    "settling": [
        *("--max_steps", "1500", "--phase_ratio", "0.02", "0.18", "0.8", "--seed", "2"),
        *("--ema_decay", "0.9976", "--ema_end_decay", "0.9995", "--ema_anneal_end_step", "1500"),
    ],
}

ABOUT = (
    "These weights come with the library: `music2vec_hf.pretrained('tiny')` is their folder, and `tiny` is a MODEL on "
    "the command line. `python examples/real_music/make_tiny.py OUT` makes them again.",
    "They were trained on the train tracks of eleven soundtracks of free games (11.1 h; ATTRIBUTION.md names every "
    "track with its artist and licence) and on 1,200 synthetic clips (3.3 h). Validation and test tracks, and five "
    "more albums, were never heard. The first 4,000 updates (53 h of audio) were a run of their own; the table of "
    "training below is of the last 1,500.",
    "Three seeds of the recipe together have a mean of 0.571 over genre, key, tags, emotion and soundtrack, random "
    "weights 0.420 (paired 95 % interval of the difference +0.135 to +0.166), mel 0.502 (+0.050 to +0.086): "
    "benchmarks/learning.md in the repository of the library.",
    "What it is bad at: there is hardly any singing in its corpus, and no style that games do not use. The synthetic "
    "tasks are drawn from the generator that made a part of it. An album is told by its production, too.",
)


def music2vec(*words, launcher: tuple[str, ...] = ()) -> None:
    """Run a command of the library in its own process; its own message tells what went wrong."""
    command = [sys.executable, *launcher, "-m", "music2vec_hf", *map(str, words)]
    print("+", *command[1:], flush=True)
    subprocess.run(command, check=True)


def make_corpus(out: Path) -> Path:
    """One corpus of the train tracks of the train albums and the train clips of the synthetic data."""
    if not (out / "real_music.json").is_file():
        subprocess.run([sys.executable, HERE / "build.py", out, "--num-proc", str(os.cpu_count() or 1)], check=True)
    synthetic = out / "tasks" / "synthetic"
    if not synthetic.is_dir():
        music2vec("synth", synthetic, "--clips", NUM_CLIPS, "--seed", 0)
    with open(out / "pretraining.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips = sorted((synthetic / "audio" / "train").glob("*.flac"))
    rows += [{"path": str(clip.relative_to(out)), "track_id": f"synthetic/{clip.stem}"} for clip in clips]
    write_table(out / "mixed.csv", MANIFEST, rows)
    music2vec("prepare", out / "mixed.csv", out / "mixed", "--min-seconds", 5, "--store", "wav")
    return out / "mixed"


def pretrain(out: Path, corpus: Path) -> Path:
    """Both stages, one process per core; the folder of the last run."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(os.cpu_count() or 1))
    before: list = []
    for name, settings in STAGES.items():
        run = out / name
        if not (run / "model.safetensors").is_file():
            where = ["--recipe", "tiny", "--corpus", corpus, "--output", run, "--resume", *before]
            music2vec("pretrain", *where, *settings, launcher=launcher)
        before = ["--init_from", run / f"checkpoint-{settings[1]}"]
    return run


def release(run: Path, folder: Path, attribution: Path) -> None:
    """The encoder alone, its weights in bfloat16; it is loaded in float32."""
    model = Music2VecModel.from_pretrained(run, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder)
    Music2VecFeatureExtractor(receptive_field=model.config.receptive_field).save_pretrained(folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "float32"}, indent=2)
    write_text(folder / "ATTRIBUTION.md", attribution.read_text(encoding="utf-8"))


def write_card(run: Path, folder: Path, results: list[Path]) -> None:
    """The library's own card, with what it cannot know at its head."""
    for name in ("run.json", "metrics.jsonl"):
        write_text(folder / name, (run / name).read_text(encoding="utf-8"))
    card = write_model_card(folder, "you/tiny", LICENCE, read_scores(folder, results))
    (folder / "metrics.jsonl").unlink()
    write_text(folder / RESULTS, results[0].read_text(encoding="utf-8"))
    front, heading, body = card.partition("\n# tiny\n")
    found, kept = (verdicts(read_results(path)) for path in results)
    about = [*found, f"On the five albums that it never heard: {' '.join(kept)}", *ABOUT]
    write_text(folder / "README.md", front + heading + "\n" + "\n\n".join(about) + "\n" + body)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of build.py")
    out = parser.parse_args().out
    run, folder = out / list(STAGES)[-1], out / "tiny"
    if not (run / "model.safetensors").is_file():
        pretrain(out, make_corpus(out))
    release(run, folder, out / "ATTRIBUTION.md")
    results = [
        run_suite([str(folder), *BASELINES], tasks, out / "tasks", out / name, precision="auto")
        for name, tasks in TASKS.items()
    ]
    write_card(run, folder, results)
    print(*verdicts(read_results(results[0])), folder, sep="\n")


if __name__ == "__main__":
    main()
