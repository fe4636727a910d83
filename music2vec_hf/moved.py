"""Import paths of earlier versions that have moved: they go on working, with a DeprecationWarning."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# New module -> the old ones that it stands for.
_STANDS_FOR = {
    "audio.codecs": "audio.mp3",
    "audio.resampling": "data.resampling",
    "common.computing": "common.precision common.threads data.threads precision",
    "common.files": "common.names common.results",
    "common.hub": "data.hub_files",
    "common.metrics": "probing.metrics",
    "corpus.batches": "corpus.streaming data.streaming",
    "corpus.clips": "corpus.converting data.clips",
    "corpus.crops": "corpus.batch_plan data.augmentations data.batch_plan data.standins",
    "corpus.inspection": "corpus.inspection_page data.inspection data.inspection_page",
    "corpus.loading": "data.measuring",
    "corpus.prepare": "corpus.sampling data.sampling",
    "corpus.publishing": "data.duplicates data.publishing data.pushing",
    "features.embeddings": "embedding_inputs",
    "features.encoders": "embedding_model probing.encoders probing.sources",
    "features.spectral": "probing.baselines",
    "features.store": "embedding_files probing.feature_cache",
    "features.tables": "embedding_table similarity",
    "features.windows": "embedding_batches embedding_windows",
    "finetuning.fitting": "finetuning.adapting",
    "hub.card": "model_card model_facts",
    "hub.conversion": "fairseq",
    "hub.fairseq_reader": "fairseq_reader",
    "hub.onnx_export": "onnx_export onnx_int8",
    "hub.push": "push remote_code",
    "model.configuration_music2vec": "configuration_music2vec",
    "model.encoder_music2vec": "encoder_music2vec",
    "model.feature_extraction_music2vec": "feature_extraction_music2vec",
    "model.frontend_music2vec": "frontend_music2vec",
    "model.heads_music2vec": "heads_music2vec",
    "model.masking_music2vec": "masking_music2vec",
    "model.pipeline_music2vec": "pipeline_music2vec",
    "model.teacher_music2vec": "teacher_music2vec",
    "pretraining.checkpoints": "pretraining.run_record",
    "pretraining.monitors": "pretraining.moments",
    "pretraining.starting": "pretraining.fitting",
    "probing.evaluation": "probing.choosing",
    "probing.probes": "probing.ensembles probing.searches probing.selection",
    "probing.report": "probing.figures probing.report_figures",
    "probing.report_tables": "probing.published",
    "probing.scores": "probing.bootstrap",
    "probing.suite": "probing.earlier probing.records",
    "probing.tasks.classes": "probing.datasets.gtzan probing.datasets.nsynth probing.datasets.vocalset",
    "probing.tasks.declarations": "probing.datasets.shared probing.declarations probing.tables",
    "probing.tasks.loading": (
        "probing.checking probing.datasets.custom probing.datasets.synthetic probing.tasks.custom"
    ),
    "probing.tasks.songs": (
        "probing.datasets.emomusic probing.datasets.giantsteps probing.datasets.magnatagatune "
        "probing.datasets.mtg_jamendo probing.tasks.tags"
    ),
    "probing.training": "probing.stacks",
    "synthetic.generator": "data.synthetic data.synthetic_labels synthetic.labels",
    "synthetic.render": "data.synthetic_render",
    "synthetic.score": "data.synthetic_score synthetic.tables",
}
# Old module -> the new modules that its public names are in; none for a package that is gone.
MOVED: dict[str, tuple[str, ...]] = {old: (new,) for new, names in _STANDS_FOR.items() for old in names.split()} | {
    "data": (),
    "data.audio": ("audio.reading", "audio.decoding", "audio.resampling"),
    "data.batches": ("corpus.batches", "corpus.crops"),
    "data.corpus": ("corpus.loading", "corpus.prepare"),
    "data.decoding": ("audio.decoding", "audio.codecs"),
    "data.finding": ("audio.listing", "audio.metadata", "audio.containers", "corpus.loading"),
    "data.packed": ("audio.listing", "audio.containers", "audio.metadata"),
    "data.prepare": ("corpus.prepare", "corpus.shards"),
    "data.sources": ("audio.listing", "audio.metadata", "audio.containers"),
    "embeddings": ("features.embeddings", "features.encoders"),
    "finetuning.labels": ("audio.labels", "finetuning.fitting"),
    "modeling_music2vec": ("model.modeling_music2vec", "model.encoder_music2vec", "model.heads_music2vec"),
    "pretraining.signals": ("pretraining", "pretraining.loop"),
    "probing.datasets": (),
    "probing.results": ("probing.scores", "common.files"),
    "probing.rows": ("features.store", "probing.evaluation"),
}


class MovedModules(MetaPathFinder, Loader):
    """Finds an old module: the new one itself where it is one, else a module that looks its names up in several."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        """The spec of an old module's name; None for every other name."""
        package, _, name = fullname.partition(".")
        if package != "music2vec_hf" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not MOVED[name])

    def exec_module(self, module: ModuleType) -> None:
        """Load what the old module stands for now."""
        old = module.__name__.partition(".")[2]
        found = [importlib.import_module(f"music2vec_hf.{name}") for name in MOVED[old]]
        if found:
            places = ", ".join(new.__name__ for new in found)
            warnings.warn(f"{module.__name__} has moved; import from {places}.", DeprecationWarning, stacklevel=2)
        if len(found) == 1:
            sys.modules[module.__name__] = found[0]

        def look_up(name: str):
            for new in found:
                if hasattr(new, name):
                    return getattr(new, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = look_up


def keep_old_paths() -> None:
    """Let Python find the old modules, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
