"""What makes a repository load without this library: copies of the model files, and the names that lead to them."""

import importlib
import json
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.heads_music2vec import Music2VecForAudioFrameClassification, Music2VecForSequenceClassification
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining
from music2vec_hf.model.pipeline_music2vec import CUSTOM_PIPELINES

CONFIG, EXTRACTOR = "config.json", "preprocessor_config.json"
# File -> Auto class -> ours. `save_pretrained` would only name the class that is being saved.
_AUTO_CLASSES = {
    CONFIG: {
        "AutoConfig": Music2VecConfig,
        "AutoModel": Music2VecModel,
        "AutoModelForPreTraining": Music2VecForPreTraining,
        "AutoModelForAudioClassification": Music2VecForSequenceClassification,
        "AutoModelForAudioFrameClassification": Music2VecForAudioFrameClassification,
    },
    EXTRACTOR: {"AutoFeatureExtractor": Music2VecFeatureExtractor},
}
_PIPELINE_MODULE = "music2vec_hf.model.pipeline_music2vec"


def with_remote_code(folder: str | Path) -> dict[str, Path | bytes]:
    """The files that let transformers load a Music2Vec folder by `trust_remote_code=True`.

    Args:
        folder (`str` or `Path`): with `config.json` and `preprocessor_config.json`.

    Returns:
        `dict[str, Path | bytes]`: name to file: the two with `auto_map` (and, for a head for clips, the pipeline), and
        the Python files that these name, with all that they import from each other.

    Source: transformers `dynamic_module_utils.custom_object_save`.
    """
    modules = {_PIPELINE_MODULE}
    files: dict[str, Path | bytes] = {}
    for name, classes in _AUTO_CLASSES.items():
        content = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
        if name == CONFIG or content.get("feature_extractor_type") == Music2VecFeatureExtractor.__name__:
            content["auto_map"] = {auto: f"{_module(cls)}.{cls.__name__}" for auto, cls in classes.items()}
        if Music2VecForSequenceClassification.__name__ in (content.get("architectures") or ()):
            content["custom_pipelines"] = CUSTOM_PIPELINES
        files[name] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
        modules |= {cls.__module__ for cls in classes.values()}
    for module in sorted(modules):
        source = importlib.import_module(module).__file__
        for path in map(Path, [source, *get_relative_import_files(source)]):
            files[path.name] = path
    return files


def _module(cls: type) -> str:
    return cls.__module__.rpartition(".")[2]


__all__ = ["CONFIG", "EXTRACTOR", "with_remote_code"]
