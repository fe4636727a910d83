"""Settings of a fine-tuning run: those of `TrainingArguments` and ours in one class, from YAML and command line."""

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from music2vec_hf.audio.labels import CLASSES, TAGS, VALUES
from music2vec_hf.common.files import read_json, write_json
from music2vec_hf.common.weights import model_source

MODES = ("frozen", "lora", "last_k", "full")
PROBLEMS = (CLASSES, TAGS, VALUES)


@dataclass
class FinetuneArguments(TrainingArguments):
    """One fine-tuning run: our settings, and those of `TrainingArguments` with some defaults of our own.

    Seconds are seconds of audio. `learning_rate` is that of the encoder (or of LoRA's matrices). After every epoch the
    validation split is scored and a checkpoint kept; the best one by `metric_for_best_model` is loaded at the end.
    `eval_score` is the accuracy, the macro ROC-AUC or the mean R2, by `problem_type`. Raises ValueError for a setting
    that is missing or cannot be.
    """

    model: str = field(default="", metadata={"help": "folder or Hub id of a pretrained Music2Vec model"})
    corpus: str = field(default="", metadata={"help": "folder, glob or Hub id of a labelled corpus"})
    label: list[str] = field(default_factory=list, metadata={"help": "column of labels; several for regression"})
    problem_type: str | None = field(default=None, metadata={"help": f"one of {', '.join(PROBLEMS)}; else inferred"})
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str | None = field(default=None, metadata={"help": "scored once, after training, where it is named"})
    mode: str = field(default="full", metadata={"help": f"what is trained: one of {', '.join(MODES)}"})
    last_k: int = field(default=2, metadata={"help": "layers that mode last_k trains"})
    lora_rank: int = field(
        default=8, metadata={"help": "rank of the matrices that mode lora adds to q_proj and v_proj"}
    )
    train_front_end: bool = field(default=False, metadata={"help": "mode full trains the convolutions too"})
    head_learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the head"})
    classifier_layer: str | None = field(default=None, metadata={"help": "a number, weighted or conv; else the last"})
    classifier_pooling: str = "mean"
    classifier_hidden_size: int = 0
    classifier_dropout: float = 0.0
    class_weights: bool = field(default=False, metadata={"help": "rare classes and rare tags weigh more in the loss"})
    crop_seconds: float = field(default=5.0, metadata={"help": "length of the random crops of training"})
    window_seconds: float = field(default=30.0, metadata={"help": "windows of whole clips in evaluation and use"})
    early_stopping_patience: int = field(default=0, metadata={"help": "epochs without a better score; 0 for no stop"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint in output_dir, if any"})

    learning_rate: float = 1e-4
    per_device_train_batch_size: int = 16
    num_train_epochs: float = 10.0
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "score"
    remove_unused_columns: bool = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    restore_callback_states_from_checkpoint: bool = True
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    dataloader_num_workers: int = field(default_factory=lambda: min(4, os.cpu_count()) * torch.cuda.is_available())

    def __post_init__(self):
        for name in ("model", "corpus", "label"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is not set. Name it in the YAML file or as --{name}.")
        self.model = model_source(self.model)
        if self.mode not in MODES:
            raise ValueError(f"`mode` is {self.mode!r}. Use one of {', '.join(MODES)}.")
        if self.problem_type not in (None, *PROBLEMS):
            raise ValueError(f"`problem_type` is {self.problem_type!r}. Use one of {', '.join(PROBLEMS)}.")
        for name in ("crop_seconds", "window_seconds", "last_k", "lora_rank", "head_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use a value above 0.")
        for name in ("learning_rate", "early_stopping_patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use 0 or more.")
        if isinstance(self.label, str):
            self.label = [self.label]
        if self.ddp_find_unused_parameters is None:
            # LayerDrop, or a head that reads a lower layer, leaves parameters without a gradient.
            self.ddp_find_unused_parameters = True
        super().__post_init__()

    @property
    def head_layer(self) -> int | str | None:
        """`classifier_layer` as `Music2VecConfig` takes it."""
        layer = self.classifier_layer
        return int(layer) if layer is not None and str(layer).isdigit() else layer


def parse_arguments(argv: Sequence[str]) -> FinetuneArguments:
    """`[FILE.yaml] [--name value ...]` -> settings; the command line overrides the file.

    Raises ValueError if the file is not YAML or names a setting that does not exist; if a setting cannot be.
    """
    argv = list(argv)
    parser = HfArgumentParser(FinetuneArguments, description="Fine-tune a Music2Vec model.", usage="[YAML] [options]")
    if argv and argv[0].endswith((".yaml", ".yml")):
        parser.set_defaults(**_read_yaml(Path(argv.pop(0))))
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[0]


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{os.fspath(path)} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)} must hold lines of `name: value`.")
    known = [spec.name for spec in fields(FinetuneArguments)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{os.fspath(path)} sets {name!r}, which is no setting of fine-tuning.{hint}")
    if isinstance(values.get("label"), str):
        values["label"] = [values["label"]]
    # YAML reads a bare no as false.
    return {name: "no" if value is False and name.endswith("_strategy") else value for name, value in values.items()}


_DECIDING = (
    *("label", "problem_type", "train_split", "validation_split", "mode", "last_k", "lora_rank", "train_front_end"),
    *("classifier_layer", "classifier_pooling", "classifier_hidden_size", "classifier_dropout", "class_weights"),
    *("crop_seconds", "learning_rate", "head_learning_rate", "per_device_train_batch_size", "weight_decay", "seed"),
)


def keep_settings(args: FinetuneArguments, names: Sequence[str], num_clips: int, resumed: bool) -> None:
    """Write `finetune.json`: what a run's result depends on, with the names of its labels and its number of clips.

    Raises ValueError if the run is resumed and was begun with something else.
    """
    path = Path(args.output_dir) / "finetune.json"
    now = {name: getattr(args, name) for name in _DECIDING} | {"labels": list(names), "clips": num_clips}
    before = read_json(path, "remove the folder and begin anew") if resumed and path.is_file() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"{args.output_dir} was begun with `{name}` {before.get(name)}, now it is {value}. Take the same, or "
                "name another output_dir."
            )
    if args.should_save:
        write_json(path, now)
