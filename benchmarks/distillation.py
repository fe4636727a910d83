"""What a distilled student keeps of its teacher: `python benchmarks/distillation.py TEACHER --corpus DIR --data DIR
--output DIR`, for example after `music2vec demo`:

    python benchmarks/distillation.py demo/music2vec-tiny --corpus demo/corpus --data demo/synthetic --output distilled

Beside each other: the teacher, its student, the student's shape pretrained alone for as long, and random weights of
both shapes. Scores are those of `music2vec probe` on the synthetic tasks, test scored once; milliseconds are medians
of rounds in turn in one process, for the encoder's frames of 30 s; files are those of `music2vec export --format
onnx --quantize int8`. Runs that are there already, `student`, `timing` and `alone` in the output, are not made again.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from music2vec_hf.common.files import read_json, read_metrics, read_results, write_json
from music2vec_hf.common.render import markdown_table
from music2vec_hf.features.encoders import load_encoder
from music2vec_hf.hub.onnx_export import INT8_FILE, MODEL_FILE, export_onnx
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.pretraining.checkpoints import save_model
from music2vec_hf.probing.suite import run_suite

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_kernel")
SHAPE += ("conv_stride", "average_top_k_layers")
ROUNDS = 15


def run(folder: Path, *words: object) -> Path:
    """Make a run by a command of the library, as a person would, if it is not there; its folder."""
    if not (folder / "model.safetensors").is_file():
        words = [*map(str, words), "--output", str(folder)]
        print("$ music2vec", *words, flush=True)
        subprocess.run([sys.executable, "-m", "music2vec_hf", *words], check=True)
    return folder


def seconds_of(folder: Path) -> float:
    """Seconds that a run's steps took, by its own records."""
    found, last, audio = 0.0, 0, read_json(folder / "run.json")["audio_seconds_per_step"]
    for record in read_metrics(folder / "metrics.jsonl"):
        found += (record["step"] - last) * audio / record["audio_seconds_per_second"]
        last = record["step"]
    return found


def train(teacher: str, corpus: str, output: Path, recipe: str) -> dict[str, float]:
    """Make `output/student` and, for as many seconds of steps, `output/alone`; gives the seconds of each run."""
    student = run(output / "student", "distill", teacher, "--recipe", recipe, "--corpus", corpus)
    shape = load_recipe(recipe)
    alone = {**load_recipe("tiny").to_dict(), **{name: getattr(shape, name) for name in SHAPE}}
    (output / "alone.yaml").write_text(yaml.safe_dump(alone))
    words = ("pretrain", "--recipe", output / "alone.yaml", "--corpus", corpus, "--max-steps")
    each = seconds_of(run(output / "timing", *words, 40)) / 40
    alone = run(output / "alone", *words, round(seconds_of(student) / each))
    return {"student": seconds_of(student), "alone": seconds_of(alone)}


def milliseconds(folders: dict[str, str]) -> dict[str, list[float]]:
    """Time of all layers' frames of 30 s, round by round in turn."""
    encoders = {name: load_encoder(folder) for name, folder in folders.items()}
    values, found = torch.randn(1, 480_000), {name: [] for name in folders}
    with torch.no_grad():
        for _ in range(ROUNDS + 2):
            for name, encoder in encoders.items():
                started = time.perf_counter()
                list(encoder.frames(values))
                found[name].append(1000 * (time.perf_counter() - started))
    return {name: times[2:] for name, times in found.items()}


def main() -> None:
    """Train, probe, measure and write `comparison.json` and `comparison.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    for name in ("--corpus", "--data", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--recipe", default="tiny_half", help="of the student")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    seconds = train(args.teacher, args.corpus, output, args.recipe)
    torch.manual_seed(0)
    save_model(output / "random-student", Music2VecModel(load_recipe(args.recipe).model_config()))
    folders = {"teacher": args.teacher, "student": str(output / "student"), "alone": str(output / "alone")}
    sources = {**folders, "random-init": "random-init", "random-student": str(output / "random-student")}
    path = run_suite(sources, "synthetic", args.data, output / "probes", precision="auto")
    averages = read_results(path)["averages"]
    means = {average["source"]: average["task_mean"] for average in averages}
    times = milliseconds(folders)
    ratios = [ours / theirs for ours, theirs in zip(times["student"], times["teacher"], strict=True)]
    rows = []
    for name in sources:
        shape = "student" if name in ("alone", "random-student") else "teacher" if name == "random-init" else name
        row = {
            "": name,
            "task mean": f"{means[name]:.3f}",
            "training": f"{seconds[name]:.0f} s" if name in seconds else "",
        }
        if name in folders:
            made = export_onnx(folders[name], output / f"onnx-{name}", quantize="int8")
            row |= {
                "float32": f"{made.bytes[MODEL_FILE] / 1e6:.1f} MB",
                "int8": f"{made.bytes[INT8_FILE] / 1e6:.1f} MB",
            }
        parameters = sum(weight.numel() for weight in load_encoder(folders.get(shape)).model.parameters())
        row |= {
            "parameters": f"{parameters / 1e6:.2f} M",
            "30 s of audio": f"{statistics.median(times[shape]):.0f} ms",
        }
        rows.append(row)
    kept = (means["student"] - means["random-init"]) / (means["teacher"] - means["random-init"])
    heads = ["", "task mean", "training", "parameters", "30 s of audio", "float32", "int8"]
    lines = [
        markdown_table(heads, [[row.get(head, "") for head in heads] for row in rows]),
        f"The student keeps {kept:.0%} of its teacher's gain over random weights, in {statistics.median(ratios):.2f} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f}) of its time, with {torch.get_num_threads()} threads.",
    ]
    (output / "comparison.md").write_text("\n\n".join(lines) + "\n")
    write_json(output / "comparison.json", {"rows": rows, "kept": kept, "milliseconds": times, "seconds": seconds})
    print(*lines, sep="\n\n")
    for record in read_json(path)["comparisons"]:
        if record["task"] == "task_mean":
            print(record)


if __name__ == "__main__":
    main()
