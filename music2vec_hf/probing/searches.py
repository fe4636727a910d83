"""Probe settings and the named searches over them.

A search is a protocol's list of settings with its stopping rule. `quick` is meant for minutes on a CPU. A published
protocol is added as one more entry of `SEARCHES`.
"""

from dataclasses import dataclass
from itertools import product

PROBE_KINDS = ("linear", "mlp")


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of one probe.

    Args:
        kind (`str`): `"linear"`, or `"mlp"` for one hidden layer of ReLU units.
        learning_rate (`float`): of Adam.
        dropout (`float`): probability of dropping a hidden unit, in [0, 1).
        dropout_input (`float`): probability of dropping an input feature, in [0, 1).
        weight_decay (`float`): L2 penalty added to the gradient (Adam-coupled), biases too.
        batch_size (`int`): tracks in a mini-batch; capped at the size of the training split.
        standardise (`bool`): features get mean 0 and standard deviation 1 over the training split.
        hidden_size (`int`): hidden units of an `"mlp"`.

    Raises:
        ValueError: if a setting is outside its range.
    """

    kind: str = "linear"
    learning_rate: float = 1e-3
    dropout: float = 0.0
    dropout_input: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 64
    standardise: bool = True
    hidden_size: int = 512

    def __post_init__(self):
        if self.kind not in PROBE_KINDS:
            raise ValueError(f"There is no probe '{self.kind}'; use one of {', '.join(PROBE_KINDS)}.")
        if not (0 <= self.dropout < 1 and 0 <= self.dropout_input < 1):
            raise ValueError(
                f"`dropout` is {self.dropout} and `dropout_input` {self.dropout_input}; both must lie in [0, 1)."
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.batch_size < 1 or self.hidden_size < 1:
            raise ValueError(
                f"`learning_rate` ({self.learning_rate}), `batch_size` ({self.batch_size}) and `hidden_size` "
                f"({self.hidden_size}) must be positive, `weight_decay` ({self.weight_decay}) must not be negative."
            )


@dataclass(frozen=True)
class Search:
    """A list of settings and when their training stops.

    Args:
        name (`str`): name of the protocol, written into every result.
        settings (`tuple[ProbeSettings, ...]`): in the order in which ties are broken: the first one wins.
        max_steps (`int`): optimiser steps at most.
        eval_every (`int`): steps between two looks at the validation split; the untrained probe is looked at too.
        patience (`int`): looks without a strictly better score after which training stops.

    Raises:
        ValueError: if a number is below 1.
    """

    name: str
    settings: tuple[ProbeSettings, ...]
    max_steps: int
    eval_every: int
    patience: int

    def __post_init__(self):
        if min(self.max_steps, self.eval_every, self.patience) < 1:
            raise ValueError(
                f"`max_steps` ({self.max_steps}), `eval_every` ({self.eval_every}) and `patience` ({self.patience}) "
                "must be 1 or more."
            )


def _quick_settings() -> tuple[ProbeSettings, ...]:
    # Learning rates and dropouts that came first or close to it on validation splits of the synthetic corpus with MFCC
    # and chroma features; the hidden layer is JukeMIR's and MARBLE's.
    linear = [
        ProbeSettings("linear", learning_rate=rate, dropout_input=dropout)
        for rate, dropout in product((3e-3, 1e-2), (0.25, 0.5))
    ]
    mlp = [ProbeSettings("mlp", learning_rate=1e-3, dropout=0.5, dropout_input=dropout) for dropout in (0.25, 0.5)]
    return (*linear, *mlp)


SEARCHES = {
    "quick": Search("quick", _quick_settings(), max_steps=500, eval_every=20, patience=8),
}


def get_search(name: str) -> Search:
    """Find a search by its name.

    Raises:
        ValueError: if there is no search of this name.
    """
    if name not in SEARCHES:
        raise ValueError(f"There is no search '{name}'; use one of {', '.join(SEARCHES)}.")
    return SEARCHES[name]
