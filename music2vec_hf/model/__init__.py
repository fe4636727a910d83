"""The model, its feature extractor and its pipeline: the files that travel to the Hub beside the weights."""

# Before the first of these files begins to run: they are registered right after transformers (see music2vec_hf).
import transformers  # noqa: F401
