"""Which weights are trained, and how fast: modes, LoRA, parameter groups, standardisation, class weights."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from music2vec_hf.audio.labels import TAGS, VALUES, Labels
from music2vec_hf.finetuning.arguments import FinetuneArguments
from music2vec_hf.finetuning.clips import RandomCrops, collate
from music2vec_hf.model.heads_music2vec import Music2VecForSequenceClassification

_LORA_TARGETS = ["q_proj", "v_proj"]


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

    Args:
        weights (`torch.Tensor` of shape `(num_labels,)`): from [`class_weights`].
        several (`bool`): several labels a clip: the weights are `pos_weight`.
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
    return LoraModel(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LORA_TARGETS), "default")


__all__ = [
    "WeightedLoss",
    "choose_trained",
    "class_weights",
    "head_parameters",
    "make_optimizer",
    "standardise_features",
]
