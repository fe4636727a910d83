"""One fine-tuning run from settings to a model that `pipeline("audio-classification")` serves.

Modes decide which weights are trained, and how fast: LoRA, parameter groups, standardisation, class weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer
from transformers.trainer_utils import get_last_checkpoint

from music2vec_hf.audio.labels import CLASSES, TAGS, VALUES, Labels, find_labels
from music2vec_hf.common.computing import check_gpu
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.metrics import get_metric, scorable_tags
from music2vec_hf.finetuning.arguments import FinetuneArguments, keep_settings, parse_arguments
from music2vec_hf.finetuning.clips import EpochCallback, RandomCrops, Windows, collate, load_labelled_corpus
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.heads_music2vec import Music2VecForSequenceClassification

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
    if output.is_dir() and output.resolve() == Path(args.corpus).resolve():
        raise ValueError(f"`output_dir` is the corpus, {output}. Name another folder for the model.")
    splits = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    corpora = {name: load_labelled_corpus(args.corpus, split) for name, split in splits.items() if split}
    labels = find_labels(corpora["train"], args.label, args.problem_type)
    targets = {name: labels.targets(corpus, f"the split {name}") for name, corpus in corpora.items()}
    known = ("score", "loss", *_metrics(labels)[1])
    if (args.metric_for_best_model or "score").removeprefix("eval_") not in known:
        raise ValueError(f"`metric_for_best_model` is {args.metric_for_best_model!r}. Use one of {', '.join(known)}.")
    keep_settings(args, labels.names, len(corpora["train"]), resumed=checkpoint is not None)
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
    try:
        model.config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"The head cannot be built: {error.__cause__ or error}") from error
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


def _metrics(labels: Labels) -> tuple[str, list[str]]:
    """The metric behind `score`, and those beside it."""
    return {
        CLASSES: ("accuracy", ["accuracy"]),
        TAGS: ("roc_auc", ["roc_auc", "average_precision"]),
        VALUES: ("r2", [f"r2_{name}" for name in labels.names]),
    }[labels.problem_type]


def score_clips(labels: Labels, logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Score the logits `(n, K)` of clips, for regression the values themselves, against [`Labels.targets`].

    Returns:
        `dict`: `accuracy`; or `roc_auc` and `average_precision`, macro over the tags that have both a positive and a
        negative clip, and `tags_left_out`; or `r2_<name>`. `score` is the one to choose by: accuracy, `roc_auc` or
        the mean of the R2.

    Raises:
        ValueError: if no tag can be scored.
    """
    chosen, others = _metrics(labels)
    scores = {"score": get_metric(chosen)(targets, logits)}
    scores |= {name: get_metric(name, labels.names)(targets, logits) for name in others}
    if labels.problem_type == TAGS:
        scores["tags_left_out"] = np.sum(~scorable_tags(targets))
    return {name: float(value) for name, value in scores.items()}
