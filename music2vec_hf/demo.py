"""`music2vec demo`: the whole chain on a laptop, offline. Each stage is one of the library's own commands, run as its
own process, so that its time and peak memory are its own and it can be typed again by hand."""

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

NUM_CLIPS, CORPUS_SEED = 2000, 0


@dataclass
class Stage:
    """One command of the demo, what it took, and the file or folder that shows it is done."""

    name: str
    command: list[str]
    made: Path
    seconds: float = 0.0
    peak_gib: float = 0.0


def demo_stages(output: Path, seed: int) -> list[Stage]:
    """The demo's commands, in order.

    Args:
        output (`Path`): folder for everything.
        seed (`int`): of the pretraining; the corpus is always the same.
    """
    music2vec = [sys.executable, "-m", "music2vec_hf"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    # Left to itself, accelerate gives a process on CPU one thread.
    launch += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "music2vec_hf"]
    audio, corpus, run = output / "synthetic", output / "corpus", output / "music2vec-tiny"
    probes = output / "probes"
    embeddings, results = output / "embeddings.parquet", probes / "results.json"
    report = output / "report.html"
    pretrain = ["pretrain", "--recipe", "tiny", "--corpus", corpus, "--output", run, "--resume", "--seed", seed]
    probe = ["probe", run, "--task", "synthetic", "--data", audio, "--output", probes, "--random-init-seed", seed]
    probe += ["--precision", "auto"]
    stages = [
        ("synth", music2vec, ["synth", audio, "--clips", NUM_CLIPS, "--seed", CORPUS_SEED], audio),
        ("prepare", music2vec, ["prepare", audio / "audio" / "train", corpus], corpus),
        ("pretrain", launch, pretrain, run / "model.safetensors"),
        (
            "embed",
            music2vec,
            ["embed", run, audio / "audio" / "validation", "--output", embeddings, "--precision", "auto"],
            embeddings,
        ),
        ("probe", music2vec, probe, results),
        ("report", music2vec, ["report", probes, run, "--output", output], report),
    ]
    return [Stage(name, [*program, *map(str, words)], made) for name, program, words, made in stages]


def run_demo(output: str | Path = "demo", seed: int = 1) -> Path:
    """Synthesise music, pretrain a small model on it, probe it on four tasks beside its baselines, write a report.

    A demo that was interrupted goes on where it stopped: every stage is resumable.

    Args:
        output (`str` or `Path`): folder for everything.
        seed (`int`): of the pretraining.

    Returns:
        `Path`: of the report.

    Raises:
        ValueError: if a stage fails; its own message stands above.
    """
    from music2vec_hf.common.results import read_results
    from music2vec_hf.probing.report_tables import format_table, verdicts

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    stages = demo_stages(output, seed)
    for number, stage in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {shlex.join(shown(stage.command))}", flush=True)
        run_stage(stage)
    results = read_results(output / "probes")
    print(f"\n{format_table(results)}\n")
    for sentence in verdicts(results):
        print(sentence)
    print(f"\n{summary_table(stages)}")
    (output / "stages.json").write_text(
        json.dumps([{"stage": s.name, "seconds": s.seconds, "peak_gib": s.peak_gib} for s in stages], indent=1) + "\n"
    )
    report = output / "report.html"
    print(f"\nmodel:  {output / 'music2vec-tiny'}\nreport: {report}")
    return report


def shown(command: list[str]) -> list[str]:
    """A stage's command as a person types it."""
    words = command[command.index("music2vec_hf") + 1 :]
    if "accelerate.commands.launch" in command:
        return ["accelerate", "launch", "-m", "music2vec_hf", *words]
    return ["music2vec", *words]


def run_stage(stage: Stage) -> None:
    """Run one stage in its own process and note its wall time and peak memory (of its largest process).

    Raises:
        ValueError: if it does not end with exit code 0.
    """
    started = time.perf_counter()
    # Idle threads that spin for work cost the other core more than they gain.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    process = os.posix_spawn(stage.command[0], stage.command, environment)
    _, status, usage = os.wait4(process, 0)
    stage.seconds = time.perf_counter() - started
    stage.peak_gib = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise ValueError(f"The demo's stage `{stage.name}` ended with exit code {code}; its message stands above.")
    if not stage.made.exists():
        raise ValueError(f"The demo's stage `{stage.name}` did not make {stage.made}.")


def summary_table(stages: list[Stage]) -> str:
    """Time and peak memory of every stage, and their sum."""
    rows = [f"{'stage':<10}{'time':>9}{'peak memory':>14}"]
    rows += [f"{stage.name:<10}{stage.seconds:>7.0f} s{stage.peak_gib:>10.2f} GiB" for stage in stages]
    rows.append(
        f"{'all':<10}{sum(stage.seconds for stage in stages):>7.0f} s{max(s.peak_gib for s in stages):>10.2f} GiB"
    )
    width = min(shutil.get_terminal_size().columns, 40)
    return "\n".join([*rows[:1], "-" * width, *rows[1:]])


__all__ = ["demo_stages", "run_demo"]
