"""The pages: every block of code runs, or is checked as far as it can be; every link leads somewhere; rules of prose.

A block is run as it is written, in a copy of a folder with made-up songs, a corpus, a run and a tagger.
"""

import importlib.util
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hub_server import TOKEN
from toy_hub import publish_model, publish_task
from toy_model import SIZES, save_model

from music2vec_hf import Music2VecConfig, Music2VecForPreTraining, Music2VecForSequenceClassification, pretrained
from music2vec_hf.cli import build_parser, main
from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.pretraining.arguments import load_recipe
from music2vec_hf.verbs import read_overrides

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "MODEL_CARD.md", "examples/README.md", "benchmarks/learning.md", "benchmarks/history.md"]
PAGES += ["benchmarks/frame_tasks.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)

# What happens to each block of a page, in order:
#   run      it is run; of its commands those in EXPENSIVE, and other programs than ours, are parsed only here
#   hub      it is run in a process that reaches a Hub on loopback
#   parsed   its commands are parsed by the parser of the command line, and the recipe that they name is made
#   file     it is written to the file that the text above names
#   text     it is no code
# test_docs_commands.py, slow, runs what is only parsed here, at toy size.
HOW = {
    "README.md": "parsed hub run parsed",
    "docs/app.md": "parsed",
    "docs/architecture.md": "text",
    "docs/corpus.md": "parsed run parsed parsed parsed parsed parsed hub run run",
    "docs/distillation.md": "parsed",
    "docs/embeddings.md": "run run hub",
    "docs/finetuning.md": "file run run",
    "docs/heads.md": "run run",
    "docs/hub.md": "hub parsed",
    "docs/pretraining.md": "run",
    "docs/probing.md": "run",
    "docs/tutorial.md": "run parsed run run run text file run run run run",
    "benchmarks/history.md": "parsed text",
    "examples/README.md": "parsed parsed",  # tests/test_examples.py runs the first
}
LONG, SLOW = ("docs/embeddings.md", "docs/finetuning.md"), pytest.mark.slow
EXPENSIVE = ("app", "demo", "pretrain", "probe", "synth")  # a server, or minutes


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, code and the text above of every block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(found[1], found[2], text[: found.start()]) for found in BLOCK.finditer(text)]


def ways(page: str) -> list[str]:
    return HOW.get(page, "").split()


def test_every_block_has_its_way():
    counts = {page: len(blocks(page)) for page in PAGES}
    assert {page: len(ways(page)) for page in PAGES} == counts, "name in HOW what happens to the new block"


# ---- a folder as a reader has it ----


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """`song.mp3` of 30 s, `my_music`, `labelled`, `corpus`, `run`, `probes`, and a `tagger`."""
    root = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)

    def song(name, seconds, rate=22_050):
        time = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * time) + 0.03 * rng.standard_normal(len(time))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone, rate)

    song("song.mp3", 30, 44_100)
    for number in range(3):
        song(f"my_music/{number}.flac", 7)
    for split in ("train", "validation"):
        for label in ("calm", "lively"):
            song(f"labelled/{split}/{label}/{label}.flac", 6)
    prepare_corpus(root / "my_music", root / "corpus", progress=False)
    torch.manual_seed(0)
    save_model(Music2VecForPreTraining(Music2VecConfig(**SIZES)), root / "run")
    shutil.copy(pretrained("tiny") / "run.json", root / "run")
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    head = Music2VecForSequenceClassification.from_pretrained(pretrained("tiny"), num_labels=2)
    save_model(head, root / "finished" / "tagger")
    shutil.copytree(ROOT / "examples" / "results" / "demo", root / "probes")
    return root


@pytest.fixture
def folder(filled, page, tmp_path, monkeypatch, own_cache):
    """A copy of it, in which a page's blocks are run one after the other."""
    shutil.copytree(filled, tmp_path / "here")
    if page == "docs/heads.md":  # other pages make it
        (tmp_path / "here" / "finished" / "tagger").rename(tmp_path / "here" / "tagger")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def reachable(hub, page):
    """What the pages name on the Hub."""
    publish_model(hub)
    if page == "docs/embeddings.md":
        publish_task(hub, "BeijingOpera")


# ---- running and parsing ----


@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW if page in LONG else ()) for page in HOW])
def test_the_blocks_of_a_page(page, folder, request, capsys):
    names = {"__name__": "__main__"}
    for (language, code, above), way in zip(blocks(page), ways(page), strict=True):
        if way == "file":
            (folder / re.findall(r"`([\w.-]+\.yaml)`", above)[-1]).write_text(code)
        elif way == "hub":
            request.getfixturevalue("reachable")
            script = code if language == "python" else "".join(f"{in_python(line)}\n" for line in commands(code))
            printed = request.getfixturevalue("online").succeed(script, folder=folder, HF_TOKEN=TOKEN)
            check_printed(code, printed)
        elif way == "run" and language == "python":
            exec(compile(code, f"{page}: {code[:40]}", "exec"), names)
            check_printed(code, capsys.readouterr().out)
        elif way in ("run", "parsed"):
            for line in commands(code):
                words = parse(line)
                if way == "run" and words and words[0] not in EXPENSIVE:
                    code_of_exit = main(words)
                    assert code_of_exit == 0, f"{page}: {line}\n{capsys.readouterr().err}"


def commands(code: str) -> list[str]:
    """The lines of a block for a shell, without comments and settings of the environment."""
    lines = [re.sub(r"\s+#.*|^#.*", "", line).strip() for line in code.splitlines()]
    return [re.sub(r"^([A-Z_]+=\S+ )+", "", line) for line in lines if line]


def in_python(line: str) -> str:
    """A command of ours as a line of Python that ends a script where it fails."""
    return f"import sys; from music2vec_hf.cli import main; assert main({parse(line)!r}) == 0"


def parse(line: str) -> list[str]:
    """Check a command as far as it can be without running it; the words for our own parser, or none."""
    program, *words = shlex.split(line)
    if program == "accelerate":
        assert words[:3] == ["launch", "-m", "music2vec_hf"], line
        program, words = "music2vec", words[3:]
    if program == "music2vec":
        values, more = build_parser().parse_known_args(words)
        if words[0] in ("pretrain", "distill"):
            load_recipe(values.recipe, **read_overrides(more))
        assert not more or words[0] in ("pretrain", "distill", "finetune"), line
        return words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.M), line
    elif program == "pip":
        extra = re.findall(r"\[(\w+)\]", line)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install" and set(extra) <= set(known), line
    else:
        assert program == "python" and (ROOT / words[0]).is_file(), line
    return []


def check_printed(code: str, printed: str) -> None:
    """`print(x)  # (1, 5, 256): ...` has printed what its comment says, in order."""
    place = 0
    for said in re.findall(r"^print\(.*\)  # (\([\d, ]+\))", code, flags=re.M):
        assert said in printed[place:], f"{said} was not printed, but {printed}"
        place = printed.index(said, place) + 1


def test_the_jobs_of_the_readme_are_commands():
    table = (ROOT / "README.md").read_text().split("## I want to ...")[1].split("\n## ")[0]
    jobs = re.findall(r"`((?:music2vec|accelerate) [^`]+)`", table)
    verbs = {parse(job)[0] for job in jobs}
    assert len(jobs) >= 13 and {"embed", "similar", "finetune", "pretrain", "probe", "push"} <= verbs


# ---- links ----


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found, text = set(), BLOCK.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page, to files and headings, that lead nowhere."""
    broken = []
    links = re.findall(r"\]\((?!\w+:)([^)\s]*)\)", BLOCK.sub("", text)) + re.findall(r'src="(?!\w+:)([^"]+)"', text)
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [*PAGES, "music2vec_hf/weights/tiny/README.md"])
def test_every_link_leads_somewhere(page):
    assert broken_links(ROOT / page, (ROOT / page).read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    text = (
        "[a](nowhere.md) [b](docs/hub.md#no-such-heading) [c](docs/hub.md#the-card) [d](#results) [e](https://x.org)"
    )
    assert broken_links(ROOT / "README.md", text) == ["nowhere.md", "docs/hub.md#no-such-heading"]


# ---- prose ----

spec = importlib.util.spec_from_file_location("prose", ROOT / "docs" / "prose.py")
prose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prose)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("It reads the the file.", "repeated word: 'the the'"),
        ("It has a encoder.", "article: 'a encoder'"),
        ("It is an model.", "article: 'an model'"),
        ("It is a mp3 file.", "article: 'a mp3'"),
        ("It ends here ..", "doubled stop: '..'"),
        ("A word , and another.", "space before a stop: 'd ,'"),
        ("word " * 60 + "end.", "sentence of 61 words"),
        ("x" * 150, "line of 150 characters"),
        ("As of commit 1a2b3c4 it did.", "commit: 1a2b3c4"),
    ],
)
def test_the_rules_of_prose_find_faults(text, fault):
    assert any(each.startswith(fault) for each in prose.faults(text, page=True))


@pytest.mark.parametrize(
    "text",
    [
        "A user has an mp3, an honest hour of it, a URL, a unit, an H200, a GPU and a FLAC; a one-line answer.",
        "Code is left out: `a encoder the the`, [a link](../other.md), and\n\n```\na encoder ..\n```\n",
        "| a table | of many cells |\n\n- A list\n- with words",
    ],
)
def test_the_rules_of_prose_leave_good_text_alone(text):
    assert list(prose.faults(text, page=True)) == []
