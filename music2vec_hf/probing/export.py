"""Export: a chosen probe and the encoder that it was trained on as one model that transformers loads.

The probe's layer, standardisation, weights and units become the head of a `Music2VecForSequenceClassification`, so
that its logits are the probe's own. How a track longer than the model's window is heard is a part of the protocol; it
is written into the configuration, where the audio-classification pipeline reads it:

| rows of the protocol | `config.window_average` |
| --- | --- |
| a track is one row (`quick`, `jukemir`) | `features`: mean over windows, weighted by frames, then one answer |
| a clip or window is a row (`marble`; tasks of songs) | `logits`: mean of the windows' answers, weighted by frames |
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig

from music2vec_hf.common.files import check_new_folder, write_text, written_aside
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.metrics import metric_title
from music2vec_hf.common.render import render
from music2vec_hf.features.encoders import CONV, OWN_MODEL_TYPES, FeatureSource, load_model
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.heads_music2vec import (
    Music2VecForAudioFrameClassification,
    Music2VecForSequenceClassification,
    Music2VecHead,
)
from music2vec_hf.probing.evaluation import row_seconds
from music2vec_hf.probing.probes import WEIGHTED, TrainedProbe
from music2vec_hf.probing.report_tables import describe_settings
from music2vec_hf.probing.tasks.declarations import Task

# The head sums over all layers. The probe's sum leaves layer 0 out: this weight is 0 after the softmax, in fp16 too.
EXCLUDED_LAYER = -1e4
README = Path(__file__).with_name("export_readme.md.jinja")


def check_export(model: str | Path, out: str | Path) -> None:
    """Refuse what [`export_probe`] could not write, before hours are spent on probing.

    Raises ValueError if the model is no Music2Vec or data2vec-audio model, or `out` is not empty.
    """
    with explain_hub_errors(model, "a model"):
        model_type = PreTrainedConfig.get_config_dict(model)[0].get("model_type")
    if model_type not in OWN_MODEL_TYPES:
        raise ValueError(
            f"{model} is a {model_type} model; a probe is exported with a {' or '.join(OWN_MODEL_TYPES)} encoder only."
        )
    check_new_folder(out, "the exported model")


def plan_exports(
    sources: Sequence[FeatureSource], tasks: Sequence[str], out: str | Path | None
) -> dict[tuple[str, str], Path]:
    """Where the probe of each (source, task) of a run goes, checked by [`check_export`] before the run.

    Args:
        out (`str` or `Path`, *optional*): the folder for one task; of several, each has a folder of its name in it.

    Raises:
        ValueError: if there is not just one model among the sources, or as [`check_export`].
    """
    if out is None:
        return {}
    models = [source for source in sources if source.kind == "model"]
    if len(models) != 1:
        raise ValueError(f"There are {len(models)} models; probes are exported with one model at a time.")
    folders = {(models[0].name, task): Path(out) if len(tasks) == 1 else Path(out) / task for task in tasks}
    for folder in folders.values():
        check_export(models[0].model, folder)
    return folders


def export_probe(
    trained: TrainedProbe,
    task: Task,
    model: str | Path,
    out: str | Path,
    protocol: str = "quick",
    scores: Mapping[str, Mapping] | None = None,
    window_seconds: float = 30.0,
) -> Path:
    """Write a probe with its encoder as a model for `AutoModelForAudioClassification`, or of a task of events for
    `AutoModelForAudioFrameClassification`.

    Args:
        model (`str` or `Path`): folder or Hub id of the Music2Vec or data2vec-audio model that gave its features.
        out (`str` or `Path`): new folder for the model, its feature extractor and a README.
        protocol (`str`): that it was chosen by; it decides how windows are averaged, see the table of this module.
        scores (`Mapping[str, Mapping]`, *optional*): test scores of the chosen probe for the README: metric to `value`
            and `interval`, as `ProbeResult.scores`.

    Raises:
        ValueError: as `check_export`.
    """
    check_export(model, out)
    out = Path(out)
    encoder, extractor = load_model(model)
    seconds = row_seconds(task, protocol, window_seconds)
    config = _config(encoder.config, trained, task, window_seconds, "features" if seconds is None else "logits")
    head = (Music2VecForAudioFrameClassification if task.events else Music2VecForSequenceClassification)(config)
    head.data2vec_audio.load_state_dict(encoder.state_dict())
    _fill_head(head, trained)
    with written_aside(out) as aside:
        head.save_pretrained(aside)
        extractor.save_pretrained(aside)
        readme = render(
            README,
            name=Path(model).name if Path(model).exists() else str(model),  # not a path of the machine that wrote it
            trained=trained,
            task=task,
            config=config,
            protocol=protocol,
            settings=describe_settings(vars(trained.job.settings)),
            scores=[(metric_title(metric), score) for metric, score in (scores or {}).items()],
            labels=json.dumps(list(config.id2label.values()), ensure_ascii=False),
        )
        write_text(aside / "README.md", readme)
    return out


def _config(
    encoder: Music2VecConfig, trained: TrainedProbe, task: Task, window_seconds: float, window_average: str
) -> Music2VecConfig:
    layer = trained.job.layer
    labels = [str(label) for label in task.labels]
    settings = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": task.problem_type,
        "classifier_layer": layer if layer in (CONV, WEIGHTED) else int(layer),
        "classifier_pooling": "mean",
        "classifier_hidden_size": trained.parameters[0].shape[1] if len(trained.parameters) > 2 else 0,
        "classifier_dropout": trained.job.settings.dropout,
        "window_seconds": window_seconds,
        "window_average": window_average,
    }
    if task.events:
        settings |= {"frame_events": task.events, "frame_event_settings": list(trained.event_settings)}
    if task.problem_type == "regression":
        settings |= {"target_mean": trained.target_mean.tolist(), "target_std": trained.target_scale.tolist()}
    return Music2VecConfig.from_dict(encoder.to_dict() | settings)


@torch.no_grad()
def _fill_head(head: Music2VecHead, trained: TrainedProbe) -> None:
    mean, scale = trained.feature_mean, trained.feature_scale
    if trained.job.layer == WEIGHTED:
        if np.ptp(np.broadcast_to(scale, (len(trained.layer_weights), head.width)), axis=0).any():
            raise ValueError(
                "This probe scales each layer by its own deviation before it sums them, which the model's head "
                "cannot; export one of `marble`, which does not standardise."
            )
        mean, scale = np.broadcast_to(mean, (len(trained.layer_weights), head.width)), np.atleast_2d(scale)[0]
        mean = trained.layer_weights @ mean
        head.layer_weights[0] = EXCLUDED_LAYER
        # The shares are what a softmax gave; a share of 0 has no logarithm.
        shares = np.maximum(trained.layer_weights, np.finfo(np.float32).tiny)
        head.layer_weights[1:] = torch.as_tensor(np.log(shares))
    head.feature_mean.copy_(torch.as_tensor(mean))
    head.feature_std.copy_(torch.as_tensor(scale))
    linears = [head.classifier] if head.projector is None else [head.projector, head.classifier]
    for number, linear in enumerate(linears):
        linear.weight.copy_(torch.as_tensor(trained.parameters[2 * number].T))
        linear.bias.copy_(torch.as_tensor(trained.parameters[2 * number + 1]))
