"""One fine-tuning run from settings to a model that `pipeline("audio-classification")` serves.

The settings are those of `TrainingArguments` and ours in one class, from YAML and command line. Modes decide which
weights are trained, and how fast: LoRA, parameter groups, standardisation, class weights.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, HfArgumentParser, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from music2vec_hf.audio.labels import CLASSES, TAGS, VALUES, Labels, find_labels
from music2vec_hf.common.computing import check_gpu
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.metrics import get_metric, scorable_tags
from music2vec_hf.common.weights import model_source
from music2vec_hf.finetuning.clips import EpochCallback, RandomCrops, Windows, collate, load_labelled_corpus
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.heads_music2vec import Music2VecForSequenceClassification

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
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}. Use a value above 0.")
        if self.early_stopping_patience < 0:
            raise ValueError(f"`early_stopping_patience` is {self.early_stopping_patience}. Use 0 or more.")
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
    return values


# ---- what is trained ----


def choose_trained(model: Music2VecForSequenceClassification, args: FinetuneArguments):
    """Freeze what `args.mode` does not train. The head is always trained.

    Returns:
        `peft.LoraModel` for mode `lora`, whose `merge_and_unload()` makes a plain model of it again, else `None`.

    Raises:
        ValueError: if peft is missing or `last_k` is more layers than there are.
    """
    encoder, tuner = model.data2vec_audio, None
    layers = encoder.encoder.layers
    if args.mode == "last_k" and args.last_k > len(layers):
        raise ValueError(f"`last_k` is {args.last_k} but the model has {len(layers)} layers.")
    if args.mode == "lora":
        tuner = _add_lora(model, args.lora_rank)
    elif args.mode == "full":
        if not args.train_front_end:
            model.freeze_feature_encoder()
    else:
        model.freeze_base_model()
        if args.mode == "last_k":
            layers[-args.last_k :].requires_grad_(True)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)
    return tuner


def head_parameters(model: Music2VecForSequenceClassification) -> dict[str, torch.nn.Parameter]:
    """Everything that is not the encoder's, by name."""
    prefix = f"{model.base_model_prefix}."
    return {name: value for name, value in model.named_parameters() if not name.startswith(prefix)}


def make_optimizer(model: Music2VecForSequenceClassification, args: FinetuneArguments) -> torch.optim.Optimizer:
    """AdamW with a learning rate for the encoder and one for the head; no decay for biases and norms."""
    head = set(head_parameters(model))
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in head, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": args.head_learning_rate if in_head else args.learning_rate,
                "weight_decay": args.weight_decay if decays else 0.0,
            }
            for (in_head, decays), parameters in groups.items()
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


@torch.no_grad()
def standardise_features(model: Music2VecForSequenceClassification, crops: RandomCrops, args) -> None:
    """Set the head's buffers to mean and deviation of the pooled features of the training crops of epoch 0."""
    model.to(args.device).eval()
    features = []
    for batch in DataLoader(crops, args.per_device_eval_batch_size, collate_fn=collate):
        mask = batch.get("attention_mask")
        mask = None if mask is None else mask.to(args.device)
        features.append(model.pool(batch["input_values"].to(args.device), mask)[0].float().cpu())
    features = torch.cat(features)
    model.feature_mean.copy_(features.mean(0))
    model.feature_std.copy_(features.std(0, unbiased=False).clamp_min(1e-5))


def class_weights(targets: np.ndarray, num_labels: int) -> np.ndarray:
    """Weights for the loss that make classes, or the two sides of a tag, count alike: float32 `[num_labels]`.

    For `(n,)` classes `n / (num_labels * count)`, 1 on average over the clips. For `(n, num_labels)` tags the ratio
    of negative to positive clips (`pos_weight`).
    """
    if targets.ndim == 1:
        counts = np.bincount(targets, minlength=num_labels)
        return (len(targets) / (num_labels * np.maximum(counts, 1))).astype(np.float32)
    positives = targets.sum(0)
    return ((len(targets) - positives) / np.maximum(positives, 1)).astype(np.float32)


class WeightedLoss:
    """Loss with class weights, as `compute_loss_func` of `Trainer`: the mean over all micro-batches of an update.

    `weights` `[num_labels]` are those of [`class_weights`]; with `several` labels a clip they are `pos_weight`.
    """

    def __init__(self, weights: torch.Tensor, several: bool):
        self.weights, self.several = weights, several

    @classmethod
    def of(cls, labels: Labels, targets: np.ndarray) -> "WeightedLoss":
        """The loss that makes the classes or tags of the training split count alike. Raises ValueError for values."""
        if labels.problem_type == VALUES:
            raise ValueError("`class_weights` are for classes and tags; leave them out for regression.")
        return cls(torch.from_numpy(class_weights(targets, len(labels.names))), labels.problem_type == TAGS)

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        logits, weights = outputs["logits"].float(), self.weights.to(outputs["logits"].device)
        if self.several:
            losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
        else:
            losses = F.cross_entropy(logits, labels, weight=weights, reduction="none")
        return losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)


def _add_lora(model: Music2VecForSequenceClassification, rank: int):
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise ValueError("Mode lora needs peft: pip install 'music2vec_hf[finetune]', or use another mode.") from error
    # The layers are changed in place and the model stays what it is, so that Trainer's checkpoints hold the head, its
    # buffers and the matrices together.
    return LoraModel(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"]), "default")


# ---- the run ----

_NO_NOISE = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"), 0.0
)


def finetune(args: FinetuneArguments) -> dict[str, float]:
    """Fine-tune a model on a labelled corpus, choose the best epoch on validation, and save it.

    `args.output_dir` gets the model (for mode `lora` with its matrices merged: a plain
    [`Music2VecForSequenceClassification`]), its feature extractor, `all_results.json`, and the checkpoints from which
    `args.resume` goes on. A run that was killed gives, when resumed, the result that it would have given.

    Returns:
        `dict`: scores of the best epoch on validation as `eval_<metric>` and, where `args.test_split` is named, on
        test as `test_<metric>`, beside the losses and times of `Trainer`.

    Raises:
        ValueError: if the settings, the corpus, its labels or the model cannot be used, in one sentence.
    """
    if not args.use_cpu:
        check_gpu()
    output = Path(args.output_dir)
    checkpoint = get_last_checkpoint(output) if output.is_dir() else None
    if not args.resume and (checkpoint or (output / "config.json").exists()):
        raise ValueError(f"{output} already holds a run. Go on with --resume, or name another output_dir.")
    splits = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    corpora = {name: load_labelled_corpus(args.corpus, split) for name, split in splits.items() if split}
    labels = find_labels(corpora["train"], args.label, args.problem_type)
    targets = {name: labels.targets(corpus, f"the split {name}") for name, corpus in corpora.items()}
    model, extractor = _load(args, labels, targets["train"])
    crops = RandomCrops(corpora["train"], targets["train"], extractor, args.crop_seconds, args.seed)
    windows = {
        name: Windows(corpora[name], targets[name], extractor, args.window_seconds, model.config)
        for name in corpora
        if name != "train"
    }
    if checkpoint is None:  # else the checkpoint holds them
        standardise_features(model, crops, args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        tuner = choose_trained(model, args)
    trainer = _make_trainer(args, model, crops, windows["validation"], labels)
    trainer.train(resume_from_checkpoint=checkpoint)
    results = {}
    for name, prefix in (("validation", "eval"), ("test", "test")):
        if name in windows:
            trainer.compute_metrics = _scorer(windows[name], labels)
            results |= trainer.evaluate(windows[name], metric_key_prefix=prefix)
    model = model if tuner is None else tuner.merge_and_unload()
    if trainer.is_world_process_zero():
        model.save_pretrained(output)
        extractor.save_pretrained(output)
        trainer.save_metrics("all", results, combined=False)
    return results


def finetune_from_yaml(argv: Sequence[str]) -> str:
    """The verb `music2vec finetune`: [`finetune`] by [`parse_arguments`]; scores and folder, in lines for a person."""
    args = parse_arguments(argv)
    lines = [f"{name:<28}{value:.4f}" for name, value in finetune(args).items()]
    return "\n".join([*lines, f"The model is in {args.output_dir}."])


def _load(args: FinetuneArguments, labels: Labels, targets: np.ndarray):
    """The model with a new head for these labels, and its feature extractor."""
    settings = {
        "problem_type": labels.problem_type,
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: number for number, name in enumerate(labels.names)},
        "classifier_layer": args.head_layer,
        "classifier_pooling": args.classifier_pooling,
        "classifier_hidden_size": args.classifier_hidden_size,
        "classifier_dropout": args.classifier_dropout,
        "window_seconds": args.window_seconds,
    }
    if labels.problem_type == VALUES:
        deviations = targets.std(0)
        if not (deviations > 0).all():
            raise ValueError(f"A column of {', '.join(labels.columns)} has one value only in the training split.")
        settings |= {"target_mean": targets.mean(0).tolist(), "target_std": deviations.tolist()}
    if args.mode == "frozen":
        settings |= _NO_NOISE  # a frozen encoder has nothing to learn from it
    with explain_hub_errors(args.model, "a model"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        extractor = Music2VecFeatureExtractor.from_pretrained(args.model)
        model = Music2VecForSequenceClassification.from_pretrained(
            args.model, dtype=torch.float32, ignore_mismatched_sizes=True, **settings
        )
    return model, extractor


def _make_trainer(args, model, crops: RandomCrops, validation: Windows, labels: Labels) -> Trainer:
    callbacks = [EpochCallback(crops)]
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    return Trainer(
        model,
        args,
        data_collator=collate,
        train_dataset=crops,
        eval_dataset=validation,
        compute_loss_func=WeightedLoss.of(labels, crops.targets) if args.class_weights else None,
        compute_metrics=_scorer(validation, labels),
        callbacks=callbacks,
        optimizers=(make_optimizer(model, args), None),
    )


def _scorer(windows: Windows, labels: Labels) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of `Trainer` for these windows."""
    return lambda found: score_clips(labels, windows.clip_logits(found.predictions), windows.targets)


def score_clips(labels: Labels, logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Score the logits `(n, K)` of clips, for regression the values themselves, against [`Labels.targets`].

    Returns:
        `dict`: `accuracy`; or `roc_auc` and `average_precision`, macro over the tags that have both a positive and a
        negative clip, and `tags_left_out`; or `r2_<name>`. `score` is the one to choose by: accuracy, `roc_auc` or
        the mean of the R2.

    Raises:
        ValueError: if no tag can be scored.
    """
    chosen, others = {
        CLASSES: ("accuracy", ["accuracy"]),
        TAGS: ("roc_auc", ["roc_auc", "average_precision"]),
        VALUES: ("r2", [f"r2_{name}" for name in labels.names]),
    }[labels.problem_type]
    scores = {"score": get_metric(chosen)(targets, logits)}
    scores |= {name: get_metric(name, labels.names)(targets, logits) for name in others}
    if labels.problem_type == TAGS:
        scores["tags_left_out"] = np.sum(~scorable_tags(targets))
    return {name: float(value) for name, value in scores.items()}
