"""The model card: `README.md` out of what the files of a model folder say. No number in it is typed by hand."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from music2vec_hf.hub.model_facts import count_parameters, read_model_config, read_run, weight_files

_SAMPLING_RATE = 16_000
_TEMPLATE = "model_card.md.jinja"
_STUDENT, _CLIP_HEAD = "Music2VecForPreTraining", "Music2VecForSequenceClassification"
_HEADS = {_CLIP_HEAD: "clip", "Music2VecForAudioFrameClassification": "frame"}
_READS = {None: "the last layer", "weighted": "a learned weighted sum of all layers", "conv": "the raw front end"}
_LABELS_SHOWN = 20


def write_model_card(
    folder: str | Path, repo_id: str, licence: str, scores: Mapping, revision: str | None = None
) -> str:
    """Generate the card of a model folder.

    Args:
        folder (`str` or `Path`): that `save_pretrained` or `music2vec pretrain` wrote.
        repo_id (`str`): where it is going to lie, for the snippets.
        licence (`str`): the Hub's identifier, for example `cc-by-4.0`.
        scores (`Mapping`): from [`read_scores`].
        revision (`str`, *optional*): branch, for the snippets.

    Returns:
        `str`: Markdown with a YAML header, which holds the scores as `model-index`, too.

    Raises:
        ValueError: if the folder holds no whole model.
    """
    config, name = read_model_config(folder), repo_id.rpartition("/")[2]
    run = read_run(folder)
    architecture = (config.get("architectures") or [""])[0]
    counts = count_parameters(weight_files(folder))
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="audio-classification" if architecture == _CLIP_HEAD else "feature-extraction",
        tags=["music", "audio", "self-supervised", "music2vec", "data2vec"],
        model_name=name,
        eval_results=_eval_results(scores["records"]) or None,
    )
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(_TEMPLATE).render(
        card_data=data.to_yaml(),
        licence=licence,
        name=name,
        repo_id=repo_id,
        revision=revision,
        config=config,
        head=_HEADS.get(architecture),
        model_rows=_model_rows(config, architecture, counts),
        run=run,
        run_rows=_run_rows(run) if run else [],
        corpus_rows=_corpus_rows(run) if run else [],
        protocols=_protocols(scores),
        guide=_layer_guide(scores["records"]),
        synthetic=any(record["synthetic"] for record in scores["records"]),
        num_foreign=scores["num_foreign"],
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _model_rows(config: Mapping, architecture: str, counts: Mapping[str, int]) -> list[tuple]:
    head = _HEADS.get(architecture)
    holds = "encoder and the prediction head of pretraining" if architecture == _STUDENT else "encoder"
    rows = [
        ("parameters", f"{sum(counts.values()):,} ({', '.join(sorted(counts))})"),
        ("frames a second", f"{_SAMPLING_RATE / math.prod(config['conv_stride']):g}"),
        ("transformer layers x width", f"{config['num_hidden_layers']} x {config['hidden_size']}"),
        ("attention heads", config["num_attention_heads"]),
        ("holds", f"encoder and a head for {head}s" if head else holds),
    ]
    if head:
        layer = config.get("classifier_layer")
        labels = [_cell(label) for label in (config.get("id2label") or {}).values()]
        more = f" and {len(labels) - _LABELS_SHOWN} more" if len(labels) > _LABELS_SHOWN else ""
        rows += [
            ("the head reads", _READS.get(layer, f"layer {layer}")),
            ("problem type", config.get("problem_type") or "not recorded"),
            ("labels", ", ".join(labels[:_LABELS_SHOWN]) + more),
        ]
    return rows


def _corpus_rows(run: Mapping) -> list[tuple]:
    splits = (run["corpus"]["summary"] or {}).get("splits", {})
    return [(_cell(name), f"{s['hours']:.2f}", s["clips"], s["tracks"]) for name, s in splits.items()]


def _run_rows(run: Mapping) -> list[tuple]:
    differences = ", ".join(f"`{name}` {value}" for name, value in run["differences"].items())
    rows = [
        ("recipe", f"`{run['recipe']}`" + (f" with {_cell(differences)}" if differences else "")),
        ("audio per optimiser step", f"{run['audio_seconds_per_step']:g} s"),
        ("optimiser steps", "not recorded" if run["steps"] is None else run["steps"]),
    ]
    if run["steps"] is not None:
        rows += [
            ("hours of audio heard", f"{run['hours_heard']:.2f}"),
            ("wall time", f"{run['hours_worked']:.2f} hours"),
            ("last training loss", "not finite" if run["loss"] is None else f"{run['loss']:.4f}"),
            ("updates skipped as not finite", run["skipped_updates"]),
        ]
    described = {
        "hardware": _hardware,
        "precision": lambda session: session["precision"],
        "versions": lambda session: ", ".join(f"{name} {number}" for name, number in session["versions"].items()),
    }
    return rows + [(name, _cell("; then ".join(_unique(map(of, run["sessions"]))))) for name, of in described.items()]


def _hardware(session: Mapping) -> str:
    cpu = f"{session['cpu']}, {session['cpu_cores']} cores"
    if session["device"] == "cpu":
        return cpu if session["num_devices"] == 1 else f"{session['num_devices']} processes on {cpu}"
    return f"{session['num_devices']} x {session['device']} ({cpu})"


def _eval_results(records: Sequence[Mapping]) -> list[EvalResult]:
    """The model's own scores, for the Hub's `model-index`."""
    return [
        EvalResult(
            task_type="audio-classification",
            task_name=record["task"],
            dataset_type=record["task"],
            dataset_name=f"{record['task']} (synthetic)" if record["synthetic"] else record["task"],
            dataset_config=record["protocol"],
            dataset_split="test",
            metric_type=record["metric"],
            metric_name=f"{record['metric']}, mean over {len(record['seeds'])} probe seeds",
            metric_value=round(record["value"], 4),
            metric_args={
                "layer": record["layer"],
                "interval_95": [round(bound, 4) for bound in record["interval"]],
                "comparable_with_published_scores": not record["differences"] and not record["synthetic"],
            },
        )
        for record in records
        if record["of_model"]
    ]


def _protocols(scores: Mapping) -> list[dict]:
    """For each protocol: `table` (task, metric and a score per source), `differences`, `sizes`, `notes`, `missing`."""
    found = []
    for protocol in dict.fromkeys(record["protocol"] for record in scores["records"] if record["of_model"]):
        records = [record for record in scores["records"] if record["protocol"] == protocol]
        ours = [record for record in records if record["of_model"]]
        tasks = {record["task"] for record in ours}
        names = {record["source"] for record in ours}
        compared = [row for row in scores["comparisons"] if row["of_model"] and row["source"] in names]
        found.append(
            {
                "name": protocol,
                "table": _pivot(records, lambda row: f"{_cell(row['task'])}: {_metric(row['metric'])}", _score),
                "comparisons": _pivot(
                    [row for row in compared if row["task"] in tasks], lambda row: _cell(row["task"]), _difference
                ),
                "sizes": _unique(f"{_cell(r['task'])} {'/'.join(map(str, r['split_sizes'].values()))}" for r in ours),
                "seeds": _unique(str(len(record["seeds"])) for record in ours if record["seeds"]),
                "not_comparable": _unique(f"{_cell(r['task'])}: {_cell(d)}" for r in ours for d in r["differences"]),
                "excluded": _unique(
                    f"{_cell(record['task'])}, {split}: {', '.join(map(_cell, tags))}"
                    for record in ours
                    for split, tags in (record["excluded_tags"] or {}).items()
                    if tags
                ),
                "versions": _unique(
                    ", ".join(f"{library} {number}" for library, number in record["library_versions"].items())
                    for record in ours
                ),
                "hash": ours[0]["model_hash"],
            }
        )
    return found


def _pivot(rows: Sequence[Mapping], label, cell) -> dict:
    """`columns` and `rows` of a table with one line per label, and one column per source or baseline."""
    lines: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for row in sorted(rows, key=lambda row: not row["of_model"]):
        name = row.get("baseline") or ("this model" if row["of_model"] else row["source"])
        columns.setdefault(_cell(name))
        lines.setdefault(label(row), {})[_cell(name)] = cell(row)
    table = [[line, *(cells.get(column, "-") for column in columns)] for line, cells in lines.items()]
    return {"columns": list(columns), "rows": table}


def _score(record: Mapping) -> str:
    low, high = record["interval"]
    return f"{record['value']:.3f} [{low:.3f}, {high:.3f}]"


def _difference(row: Mapping) -> str:
    low, high = row["interval"]
    text = f"{row['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _layer_guide(records: Sequence[Mapping]) -> list[tuple]:
    """For each task and protocol the layer that validation chose, its probe, and the score of every layer."""
    guide = {}
    for record in records:
        if record["of_model"] and record["layer"] is not None:
            settings = {name: value for name, value in record["probe_settings"].items() if value is not None}
            row = (
                _cell(record["task"]),
                record["protocol"],
                record["layer"],
                f"{_metric(record['validation_metric'])} {record['validation_score']:.3f}",
                ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()),
                ", ".join(f"{layer}: {score:.3f}" for layer, score in record["validation_by_layer"].items()),
            )
            guide[record["task"], record["protocol"]] = row
    return list(guide.values())


def _metric(name: str) -> str:
    return _cell(name).replace("_", " ")


def _cell(text: str) -> str:
    """A name that may come from anywhere, as one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _unique(lines) -> list[str]:
    return list(dict.fromkeys(lines))


__all__ = ["write_model_card"]
