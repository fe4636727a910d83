"""The errors that a newcomer meets first: each is one sentence, and says what to type next."""

import contextlib
import re
import shutil
import sys

import pytest
import soundfile
from toy_audio import noise

from music2vec_hf import pretrained
from music2vec_hf.cli import main
from music2vec_hf.finetuning import fitting  # noqa: F401  what it imports looks for peft, and takes None for a broken one

SYNTH = "`music2vec synth {} --clips 200 --seed 0`"
TINY = "`tiny` comes with the library and needs no network"
EMBED = "`music2vec embed tiny FOLDER --output e.parquet`"

# What is typed in the folder of the fixture below, how the sentence begins, and what it tells to do.
ERRORS = [
    # no corpus
    ("pretrain --corpus nowhere --output run", "nowhere does not exist.", "`music2vec prepare FOLDER CORPUS`"),
    ("pretrain --corpus nowhere --output run", "nowhere does not exist.", SYNTH.format("nowhere")),
    ("prepare nowhere corpus", "nowhere does not exist.", "Name a folder of audio"),
    ("inspect nowhere", "nowhere does not exist.", SYNTH.format("nowhere")),
    ("embed tiny nowhere --output e.parquet", "nowhere does not exist.", "Name a folder of audio"),
    ("probe tiny --task synthetic --data nowhere --output p", "'nowhere' has no metadata.csv", "`music2vec synth DIR"),
    ("finetune songs.yaml --corpus nowhere", "nowhere does not exist.", "Name a folder of audio"),
    ("finetune songs.yaml --mode frozen", "songs has no split 'validation', only train;", "folders train, validation"),
    ("finetune absent.yaml", "There is no absent.yaml.", "`model: tiny`, `corpus: FOLDER`, `label: COLUMN`"),
    ("similar e.parquet songs/0.wav", "There is no e.parquet.", EMBED),
    ("report nowhere --output page", "There are no results at 'nowhere'", "`music2vec probe` writes them"),
    ("merge empty", "empty holds no parts to merge", "`music2vec prepare SOURCE empty --shard i/n`"),
    # a value that cannot be meant
    ("synth OUT --clips 0 --seed 0", "`num_clips` is 0", "from 1"),
    ("pretrain --corpus C --output run --mask_time_lenght 5", "The recipe", "Did you mean `mask_time_length`?"),
    ("pretrain --corpus C --output run --seed", "`seed` is True.", "Use a value of type int"),
    ("finetune --mode frozen c.yaml", "'frozen' is no .yaml file.", "Write `music2vec finetune CONFIG.yaml"),
    # an empty folder, or one without audio
    ("prepare empty corpus", "empty holds neither Parquet, .tar nor audio files", SYNTH.format("DIR")),
    ("prepare texts corpus", "texts holds neither Parquet, .tar nor audio files", SYNTH.format("DIR")),
    ("pretrain --corpus empty --output run", "empty holds neither", SYNTH.format("DIR")),
    ("embed tiny empty --output e.parquet", "empty holds neither", SYNTH.format("DIR")),
    ("report empty --output page", "There are no results at 'empty/results.json'", "`music2vec probe` writes them"),
    ("push empty user/name --license mit", "empty has no config.json", "`music2vec pretrain` wrote"),
    # a wrong MODEL
    ("embed tinny songs --output e.parquet", "tinny is neither a folder here nor a model that the Hub gives", TINY),
    ("embed user/nothing songs --output e.parquet", "user/nothing is neither", TINY),
    ("embed empty songs --output e.parquet", "empty has no config.json, so there is no model in it.", "or `tiny`"),
    ("export user/nothing plain", "user/nothing is neither", TINY),
    ("export empty plain", "empty has no config.json", "or `tiny`"),
    ("similar library.parquet songs/0.wav --model user/nothing", "user/nothing is neither", TINY),
    ("finetune labelled.yaml --model user/nothing", "user/nothing is neither", TINY),
    ("recipes crop6s", "There is no recipe 'crop6s'.", "Use one of"),
    # no GPU
    ("embed tiny songs --output e.parquet --device cuda", "`device` is 'cuda', but torch finds", "--device cpu"),
    ("similar library.parquet songs/0.wav --device cuda", "`device` is 'cuda', but torch", "--device cpu"),
    ("probe tiny --task synthetic --data songs --output p --device cuda", "`device` is 'cuda'", "--device cpu"),
    # an extra that is not installed
    ("export tiny plain --format onnx", "ONNX needs onnx", "pip install 'music2vec_hf[onnx]'"),
    ("finetune labelled.yaml --mode lora", "Mode lora needs peft", "pip install 'music2vec_hf[finetune]'"),
    ("prepare songs corpus --engine ray", "`engine` is ray, which is not", "`pip install 'music2vec_hf[cluster]'`"),
    ("embed tiny song.wma --output e.parquet", "None of the 1 files", "`pip install 'music2vec_hf[codecs]'`"),
    # no network
    ("prepare user/nothing corpus", "user/nothing is neither a folder here nor a data set", "the connection"),
    ("inspect user/nothing", "user/nothing is neither a folder here nor a data set", "the connection"),
    ("pretrain --corpus user/nothing --output run", "user/nothing is neither a folder here nor a data", "connection"),
    ("pretrain --corpus songs --output run --init_from user/nothing", "user/nothing is neither", TINY),
    ("push tiny-copy user/name --license mit", "The model cannot be pushed to user/name", "push it again"),
]  # fmt: skip
EXTRAS = ("onnx", "peft", "ray", "torchcodec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are typed; none of them changes it."""
    root = tmp_path_factory.mktemp("first")
    for name in ("songs", "empty", "texts", "labelled/train/a", "labelled/train/b", "labelled/validation/a"):
        (root / name).mkdir(parents=True)
        if name.startswith(("songs", "labelled")):
            soundfile.write(root / name / "0.wav", noise(2, len(name)), 16_000)
    (root / "texts" / "notes.txt").write_text("no music")
    (root / "song.wma").write_bytes(b"anything at all")
    for name in ("songs", "labelled"):
        lines = f"model: tiny\ncorpus: {name}\nlabel: label\noutput_dir: tagger\nmode: lora\nuse_cpu: true\n"
        (root / f"{name}.yaml").write_text(lines)
    shutil.copytree(pretrained("tiny"), root / "tiny-copy")
    with contextlib.chdir(root):
        assert main(["embed", "tiny", "songs", "--output", "library.parquet"]) == 0
    return root


@pytest.fixture(autouse=True)
def bare(folder, own_cache, monkeypatch):
    """A machine without a GPU and without the extras."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in (*EXTRAS, "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("command, sentence, advice", ERRORS, ids=[" ".join(row[0].split()[:3]) for row in ERRORS])
def test_it_is_one_sentence_with_what_to_type_next(command, sentence, advice, folder, capsys):
    before = set(folder.rglob("*"))
    assert main(command.split()) == 1
    printed = capsys.readouterr().err
    (said,) = [line for line in re.split("[\r\n]", printed) if line.startswith("music2vec: ")]
    assert said.startswith(f"music2vec: {sentence}") and advice in said
    assert "Traceback" not in printed and "[Errno" not in said
    assert not [path for path in set(folder.rglob("*")) - before if path.name in ("config.json", "data", "e.parquet")]


@pytest.mark.parametrize(
    "command, words",
    [
        ("pretrain --output run", "the following arguments are required: --corpus"),
        ("embed tiny", "the following arguments are required: INPUT, --output"),
        ("embeds tiny songs", "invalid choice: 'embeds' (choose from"),
        ("", "the following arguments are required: VERB"),
        ("recipes --wibble", "unrecognized arguments: --wibble"),
    ],
)
def test_a_command_that_is_not_whole_shows_its_usage(command, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("usage: music2vec") and words in said
