"""Python that has imported what is slow to import: each script runs in a fork of it, as a process of its own."""

import copy
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

# What a stranger to this library has. None of it is ours: a script may be one that has not installed us.
MODULES = (
    "torch",
    "datasets",
    "accelerate",
    "soundfile",
    "pandas",
    "sklearn.linear_model",
    "aiohttp",
    "transformers.pipelines",
    "transformers.modeling_utils",
)

# What `HF_HUB_OFFLINE` in the environment does before they are imported.
OFFLINE = """
import os, datasets.config, huggingface_hub.constants
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
for module in (huggingface_hub.constants, datasets.config):
    module.HF_HUB_OFFLINE = True
"""

# Commands of ours, each with its token: of each a line with its exit code and what it printed on either stream.
COMMANDS = """
import contextlib, io, json, os, sys
from music2vec_hf.cli import main
for token, *words in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def fork(function, *arguments):
    """A function in a fork of this process, which needs no imports and which a test can kill."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(function, *arguments))
    process.start()
    return process


def _alone(function, *arguments):
    import torch

    torch.set_num_threads(1)  # a fork has none of the threads that its parent started
    function(*arguments)


def as_rank(rank, port, host="127.0.0.1"):
    """What torchrun sets for one of two processes."""
    return {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WarmPython:
    """`with WarmPython() as python:` starts it; `python.run(script, ...)` is a run of `python -c script`.

    `environment` is added to this process' own; the libraries of Hugging Face read theirs when they are imported.
    """

    before = ""

    def __init__(self, environment=(), modules=MODULES):
        self.modules = modules
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
        self.environment.pop("HF_TOKEN", None)

    def __enter__(self):
        words = [sys.executable, __file__, *self.modules]
        self.process = subprocess.Popen(
            words, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def offline(self):
        """The same Python, told that there is no Hub."""
        same = copy.copy(self)
        same.before = OFFLINE
        return same

    def run(self, script, *arguments, folder=".", **environment):
        """Run a script in a folder, with more variables in its environment; its exit code and what it printed."""
        script = self.before + script
        job = [script, [str(word) for word in arguments], str(folder), environment]
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return subprocess.CompletedProcess(script, *json.loads(self.process.stdout.readline()))

    def succeed(self, script, *arguments, **where):
        """Run a script that must end well; what it printed."""
        done = self.run(script, *arguments, **where)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def commands(self, *calls):
        """Run `(token, *words)`, one after another; the exit code of each, what it printed, and what it said."""
        words = [list(map(str, call)) for call in calls]
        return [json.loads(line) for line in self.succeed(COMMANDS, json.dumps(words)).splitlines()]


def run_as_main(script):
    """What the fork does; its exit code."""
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(compile(script, "<script>", "exec"), vars(sys.modules["__main__"]))
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve():
    import importlib
    import tempfile

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        script, arguments, folder, environment = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(folder)
                os.environ.update(environment)
                sys.argv = ["-c", *arguments]
                os._exit(run_as_main(script))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            err.seek(0)
            answers.write(json.dumps([code, out.read(), err.read()]) + "\n")
            answers.flush()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent)
    serve()
