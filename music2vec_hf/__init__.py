"""Music2Vec (Li et al. 2022) as a Hugging Face model library: pretraining, layer-wise embeddings, honest probes.

Importing the package loads neither torch nor transformers. Our classes join transformers' Auto classes right after
transformers is imported, or at once where it already is: `import music2vec_hf` before or after it is all that
`AutoModel.from_pretrained` needs.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from music2vec_hf.moved import keep_old_paths

__version__ = "0.1.0"

_PUBLIC = {
    "Music2VecConfig": "model.configuration_music2vec",
    "Music2VecFeatureExtractor": "model.feature_extraction_music2vec",
    "Music2VecAudioClassificationPipeline": "model.pipeline_music2vec",
    "Music2VecForAudioFrameClassification": "model.heads_music2vec",
    "Music2VecForPreTraining": "model.modeling_music2vec",
    "Music2VecForSequenceClassification": "model.heads_music2vec",
    "Music2VecModel": "model.encoder_music2vec",
    "EMATeacher": "model.teacher_music2vec",
    "sample_mask_group": "model.masking_music2vec",
    "sample_mask_time_indices": "model.masking_music2vec",
    "convert_fairseq_state_dict": "hub.conversion",
    "embed": "features.embeddings",
    "load_recipe": "pretraining.arguments",
    "pretrained": "common.weights",
}
__all__ = sorted(_PUBLIC)

# Classes of transformers that find a class by the type of a model, and ours that they find.
_AUTO_CLASSES = {
    "AutoFeatureExtractor": "Music2VecFeatureExtractor",
    "AutoModel": "Music2VecModel",
    "AutoModelForPreTraining": "Music2VecForPreTraining",
    "AutoModelForAudioClassification": "Music2VecForSequenceClassification",
    "AutoModelForAudioFrameClassification": "Music2VecForAudioFrameClassification",
}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'music2vec_hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"music2vec_hf.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])


class _WhenLoaded:
    """A finder that finds nothing itself: it has our classes registered as soon as `transformers` has run, when none
    of its other modules is half imported, and a `torchaudio` that cannot run say what to do."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        run = {"transformers": _run_transformers, "torchaudio": _run_torchaudio}.get(name)
        if run is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(run, spec.loader.exec_module)
        return spec


def _run_transformers(execute: Callable, module: ModuleType) -> None:
    execute(module)
    _register()


def _run_torchaudio(execute: Callable, module: ModuleType) -> None:
    try:
        execute(module)
    except (ImportError, OSError) as error:
        raise ImportError(
            f"The installed torchaudio cannot be loaded with the installed torch ({str(error).splitlines()[0]}); "
            "install a pair that fits: pip install --upgrade 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'"
        ) from error


def _register() -> None:
    if importlib.util.find_spec("torchaudio") is not None:
        importlib.import_module("torchaudio")  # transformers would do it, too, and wrap its error in others
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    from music2vec_hf.model.pipeline_music2vec import TASK, Music2VecAudioClassificationPipeline

    config = __getattr__("Music2VecConfig")
    # exist_ok: a transformers that brings a model of this name itself must not break the import.
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, ours in _AUTO_CLASSES.items():
        getattr(transformers, auto).register(config, __getattr__(ours), exist_ok=True)
    # transformers knows one pipeline class for a task; ours hands models of others to the stock one.
    PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = Music2VecAudioClassificationPipeline
    Music2VecAudioClassificationPipeline.decode = staticmethod(_decode)


def _decode(source, name: str, sampling_rate: int):
    """How our pipeline reads files: as the rest of the library does."""
    from music2vec_hf.audio.reading import read_audio

    return read_audio(source, name=name, target_rate=sampling_rate), sampling_rate


keep_old_paths()
if not any(type(finder).__name__ == _WhenLoaded.__name__ for finder in sys.meta_path):  # there is one after a reload
    sys.meta_path.insert(0, _WhenLoaded())
if "transformers" in sys.modules:
    _register()
