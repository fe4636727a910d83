"""Every command of examples/README.md runs as it is written there, on a toy model and a few clips."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_hub import publish_model, publish_task

from music2vec_hf.probing.suite import run_suite
from music2vec_hf.synthetic.generator import synthesize_corpus

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
COMMANDS = re.findall(r"^(python examples/.+)$", (EXAMPLES / "README.md").read_text(), flags=re.M)


def test_the_readme_has_a_command_for_every_script():
    table = (EXAMPLES / "README.md").read_text()
    for script in SCRIPTS:
        assert any(f"examples/{script.name} " in command for command in COMMANDS), script.name
        assert f"| `{script.name}` |" in table
        assert script.read_text().count("\n") < 80


@pytest.fixture
def workplace(tmp_path, encoder_folder):
    """What a user has after the demo, in small: `demo/music2vec-tiny`, `demo/synthetic`, and three runs' probes."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "demo").mkdir()
    synthesize_corpus(tmp_path / "demo" / "synthetic", 40, seed=0, clip_seconds=2.0)
    model = str(shutil.copytree(encoder_folder, tmp_path / "demo" / "music2vec-tiny"))
    sources = {"music2vec-tiny": model, "random-init": "random-init"}
    data, probes = tmp_path / "demo" / "synthetic", tmp_path / "demo-1" / "probes"
    run_suite(sources, "synthetic-genre", data, probes, seeds=(0,), layers=["3"], progress=False)
    for copy in ("demo-2", "demo-3"):
        shutil.copytree(tmp_path / "demo-1", tmp_path / copy)
    return tmp_path


EXPECTED = {
    "embed_folder.py": r"synth-0-000001.flac  ->  synth-0-\d+.flac  \(-?[01]\.\d\d\)",
    "probe_layers.py": r"layer conv  +0\.\d+[^$]*layer +3  +0\.\d+[^$]*Chosen on validation: layer \w+; accuracy",
    "finetune.py": r"test_accuracy +[01]\.\d{4}[^$]*The model is in genre-\w+\.",
    "classify_song.py": r"\w+ +0\.\d\d\n[^$]* 0\.0 to +2\.0 s  \w+",
    "mteb_music.py": r"m-a-p/music2vec-v1, layer 6\nBeijingOpera +accuracy +[01]\.\d{3}\nGTZANGenre +accuracy +[01]\.",
    "compare_seeds.py": r"music2vec-tiny minus random-init, paired 95 % interval\n  synthetic-genre +[+-]0\.\d{3}",
}


@pytest.mark.slow  # processes that import torch, one after another
def test_the_commands_of_the_readme_run(workplace, hub, home):
    publish_model(hub)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        words = shlex.split(command)
        if "finetune.py" in command:  # the last of two settings of one name counts: less of the same
            words += ["--num_train_epochs", "1", "--eval_steps", "2", "--save_steps", "2", "--use_cpu", "True"]
        if "mteb_music.py" in command:
            for task in words[words.index("--tasks") + 1 : words.index("--layer")]:
                publish_task(hub, task)
            environment |= hub.environment(home)
        done = subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert re.search(EXPECTED[Path(words[1]).name], done.stdout), f"{command}\n{done.stdout}"
    assert (workplace / "three-seeds" / "results.json").is_file()


@pytest.mark.slow  # processes that import torch, one after another
def test_an_error_is_one_sentence(workplace):
    words = [sys.executable, "examples/finetune.py", "examples/finetune_genre.yaml", "--label", "mood"]
    done = subprocess.run(words, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: There is no column mood in the split train." in done.stderr and "Traceback" not in done.stderr
