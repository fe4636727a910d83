"""A model folder to the Hub: weights, extractor, generated card, and the code that loads them without this library."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.dynamic_module_utils import get_relative_import_files

from music2vec_hf.audio.reading import encode_flac
from music2vec_hf.common.files import PARTS, RESULTS, check_new_folder, read_json, with_format, written_aside
from music2vec_hf.common.hub import explain_push_errors
from music2vec_hf.hub.card import CONFIG, describe_run, read_model_config, read_scores, weight_files, write_model_card
from music2vec_hf.model import configuration_music2vec
from music2vec_hf.synthetic.generator import synthesize_clip

CARD, EXTRACTOR, EXAMPLE = "README.md", "preprocessor_config.json", "example.flac"
_NOTICES = ("ATTRIBUTION.md", "LICENSE", "NOTICE")  # what a licence may ask to go along
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Left in a repository from an earlier push they would be loaded instead of, or beside, the new ones.
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OUR_EXTRACTOR = "Music2VecFeatureExtractor"


@dataclass(frozen=True)
class Publication:
    """What a push uploads: name in the repository to a file of the folder, or to what was made of it.

    `left_out` is what else lies in the folder and stays there.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }

    def write(self, out: str | Path) -> Path:
        """Write the files to a new folder, which loads as the repository would; ValueError if it is not empty."""
        with written_aside(check_new_folder(out, "the files of the push")) as folder:
            folder.mkdir()
            for name, file in self.files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(file, bytes):
                    (folder / name).write_bytes(file)
                else:
                    shutil.copyfile(file, folder / name)
        return Path(out)


def make_publication(
    folder: str | Path,
    repo_id: str,
    licence: str | None,
    results: Sequence[str | Path] | None = None,
    revision: str | None = None,
    draw: Callable[..., list[dict]] | None = None,
) -> Publication:
    """Collect what a push uploads: configuration, weights, extractor, code, scores, card with its figures, an example
    to hear, and the notices of a licence; never training state.

    Args:
        folder (`str` or `Path`): a finished run, one of its checkpoints, or any Music2Vec or data2vec-audio model.
        licence (`str`, *optional*): identifier of the Hub for the weights' licence.
        results (`Sequence`, *optional*): results.json files; see [`read_scores`].
        draw (*optional*): draws the figures, `draw_all` of the report; without it the card has none.

    Raises:
        ValueError: if there is no whole model in safetensors with its extractor, or no licence.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    if not (folder / EXTRACTOR).is_file():
        raise ValueError(
            f"{folder} has no {EXTRACTOR}; write one with "
            f"`Music2VecFeatureExtractor().save_pretrained({str(folder)!r})`."
        )
    if licence is None or not _LICENCE.fullmatch(licence):
        given = "is not given" if licence is None else f"is {licence!r}"
        raise ValueError(
            f"The licence of the weights {given}. Add --license with one of the Hub's identifiers, for example "
            "apache-2.0, mit, cc-by-4.0 or cc-by-nc-4.0, as far as the rights in the training audio allow."
        )
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG, EXTRACTOR)}
    files |= {name: folder / name for name in _NOTICES if (folder / name).is_file()}
    files |= {path.name: path for path in weight_files(folder)}
    if config["model_type"] == "music2vec":
        files |= with_remote_code(folder)
    scores = read_scores(folder, results)
    if scores["records"]:
        rows = {part: [{k: v for k, v in row.items() if k != "of_model"} for row in scores[part]] for part in PARTS}
        files[RESULTS] = (json.dumps(with_format(rows), indent=1) + "\n").encode()
    figures, drawn = _figures(scores, describe_run(folder), repo_id, draw) if draw else ([], {})
    files |= drawn | {EXAMPLE: _example()}
    files[CARD] = write_model_card(folder, repo_id, licence, scores, revision, figures, EXAMPLE).encode()
    return Publication(files, sorted(path.name for path in folder.iterdir() if path.name not in files))


def _figures(
    scores: Mapping, run: Mapping | None, repo_id: str, draw: Callable[..., list[dict]]
) -> tuple[list[dict], dict[str, bytes]]:
    """Figures of the scores and of the run, and their files: what the report shows of the same."""
    runs = {repo_id.rpartition("/")[2]: run["metrics"]} if run else {}
    with tempfile.TemporaryDirectory() as folder:
        figures = draw(scores, scores["sources"], runs, Path(folder))
        return figures, {each["file"]: (Path(folder) / each["file"]).read_bytes() for each in figures}


@lru_cache
def _example() -> bytes:
    """Ten seconds of music made by rule, which nobody has rights in, as FLAC."""
    return encode_flac(synthesize_clip(seed=0, index=0, clip_seconds=10.0)[0])


def with_remote_code(folder: str | Path) -> dict[str, Path | bytes]:
    """The files that let transformers load a Music2Vec folder by `trust_remote_code=True`.

    Returns:
        `dict[str, Path | bytes]`: name to file: the two with `auto_map` (and the pipeline, for a head that
        it serves), and the Python files that these name, with all that they import from each other.

    Source: transformers `dynamic_module_utils.custom_object_save`.
    """
    config, extractor = (read_json(Path(folder) / name) for name in (CONFIG, EXTRACTOR))
    config["auto_map"] = configuration_music2vec.AUTO_MAP
    pipelines = configuration_music2vec.custom_pipelines(config.get("architectures"), config.get("frame_events"))
    if pipelines:
        config["custom_pipelines"] = pipelines
    if extractor.get("feature_extractor_type") == _OUR_EXTRACTOR:
        extractor["auto_map"] = {"AutoFeatureExtractor": f"feature_extraction_music2vec.{_OUR_EXTRACTOR}"}
    contents = {CONFIG: config, EXTRACTOR: extractor}
    files: dict[str, Path | bytes] = {
        name: (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() for name, content in contents.items()
    }
    source = configuration_music2vec.__file__
    return files | {path.name: path for path in map(Path, sorted({source, *get_relative_import_files(source)}))}


def push_model(publication: Publication, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload in one commit, which is there as a whole or not at all. Weights of an earlier push are removed by it.

    Args:
        private (`bool`): whether a new repository is seen by its owner alone.
        revision (`str`, *optional*): branch; made if it is not there.

    Raises:
        ValueError: if the Hub refuses, the upload breaks off, or `private` is asked for and the repository is public.
    """
    api = HfApi()
    with explain_push_errors("The model", repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public, so nothing was uploaded. Name another one.")
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if _WEIGHTS.fullmatch(name) and name not in publication.files]
        operations = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, file) for name, file in publication.files.items()]
        api.create_commit(repo_id, operations, commit_message="Pushed with music2vec push", revision=revision)
    return str(url)
