"""What the files of a model folder say: its shape, the run that made it, and the scores that belong to its weights."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from music2vec_hf.features.embedding_model import load_model, model_hash
from music2vec_hf.hub.remote_code import CONFIG

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RESULTS = "results.json"
_RESULTS_FORMAT = 1
_MODEL_TYPES = ("music2vec", "data2vec-audio")


def read_model_config(folder: str | Path) -> dict:
    """The `config.json` of a Music2Vec or plain data2vec-audio folder.

    Raises:
        ValueError: if the folder holds no finished model of these types.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        names = (path.name for path in folder.glob("checkpoint-*/") if (path / CONFIG).is_file())
        checkpoints = sorted(names, key=lambda name: (len(name), name))
        hint = "Name a folder that `save_pretrained` or `music2vec pretrain` wrote"
        if checkpoints:
            hint = f"The run is not finished: go on with `--resume`, or name a checkpoint such as {checkpoints[-1]}"
        raise ValueError(f"{folder} has no {CONFIG}, so there is no model in it. {hint}.")
    config = _read_json(folder / CONFIG)
    if config.get("model_type") not in _MODEL_TYPES:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}. Name one of {' or '.join(_MODEL_TYPES)}."
        )
    return config


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards and their index.

    Raises:
        ValueError: if there are none, a shard is missing or lies outside the folder, or a file is damaged.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
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
    """Numbers in safetensors files by type, for example `{"F32": 93_800_000}`; only headers are read.

    Raises:
        ValueError: if a file is damaged.
    """
    counts: dict[str, int] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as opened:
                for name in opened.keys():
                    piece, size = opened.get_slice(name), 1
                    for length in piece.get_shape():
                        size *= length
                    counts[piece.get_dtype()] = counts.get(piece.get_dtype(), 0) + size
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); save or copy the model again.") from error
    return counts


def read_run(folder: str | Path) -> dict | None:
    """What the run of [`pretrain`] says about itself, or `None` where there is no `run.json`.

    Args:
        folder (`str` or `Path`): of a finished run, or one of its checkpoints.

    Returns:
        `dict`: the content of `run.json` and, from `metrics.jsonl`, `steps`, `hours_heard`, `hours_worked` (wall time
        without that of steps that were lost), `device_hours`, `loss` (of the last record) and `skipped_updates`.
    """
    folder = Path(folder)
    state = _read_json(folder / "trainer_state.json") if (folder / "trainer_state.json").is_file() else {}
    is_checkpoint = "recipe" in state  # Trainer's own file of that name has none
    output = folder.parent if is_checkpoint else folder
    if not (output / "run.json").is_file():
        return None
    run = _read_json(output / "run.json")
    records = _step_records(output / "metrics.jsonl", state["step"] if is_checkpoint else None)
    sessions = [session for session in run["sessions"] if not records or session["first_step"] < records[-1]["step"]]
    run = run | {"sessions": sessions, "steps": records[-1]["step"] if records else None}
    seconds, device_seconds, last_step = 0.0, 0.0, 0
    for record in records:
        audio = (record["step"] - last_step) * run["audio_seconds_per_step"]
        session = [each for each in sessions if each["first_step"] < record["step"]][-1]
        seconds += audio / record["audio_seconds_per_second"]
        device_seconds += audio / record["audio_seconds_per_second"] * session["num_devices"]
        last_step = record["step"]
    if records:
        run |= {
            "hours_heard": last_step * run["audio_seconds_per_step"] / 3600,
            "hours_worked": seconds / 3600,
            "device_hours": device_seconds / 3600,
            "loss": records[-1]["loss"],
            "skipped_updates": records[-1]["skipped_updates"],
        }
    return run


def _step_records(path: Path, last_step: int | None) -> list[dict]:
    """The records of training steps, without those of probes and a line that a killed run left unfinished."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("audio_seconds_per_second") and (last_step is None or record["step"] <= last_step):
            records.append(record)
    return records


def read_scores(folder: str | Path, results: Sequence[str | Path] | None = None) -> dict:
    """The scores of a model, and of the baselines beside it, out of `results.json` files.

    Args:
        folder (`str` or `Path`): of the model. A score belongs to it if its `model_hash` is that of these weights.
        results (`Sequence`, *optional*): files, or their folders; by default those below the model's folder, and
            those beside it and in its neighbours.

    Returns:
        `dict`: `records`, `averages` and `comparisons` as in results.json, of the model and its baselines alone, and
        `num_foreign`, the number of files that were found and have no score of this model.

    Raises:
        ValueError: if a file that was named is no results file or has no score of this model, or two files have the
            same score.
    """
    folder = Path(folder)
    scores: dict = {"format_version": _RESULTS_FORMAT, "records": [], "averages": [], "comparisons": []}
    contents = _named_results(results) if results is not None else _found_results(folder)
    digest = model_hash(load_model(folder)[0]) if contents else None
    num_foreign, origins = 0, {}
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
        for part in ("records", "averages", "comparisons"):
            rows = content.get(part, [])
            scores[part] += [row | {"of_model": row["source"] in ours} for row in rows if row["source"] in kept]
    return scores | {"num_foreign": num_foreign}


def _named_results(results: Sequence[str | Path]) -> dict[Path, dict]:
    contents = {}
    for path in map(Path, results):
        path = path / RESULTS if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"There are no results at {path}; `music2vec probe` writes them.")
        contents[path] = _read_json(path)
        if not _is_results(contents[path]):
            raise ValueError(f"{path} is no results file of format {_RESULTS_FORMAT}; `music2vec probe` writes them.")
    return contents


def _found_results(folder: Path) -> dict[Path, dict]:
    around = folder.resolve().parent
    paths = {*folder.resolve().rglob(RESULTS), *around.glob(RESULTS), *around.glob(f"*/{RESULTS}")}
    found = {}
    for path in sorted(path for path in paths if path.is_file()):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # some other program's
            continue
        if _is_results(content):
            found[path] = content
    return found


def _is_results(content) -> bool:
    return isinstance(content, dict) and content.get("format_version") == _RESULTS_FORMAT and "records" in content


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); save or copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; save or copy it again.")
    return content


__all__ = ["count_parameters", "read_model_config", "read_run", "read_scores", "weight_files"]
