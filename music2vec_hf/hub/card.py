"""The model card: `README.md` out of what the files of a model folder say. No number in it is typed by hand."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData, hf_hub_url
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from music2vec_hf.common.files import PARTS, RESULTS, read_json, read_metrics, read_results, read_run, with_format
from music2vec_hf.common.render import Markdown, markdown_code, markdown_text, render
from music2vec_hf.features.encoders import load_model, model_hash

CONFIG, WEIGHTS, INDEX, STATE = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "trainer_state.json",
)
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_MODEL_TYPES = ("music2vec", "data2vec-audio")
_SAMPLING_RATE = 16_000
_STUDENT, _CLIP_HEAD = "Music2VecForPreTraining", "Music2VecForSequenceClassification"
_HEADS = {_CLIP_HEAD: "clip", "Music2VecForAudioFrameClassification": "frame"}
_READS = {None: "the last layer", "weighted": "a learned weighted sum of all layers", "conv": "the raw front end"}
_LABELS_SHOWN = 20

logger = logging.get_logger(__name__)


def read_model_config(folder: str | Path) -> dict:
    """The `config.json` of a Music2Vec or plain data2vec-audio folder; ValueError for one without a model."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        names = (path.name for path in folder.glob("checkpoint-*/") if (path / CONFIG).is_file())
        checkpoints = sorted(names, key=lambda name: (len(name), name))
        hint = "Name a folder that `save_pretrained` or `music2vec pretrain` wrote"
        if checkpoints:
            hint = f"The run is not finished: go on with `--resume`, or name a checkpoint such as {checkpoints[-1]}"
        raise ValueError(f"{folder} has no {CONFIG}, so there is no model in it. {hint}.")
    config = read_json(folder / CONFIG)
    if config.get("model_type") not in _MODEL_TYPES:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}. Name one of {' or '.join(_MODEL_TYPES)}."
        )
    return config


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards and their index.

    Raises ValueError if there are none, a shard is missing or lies outside the folder, or a file is damaged.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        missing = [name for name in names if name not in strange and not (folder / name).is_file()]
        if strange or missing or not names:
            wrong = f"{strange[0]!r}, which is no file name" if strange else f"{', '.join(missing) or 'nothing'}"
            raise ValueError(f"{folder / INDEX} names {wrong}; the folder is not whole: save or copy the model again.")
        files = [*(folder / name for name in names), folder / INDEX]
    else:
        others = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
        why = f"only {', '.join(others)}, which is not safe to share" if others else "no weights"
        raise ValueError(
            f"{folder} has {why}. Load the model and save it with `save_pretrained`, which writes {WEIGHTS}."
        )
    count_parameters(files)
    return files


def count_parameters(files: Sequence[Path]) -> dict[str, int]:
    """Numbers in safetensors files by type, `{"F32": 93_800_000}`, by their headers; ValueError if one is damaged."""
    counts: dict[str, int] = {}
    for path in (path for path in files if path.suffix == ".safetensors"):
        try:
            with safe_open(path, "pt") as opened:
                for piece in map(opened.get_slice, opened.keys()):
                    counts[piece.get_dtype()] = counts.get(piece.get_dtype(), 0) + math.prod(piece.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); save or copy the model again.") from error
    return counts


def describe_run(folder: str | Path) -> dict | None:
    """What the run of [`pretrain`] says about itself, or `None` where there is no `run.json`.

    Returns:
        `dict`: the content of `run.json` and, from `metrics.jsonl`, `metrics` (its records), `steps`, `hours_heard`,
            `hours_worked` (wall time without that of steps that were lost), `device_hours`, `loss` (of the last
            record) and `skipped_updates`; of a checkpoint, up to its step.
    """
    folder = Path(folder)
    state = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    is_checkpoint = "recipe" in state  # Trainer's own file of that name has none
    run = read_run(folder.parent if is_checkpoint else folder)
    if run is None:
        return None
    last = state["step"] if is_checkpoint else math.inf
    # Records of probes during the run have no speed.
    metrics = read_metrics(folder.parent if is_checkpoint else folder)
    metrics = [each for each in metrics if each["step"] <= last]
    records = [each for each in metrics if each.get("audio_seconds_per_second")]
    steps = [0, *(record["step"] for record in records)]
    sessions = [session for session in run["sessions"] if not records or session["first_step"] < steps[-1]]
    run = run | {"sessions": sessions, "metrics": metrics, "steps": steps[-1] if records else None}
    seconds, device_seconds = 0.0, 0.0
    for first, record in zip(steps, records, strict=False):
        worked = (record["step"] - first) * run["audio_seconds_per_step"] / record["audio_seconds_per_second"]
        session = [each for each in sessions if each["first_step"] < record["step"]][-1]
        seconds, device_seconds = seconds + worked, device_seconds + worked * session["num_devices"]
    if records:
        run |= {
            "hours_heard": steps[-1] * run["audio_seconds_per_step"] / 3600,
            "hours_worked": seconds / 3600,
            "device_hours": device_seconds / 3600,
            "loss": records[-1]["loss"],
            "skipped_updates": records[-1]["skipped_updates"],
        }
    return run


def read_scores(folder: str | Path, results: Sequence[str | Path] | None = None) -> dict:
    """The scores of a model, and of the baselines beside it, out of `results.json` files.

    Args:
        folder (`str` or `Path`): of the model. A score belongs to it if its `model_hash` is that of these weights.
        results (`Sequence`, *optional*): files, or their folders; by default those below the model's folder, and
            those beside it and in its neighbours.

    Returns:
        `dict`: `records`, `averages` and `comparisons` as in results.json, of the model and its baselines alone;
        `sources`, for each file its folder and the model's records in it; and `num_foreign`, the number of files that
        were found and have no score of this model.

    Raises:
        ValueError: if a file that was named is no results file or has no score of this model, or two files have the
            same score.
    """
    folder = Path(folder)
    contents = _found_results(folder) if results is None else {Path(path): _named_results(path) for path in results}
    digest = model_hash(load_model(folder)[0]) if contents else None
    scores: dict = with_format({part: [] for part in PARTS})
    num_foreign, origins, sources = 0, {}, []
    for path, content in contents.items():
        ours = {record["source"] for record in content["records"] if record["model_hash"] == digest}
        if not ours:
            if results is not None:
                raise ValueError(f"{path} has no score of the weights in {folder}. Probe them with `music2vec probe`.")
            num_foreign += 1
            continue
        kept = ours | {record["source"] for record in content["records"] if record["source_kind"] != "model"}
        for record in content["records"]:
            key = (record["protocol"], record["task"], record["metric"])
            if record["source"] in ours and origins.setdefault(key, path) != path:
                raise ValueError(f"{origins[key]} and {path} both have scores on {key[1]}. Name one with --results.")
        place = path if path.is_dir() else path.parent
        sources.append((place, {"records": [row for row in content["records"] if row["source"] in ours]}))
        for part in PARTS:
            rows = [row for row in content.get(part, ()) if row["source"] in kept]
            scores[part] += [row | {"of_model": row["source"] in ours} for row in rows]
    return scores | {"sources": sources, "num_foreign": num_foreign}


def _named_results(path: str | Path) -> dict:
    try:
        return read_results(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _found_results(folder: Path) -> dict[Path, dict]:
    """Results below and around a model's folder; other files of that name are left out, which the log says."""
    folder, found = folder.resolve(), {}
    around = folder.parent
    for path in sorted({*folder.rglob(RESULTS), *around.glob(RESULTS), *around.glob(f"*/{RESULTS}")}):
        try:
            found[path] = read_results(path)
        except (FileNotFoundError, ValueError) as error:
            logger.warning(f"Left out of the card: {error}")
    return found


def write_model_card(
    folder: str | Path,
    repo_id: str,
    licence: str,
    scores: Mapping,
    revision: str | None = None,
    figures: Sequence[Mapping] = (),
    example: str | None = None,
) -> str:
    """Generate the card of a model folder.

    Args:
        repo_id (`str`): where it is going to lie, for the snippets.
        licence (`str`): the Hub's identifier, for example `cc-by-4.0`.
        figures (`Sequence[Mapping]`): `heading`, `caption` and `file`, a name in the repository.
        example (`str`, *optional*): name of an audio file in the repository, to hear and for the snippets.

    Raises:
        ValueError: if the folder holds no whole model.
    """
    config, name = read_model_config(folder), repo_id.rpartition("/")[2]
    run = describe_run(folder)
    architecture = (config.get("architectures") or [""])[0]
    records = scores["records"]
    address = hf_hub_url(repo_id, example, revision=revision) if example else None
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="audio-classification" if architecture == _CLIP_HEAD else "feature-extraction",
        tags=["music", "audio", "self-supervised", "music2vec", "data2vec"],
        model_name=name,
        eval_results=[_eval_result(record) for record in records if record["of_model"]] or None,
        widget=[{"example_title": "ten seconds of synthetic music", "src": address}] if example else None,
    )
    return render(
        TEMPLATE,
        card_data=data.to_yaml(),
        licence=licence,
        name=name,
        repo_id=repo_id,
        revision=revision,
        config=config,
        head=_HEADS.get(architecture),
        model_rows=_model_rows(config, architecture, count_parameters(weight_files(folder))),
        run=run,
        run_rows=_run_rows(run) if run else [],
        protocols=[
            _protocol(name, scores)
            for name in dict.fromkeys(record["protocol"] for record in records if record["of_model"])
        ],
        guide=_layer_guide(records),
        synthetic=any(record["synthetic"] for record in records),
        num_foreign=scores["num_foreign"],
        figures=figures,
        example=example,
        address=address,
    )


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
        layer, labels = config.get("classifier_layer"), list((config.get("id2label") or {}).values())
        more = f" and {len(labels) - _LABELS_SHOWN} more" if len(labels) > _LABELS_SHOWN else ""
        rows += [
            ("the head reads", _READS.get(layer, f"layer {layer}")),
            ("problem type", config.get("problem_type") or "not recorded"),
            ("labels", ", ".join(map(str, labels[:_LABELS_SHOWN])) + more),
        ]
    return rows


def _run_rows(run: Mapping) -> list[tuple]:
    differences = ", ".join(
        f"{markdown_code(name)} {markdown_text(value)}" for name, value in run["differences"].items()
    )
    recipe = markdown_code(run["recipe"]) + (f" with {differences}" if differences else "")
    rows = [
        ("recipe", Markdown(recipe)),
        *([("distilled from", run["teacher"])] if "teacher" in run else []),
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
    return rows + [(name, "; then ".join(_unique(map(of, run["sessions"])))) for name, of in described.items()]


def _hardware(session: Mapping) -> str:
    cpu = f"{session['cpu']}, {session['cpu_cores']} cores"
    if session["device"] == "cpu":
        return cpu if session["num_devices"] == 1 else f"{session['num_devices']} processes on {cpu}"
    return f"{session['num_devices']} x {session['device']} ({cpu})"


def _eval_result(record: Mapping) -> EvalResult:
    """A score of the model, for the Hub's `model-index`."""
    return EvalResult(
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


def _protocol(name: str, scores: Mapping) -> dict:
    """What the card shows of one protocol: two tables, and lines of text."""
    records = [record for record in scores["records"] if record["protocol"] == name]
    ours = [record for record in records if record["of_model"]]
    of_ours = {key: {record[key] for record in ours} for key in ("task", "source")}
    compared = [
        row
        for row in scores["comparisons"]
        if row["of_model"] and row["source"] in of_ours["source"] and row["task"] in of_ours["task"]
    ]
    excluded = (
        (record["task"], split, tags) for record in ours for split, tags in (record["excluded_tags"] or {}).items()
    )
    return {
        "name": name,
        "table": _pivot(records, lambda row: f"{row['task']}: {_metric(row['metric'])}", _score),
        "comparisons": _pivot(compared, lambda row: row["task"], _difference),
        "sizes": _unique(f"{each['task']} {'/'.join(map(str, each['split_sizes'].values()))}" for each in ours),
        "seeds": _unique(str(len(record["seeds"])) for record in ours if record["seeds"]),
        "not_comparable": _unique(
            f"{each['task']}: {difference}" for each in ours for difference in each["differences"]
        ),
        "excluded": _unique(f"{task}, {split}: {', '.join(tags)}" for task, split, tags in excluded if tags),
        "versions": _unique(", ".join(map(" ".join, record["library_versions"].items())) for record in ours),
        "hash": ours[0]["model_hash"],
    }


def _pivot(rows: Sequence[Mapping], label: Callable, cell: Callable) -> tuple[list, list]:
    """Columns and rows of a table with one line per label, and one column per source or baseline."""
    lines: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: not row["of_model"]):
        name = row.get("baseline") or ("this model" if row["of_model"] else row["source"])
        lines.setdefault(label(row), {})[name] = Markdown(cell(row))
    columns = list(dict.fromkeys(name for cells in lines.values() for name in cells))
    return columns, [[line, *(cells.get(column, "-") for column in columns)] for line, cells in lines.items()]


def _score(record: Mapping) -> str:
    return "{value:.3f} [{0:.3f}, {1:.3f}]".format(*record["interval"], value=record["value"])


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
            guide[record["task"], record["protocol"]] = (
                record["task"],
                record["protocol"],
                record["layer"],
                f"{_metric(record['validation_metric'])} {record['validation_score']:.3f}",
                ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()),
                ", ".join(f"{layer}: {score:.3f}" for layer, score in record["validation_by_layer"].items()),
            )
    return list(guide.values())


def _metric(name: str) -> str:
    return name.replace("_", " ")


def _unique(lines) -> list[str]:
    return list(dict.fromkeys(lines))
