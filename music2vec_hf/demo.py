"""`music2vec demo`: the whole chain on a laptop, offline. Each stage is one of the library's own commands, run as its
own process, so that its time and peak memory are its own and it can be typed again by hand."""

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

NUM_CLIPS, CORPUS_SEED = 2000, 0
BASELINES = ("random-init", "mfcc", "chroma", "mel")


@dataclass
class Stage:
    """One command of the demo, what it took, and the file or folder that shows it is done.

    `words` are what a person types behind `music2vec`, or, for the stage that trains, behind
    `accelerate launch -m music2vec_hf`.
    """

    words: list[str]
    made: Path
    seconds: float = 0.0
    peak_gib: float = 0.0

    @property
    def name(self) -> str:
        """The command's verb."""
        return self.words[0]

    @property
    def shown(self) -> str:
        """The command as a person types it."""
        program = ["accelerate", "launch", "-m", "music2vec_hf"] if self.name == "pretrain" else ["music2vec"]
        return shlex.join([*program, *self.words])

    @property
    def command(self) -> list[str]:
        """The command with this Python; accelerate's settings do not depend on the user's configuration."""
        launch = []
        if self.name == "pretrain":
            launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
            # Left to itself, accelerate gives a process on CPU one thread.
            launch += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return [sys.executable, *launch, "-m", "music2vec_hf", *self.words]


def demo_stages(output: Path, seed: int) -> list[Stage]:
    """The demo's commands, in order. `seed` is the pretraining's: the corpus is always the same."""
    songs, corpus, run, probes = (output / name for name in ("synthetic", "corpus", "music2vec-tiny", "probes"))
    embeddings = output / "embeddings.parquet"
    pretrain = ["pretrain", "--recipe", "demo", "--corpus", corpus, "--output", run, "--resume", "--seed", seed]
    embed = ["embed", run, songs / "audio" / "validation", "--output", embeddings, "--precision", "auto"]
    probe = ["probe", run, "--task", "synthetic", "--data", songs, "--output", probes, "--random-init-seed", seed]
    stages = [
        (["synth", songs, "--clips", NUM_CLIPS, "--seed", CORPUS_SEED], songs),
        (["prepare", songs / "audio" / "train", corpus], corpus),
        (pretrain, run / "model.safetensors"),
        (embed, embeddings),
        ([*probe, "--precision", "auto", "--baselines", *BASELINES], probes / "results.json"),
        (["report", probes, run, "--output", output], output / "report.html"),
    ]
    return [Stage([str(word) for word in words], made) for words, made in stages]


def run_demo(output: str | Path = "demo", seed: int = 1) -> Path:
    """Synthesise music, pretrain a small model on it, probe it on four tasks beside its baselines, write a report.

    All goes into the folder `output`; the path of the report is returned. `seed` is the pretraining's. A demo that was
    interrupted goes on where it stopped: every stage is resumable.

    Raises:
        ValueError: if a stage fails; its own message stands above.
    """
    from music2vec_hf.common.files import read_results, write_json
    from music2vec_hf.probing.report_tables import format_summary

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    stages = demo_stages(output, seed)
    for number, stage in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {stage.shown}", flush=True)
        run_stage(stage)
    results = read_results(output / "probes")
    print("", format_summary(results), sep="\n")
    print(f"\n{'stage':<10}{'time':>9}{'peak memory':>14}\n{'-' * 33}")
    for stage in stages:
        print(f"{stage.name:<10}{stage.seconds:>7.0f} s{stage.peak_gib:>10.2f} GiB")
    total, peak = sum(stage.seconds for stage in stages), max(stage.peak_gib for stage in stages)
    print(f"{'all':<10}{total:>7.0f} s{peak:>10.2f} GiB")
    times = [{"stage": stage.name, "seconds": stage.seconds, "peak_gib": stage.peak_gib} for stage in stages]
    write_json(output / "stages.json", times, indent=1)
    curve = output / "figures" / "training.png"
    print(f"\nmodel:  {output / 'music2vec-tiny'}\ncurve:  {curve}\nreport: {stages[-1].made}")
    return stages[-1].made


def run_stage(stage: Stage) -> None:
    """Run one stage in its own process and note its wall time and peak memory (of its largest process).

    Raises:
        ValueError: if it does not end with exit code 0.
    """
    started = time.perf_counter()
    # An idle thread spins for some microseconds, in which the next product comes, and then leaves its core to others.
    environment = {"GOMP_SPINCOUNT": "10000", **os.environ, "TOKENIZERS_PARALLELISM": "false"}
    process = os.posix_spawn(sys.executable, stage.command, environment)
    _, status, usage = os.wait4(process, 0)
    stage.seconds = time.perf_counter() - started
    stage.peak_gib = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise ValueError(f"The demo's stage `{stage.name}` ended with exit code {code}; its message stands above.")
    if not stage.made.exists():
        raise ValueError(f"The demo's stage `{stage.name}` did not make {stage.made}.")
