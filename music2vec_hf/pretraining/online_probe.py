"""A check of what has been learned while the run goes on: nearest neighbours and a linear probe on labelled clips.

It is a curve to watch, not a score to publish: one split, one setting, no intervals.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from music2vec_hf.corpus.loading import load_corpus, read_clip
from music2vec_hf.features.embeddings import embed
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor

_NEIGHBOURS, _MAX_CLIPS = 10, 1000


class OnlineProbe:
    """Labelled clips that the student is probed on every `probe_every` steps.

    Half of the tracks (all of a track's clips together) train the probes, the other half is scored; at most 1,000
    clips, chosen by the seed. Embeddings are means over time and over all layers but the raw front end.

    Args:
        recipe ([`Recipe`]): its `probe_corpus`, `probe_label` and `seed`.

    Raises:
        ValueError: if there is no column of that name, or a half holds fewer than two labels.
    """

    def __init__(self, recipe):
        corpus = load_corpus(recipe.probe_corpus, "all", report=False)
        name = recipe.probe_label
        if name not in corpus.column_names:
            raise ValueError(
                f"`probe_corpus` {recipe.probe_corpus} has no column `{name}`. Set `probe_label` to one of "
                f"{', '.join(column for column in corpus.column_names if column != 'audio')}."
            )
        rng = np.random.default_rng(recipe.seed)
        self.clips = corpus.select(np.sort(rng.permutation(len(corpus))[:_MAX_CLIPS]))
        self.labels = np.array([str(label) for label in self.clips[name]])
        tracks = self.clips["track_id"] if "track_id" in corpus.column_names else range(len(self.clips))
        distinct, track_of = np.unique(np.array(tracks), return_inverse=True)
        chosen = rng.permutation(len(distinct)) < len(distinct) // 2
        self.trains = chosen[track_of]
        for half in (self.labels[self.trains], self.labels[~self.trains]):
            if len(set(half)) < 2:
                raise ValueError(
                    f"`probe_label` {name} has {len(set(half))} distinct values in a half of `probe_corpus`. Give a "
                    "column of classes, and clips of at least two of them."
                )

    def __call__(self, student) -> dict[str, float]:
        """Accuracies of the student as it is now: `probe_knn`, `probe_linear` and, for comparison, `probe_chance`.

        The student's modes and torch's random state are left as they were.
        """
        feature_extractor = Music2VecFeatureExtractor(receptive_field=student.config.receptive_field)
        tracks = (read_clip(clip) for clip in self.clips)
        # Not compiled: torch.compile would keep a version for every length of a clip.
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            features = embed(student, tracks, feature_extractor=feature_extractor).mean(axis=1)
        train, held_out = features[self.trains], features[~self.trains]
        labels, references = self.labels[self.trains], self.labels[~self.trains]
        neighbours = KNeighborsClassifier(min(_NEIGHBOURS, len(train)), metric="cosine").fit(train, labels)
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train, labels)
        values, counts = np.unique(labels, return_counts=True)
        return {
            "probe_knn": float(neighbours.score(held_out, references)),
            "probe_linear": float(linear.score(held_out, references)),
            "probe_chance": float(np.mean(references == values[counts.argmax()])),
        }


__all__ = ["OnlineProbe"]
