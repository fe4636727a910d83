"""Slow: the commands of the pages are run as they are written, also those that train, serve or belong on a cluster.

SMALLER is all that is changed in them. Schedulers are programs on PATH that run the inner command here.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest
from hub_server import TOKEN
from test_docs import EXPENSIVE, HOW, ROOT, blocks, commands, filled, folder, in_python, reachable, ways  # noqa: F401

from music2vec_hf import demo
from music2vec_hf.cli import main
from music2vec_hf.probing.probes import SEARCHES

pytestmark = pytest.mark.slow

TOY = (
    "--max_steps 4 --save_every 2 --log_every 2 --crop_seconds 1 --batch_seconds 4 --mask_group_seconds 4 "
    "--max_seconds_per_device 4 --num_workers 0 --hidden_size 32 --num_hidden_layers 2 --average_top_k_layers 2 "
    "--num_attention_heads 2 --intermediate_size 64 --conv_dim"
)
SMALLER = (
    (r"--recipe (crop5s|small)\b", rf"--recipe \1 {TOY} 16 16 16 16 16 16 16"),
    (r"--recipe (tiny|demo)\b", rf"--recipe \1 {TOY} 16 16"),
    (r"--max_seconds_per_device auto", "--max_seconds_per_device 4"),  # auto asks a GPU for its memory
    (r"--clips \d+", "--clips 80 --clip-seconds 2"),
    (r"(\bprobe .*)", r"\1 --seeds 0 --layers 2"),
    (r"--hours 1000\b", "--hours 0.004"),
    (r"--num-proc 8\b", "--num-proc 2"),
    (r"--array=0-31\b", "--array=0-2"),
    (r"/32\b", "/3"),
    # What a reader puts in.
    (r"\bMODEL\b", "tiny"),
    (r"\b(SOURCE|CLIPS)\b", "my_music"),
)
# Needs 2.0 GB from the pools of Debian; tests/test_real_music.py runs it on packages of its own.
ELSEWHERE = ("examples/real_music/build.py", "--task real")
EXAMPLES = blocks("examples/README.md")[0][1]  # tests/test_examples.py runs these
# Its block is one of examples/README.md.
REPEATED = ("benchmarks/history.md",)


def has_more_than_test_docs_runs(page):
    verbs = re.compile(rf"music2vec(?:_hf)? (?:{'|'.join(EXPENSIVE)})\b")
    return any(
        way == "parsed" or (way == "run" and verbs.search(code))
        for (_, code, _), way in zip(blocks(page), ways(page), strict=True)
    )


PAGES = [page for page in HOW if page not in REPEATED and has_more_than_test_docs_runs(page)]
STAND_INS = {
    "music2vec": 'exec {python} -m music2vec_hf "$@"',
    # The tasks of an array one after another; of a job without one its script, once.
    "sbatch": 'range=$(sed -n "s/^#SBATCH --array=//p" "$1")\n'
    "if [ $range ]; then\n"
    '  for id in $(seq ${{range/-/ }}); do SLURM_ARRAY_TASK_ID=$id bash "$@" || exit; done\n'
    'else SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here SLURM_NTASKS=2 bash "$@"; fi',
    "srun": "for id in $(seq 0 $((SLURM_NTASKS - 1))); do\n"
    '  SLURM_PROCID=$id SLURM_LOCALID=$id "$@" & all+=($!)\ndone\n'
    "for one in ${{all[@]}}; do wait $one || code=$?; done\nexit ${{code:-0}}",
    "scontrol": 'case $1 in show) echo 127.0.0.1;; requeue) echo "$2" >> requeued;; esac',
    "python": 'exec {python} "$@"',
}


def smaller(text):
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The stand-ins, first on PATH; `SLURM` and accelerate find no GPU."""
    (tmp_path / "programs").mkdir()
    for name, script in STAND_INS.items():
        path = tmp_path / "programs" / name
        path.write_text(f"#!/bin/bash\n{script.format(python=sys.executable)}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "programs"


def succeed(words, **settings):
    done = subprocess.run(words, capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def small_demo(stages=demo.demo_stages):
    """The demo's stages at toy size."""

    def toy_stages(output, seed):
        made = stages(output, seed)
        return [replace(stage, words=shlex.split(smaller(shlex.join(stage.words)))) for stage in made]

    return toy_stages


def run_here(stage):
    assert main(stage.words) == 0 and stage.made.exists(), stage.shown


# ---- programs of others ----

LAUNCH = "import runpy; runpy.run_module('accelerate.commands.launch', run_name='__main__')"


@pytest.fixture
def clone(tmp_path):
    """What a bare clone has of what `pip install .` and `make` read, with an environment that is made already."""
    root = tmp_path / "clone"
    shutil.copytree(ROOT / "music2vec_hf", root / "music2vec_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, root)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    toy_demo = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_docs_commands import demo, main, small_demo\n"
        "demo.demo_stages = small_demo()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (root / "toy_demo.py").write_text(toy_demo)
    scripts = {"python": f'exec {sys.executable} "$@"', "music2vec": f'exec {sys.executable} toy_demo.py "$@"'}
    for name, script in scripts.items():
        path = root / ".venv" / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    (root / ".venv" / ".made-from-pyproject").touch()
    return root


def run_pip(words, clone):
    """Into a folder of its own, without what it depends on and without an index: of this project there is a wheel."""
    wheels, target = clone / "wheels", clone / "installed"
    if not wheels.exists():
        build = ["wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
        succeed([sys.executable, "-m", "pip", *build], cwd=clone)
    # pip takes the value for that of `build_isolation`, which the option of this name sets to false.
    settings = {"TARGET": target, "NO_DEPS": 1, "NO_INDEX": 1, "FIND_LINKS": wheels, "NO_BUILD_ISOLATION": 0}
    environment = os.environ | {f"PIP_{name}": str(value) for name, value in settings.items()}
    told = succeed([sys.executable, "-m", "pip", *words], cwd=clone, env=environment)
    assert "does not provide the extra" not in told
    assert (target / "music2vec_hf" / "weights" / "tiny" / "model.safetensors").is_file()
    shutil.rmtree(target)


def run_app(words):
    """The page answers at the address that the command prints, until it is stopped."""
    with subprocess.Popen([sys.executable, "-m", "music2vec_hf", *words], stdout=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        answer = urllib.request.urlopen(address[0], timeout=60).read().decode()
        server.terminate()
    assert "<html" in answer and server.returncode == 0


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two workers; the address of its head."""
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # by default a token, which the other process lacks
    yield ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False).address_info["gcs_address"]
    ray.shutdown()


# ---- the pages ----


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, folder, programs, request, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(SEARCHES, "quick", replace(SEARCHES["quick"], max_steps=60, eval_every=20))
    monkeypatch.setattr(demo, "demo_stages", small_demo())
    monkeypatch.setattr(demo, "run_stage", run_here)  # `make demo` of the README runs them as processes
    (folder / "examples").symlink_to(ROOT / "examples")
    for needed, verb in (
        ("synthetic", "synth synthetic --clips 80 --seed 0"),
        ("embeddings.parquet", "embed tiny my_music --output embeddings.parquet"),
    ):
        if page in ("docs/probing.md", "docs/app.md"):  # other pages make them
            assert main(shlex.split(smaller(verb))) == 0 and (folder / needed).exists()
    for (language, code, above), way in zip(blocks(page), ways(page), strict=True):
        if way == "file":
            (folder / re.findall(r"`([\w.-]+\.yaml)`", above)[-1]).write_text(code)
        elif code.startswith("#!"):
            shutil.rmtree(folder / "OUT", ignore_errors=True)
            (folder / "job.sh").write_text(smaller(code))
            succeed(["sbatch", "job.sh"])
        elif language == "bash" and way in ("run", "parsed") and code != EXAMPLES:
            for line in commands(code):
                if not any(name in line for name in ELSEWHERE):
                    run(line, "RAY_ADDRESS" in code, folder, request)
                    print(capsys.readouterr().out[-300:])


def run(line, on_ray, folder, request):  # noqa: F811
    """A command of a page, as it is written but for SMALLER."""
    line = smaller(line)
    program, *words = shlex.split(line)
    if re.search(r"\b(prepare|export) \S+ OUT\b", line):
        shutil.rmtree(folder / "OUT", ignore_errors=True)  # of the block above
    if program == "accelerate":
        hub = "online" if "m-a-p/" in line else "offline"
        if hub == "online":
            request.getfixturevalue("reachable")
        python = request.getfixturevalue(hub)
        python.succeed(
            LAUNCH, *words[1:], folder=folder, ACCELERATE_USE_CPU="true", HF_TOKEN=TOKEN, PYTHONPATH=str(ROOT)
        )
    elif program in ("make", "pip"):
        clone = request.getfixturevalue("clone")
        if program == "pip":
            run_pip(words, clone)
        else:
            told = succeed([program, *words], cwd=clone)
            assert "1 passed" in told if words == ["test"] else (clone / "demo" / "report.html").is_file()
    elif program == "python":
        succeed([program, *words], cwd=folder)
    elif words[0] == "app":
        run_app(words)
    elif on_ray:
        address = request.getfixturevalue("cluster")
        request.getfixturevalue("offline").succeed(
            in_python(line), folder=folder, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled"
        )
    else:
        assert main(words) == 0, line


def test_what_is_not_run_again_is_run_elsewhere():
    known = {code for _, code, _ in blocks("examples/README.md")}
    assert all(code in known for page in REPEATED for language, code, _ in blocks(page) if language == "bash")


# ---- SLURM ----

SCRIPT = ROOT / "examples" / "launch" / "slurm.sh"


@pytest.mark.parametrize("page", ["docs/pretraining.md"])
def test_the_script_for_slurm_trains_on_two_tasks(page, folder, programs):  # noqa: F811
    (folder / "slurm.sh").write_text(smaller(SCRIPT.read_text()))
    succeed(["sbatch", "slurm.sh", "corpus", "two"], cwd=folder)
    assert (folder / "two" / "model.safetensors").is_file() and not (folder / "requeued").exists()
    assert '"num_devices": 2' in (folder / "two" / "run.json").read_text()


@pytest.mark.parametrize("code, requeued", [(75, True), (1, False)])
def test_the_script_for_slurm_requeues_what_was_preempted(programs, tmp_path, code, requeued):
    (programs / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    done = subprocess.run(["sbatch", str(SCRIPT), "corpus", "two"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
