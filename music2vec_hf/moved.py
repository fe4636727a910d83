"""Import paths of earlier versions that have moved: they go on working, with a DeprecationWarning."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old module -> the new modules that its public names are in; none for a package that is gone.
MOVED: dict[str, tuple[str, ...]] = {
    "audio.mp3": ("audio.codecs",),
    "common.names": ("common.files",),
    "common.precision": ("common.computing",),
    "common.results": ("common.files",),
    "common.threads": ("common.computing",),
    "configuration_music2vec": ("model.configuration_music2vec",),
    "corpus.batch_plan": ("corpus.crops",),
    "corpus.converting": ("corpus.clips",),
    "corpus.inspection_page": ("corpus.inspection",),
    "corpus.sampling": ("corpus.prepare",),
    "corpus.streaming": ("corpus.batches",),
    "data": (),
    "data.audio": ("audio.reading", "audio.decoding", "audio.resampling"),
    "data.augmentations": ("corpus.crops",),
    "data.batch_plan": ("corpus.crops",),
    "data.batches": ("corpus.batches", "corpus.crops"),
    "data.clips": ("corpus.clips",),
    "data.corpus": ("corpus.loading", "corpus.prepare"),
    "data.decoding": ("audio.decoding", "audio.codecs"),
    "data.duplicates": ("corpus.publishing",),
    "data.finding": ("audio.listing", "audio.containers", "corpus.loading"),
    "data.hub_files": ("common.hub",),
    "data.inspection": ("corpus.inspection",),
    "data.inspection_page": ("corpus.inspection",),
    "data.measuring": ("corpus.loading",),
    "data.packed": ("audio.listing", "audio.containers"),
    "data.prepare": ("corpus.prepare", "corpus.shards"),
    "data.publishing": ("corpus.publishing",),
    "data.pushing": ("corpus.publishing",),
    "data.resampling": ("audio.resampling",),
    "data.sampling": ("corpus.prepare",),
    "data.sources": ("audio.listing", "audio.containers"),
    "data.standins": ("corpus.crops",),
    "data.streaming": ("corpus.batches",),
    "data.synthetic": ("synthetic.generator",),
    "data.synthetic_labels": ("synthetic.generator",),
    "data.synthetic_render": ("synthetic.render",),
    "data.synthetic_score": ("synthetic.score",),
    "data.threads": ("common.computing",),
    "embedding_batches": ("features.windows",),
    "embedding_files": ("features.store",),
    "embedding_inputs": ("features.embeddings",),
    "embedding_model": ("features.encoders",),
    "embedding_table": ("features.tables",),
    "embedding_windows": ("features.windows",),
    "embeddings": ("features.embeddings", "features.encoders"),
    "encoder_music2vec": ("model.encoder_music2vec",),
    "fairseq": ("hub.conversion",),
    "fairseq_reader": ("hub.fairseq_reader",),
    "feature_extraction_music2vec": ("model.feature_extraction_music2vec",),
    "finetuning.adapting": ("finetuning.fitting",),
    "finetuning.arguments": ("finetuning.fitting",),
    "finetuning.labels": ("audio.labels", "finetuning.fitting"),
    "frontend_music2vec": ("model.frontend_music2vec",),
    "heads_music2vec": ("model.heads_music2vec",),
    "masking_music2vec": ("model.masking_music2vec",),
    "model_card": ("hub.card",),
    "model_facts": ("hub.card",),
    "modeling_music2vec": ("model.modeling_music2vec", "model.encoder_music2vec", "model.heads_music2vec"),
    "onnx_export": ("hub.onnx_export",),
    "onnx_int8": ("hub.onnx_export",),
    "pipeline_music2vec": ("model.pipeline_music2vec",),
    "precision": ("common.computing",),
    "pretraining.fitting": ("pretraining.starting",),
    "pretraining.moments": ("pretraining.monitors",),
    "pretraining.run_record": ("pretraining.checkpoints",),
    "pretraining.signals": ("pretraining", "pretraining.loop"),
    "probing.baselines": ("features.spectral",),
    "probing.bootstrap": ("probing.scores",),
    "probing.checking": ("probing.tasks.loading",),
    "probing.choosing": ("probing.evaluation",),
    "probing.datasets": (),
    "probing.datasets.custom": ("probing.tasks.loading",),
    "probing.datasets.emomusic": ("probing.tasks.songs",),
    "probing.datasets.giantsteps": ("probing.tasks.songs",),
    "probing.datasets.gtzan": ("probing.tasks.classes",),
    "probing.datasets.magnatagatune": ("probing.tasks.songs",),
    "probing.datasets.mtg_jamendo": ("probing.tasks.songs",),
    "probing.datasets.nsynth": ("probing.tasks.classes",),
    "probing.datasets.shared": ("probing.tasks.declarations",),
    "probing.datasets.synthetic": ("probing.tasks.loading",),
    "probing.datasets.vocalset": ("probing.tasks.classes",),
    "probing.declarations": ("probing.tasks.declarations",),
    "probing.earlier": ("probing.suite",),
    "probing.encoders": ("features.encoders",),
    "probing.ensembles": ("probing.probes",),
    "probing.feature_cache": ("features.store",),
    "probing.figures": ("probing.report",),
    "probing.metrics": ("common.metrics",),
    "probing.published": ("probing.report_tables",),
    "probing.records": ("probing.suite",),
    "probing.report_figures": ("probing.report",),
    "probing.results": ("probing.scores", "common.files"),
    "probing.rows": ("features.store", "probing.evaluation"),
    "probing.searches": ("probing.probes",),
    "probing.selection": ("probing.probes",),
    "probing.sources": ("features.encoders",),
    "probing.stacks": ("probing.training",),
    "probing.tables": ("probing.tasks.declarations",),
    "probing.tasks.custom": ("probing.tasks.loading",),
    "probing.tasks.tags": ("probing.tasks.songs",),
    "push": ("hub.push",),
    "remote_code": ("hub.push",),
    "similarity": ("features.tables",),
    "synthetic.labels": ("synthetic.generator",),
    "synthetic.tables": ("synthetic.score",),
    "teacher_music2vec": ("model.teacher_music2vec",),
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
