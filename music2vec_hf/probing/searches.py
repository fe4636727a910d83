"""Probe settings and the named searches over them: `quick`, `jukemir` and `marble`.

A search is a protocol's list of settings with its stopping rule and the layers that it tries.

| | `quick` | `jukemir` | `marble` |
| --- | --- | --- | --- |
| settings | 6 | 216 | 6 learning rates |
| layers | all | all (the paper fixed one by a pilot) | all but `conv`, and `weighted` |
| mini-batches | random samples | random samples | epochs |
| looks at validation | every 20 steps | every 8 steps | every epoch |

`jukemir` is the grid of Castellon et al. 2021 as `jukemir/probe/__init__.py` of p-lambda/jukemir (2415556) runs it.
`marble` is the constrained track of MARBLE (Yuan et al. 2023, section 3.2 and appendix A; `models/probers.py` of
a43992899/MARBLE-Benchmark, d9300e3). One thing differs: MARBLE trained its heads in fp16, we train them in fp32.
`quick` is meant for minutes on a CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

PROBE_KINDS = ("linear", "mlp")
WEIGHTED = "weighted"
"""Name of the layer that is a learned, softmax-weighted sum of the transformer layers (layer 0 is none of them)."""


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of one probe.

    Args:
        kind (`str`): `"linear"`, or `"mlp"` for one hidden layer of ReLU units.
        learning_rate (`float`): of Adam.
        dropout (`float`): probability of dropping a hidden unit, in [0, 1).
        dropout_input (`float`): probability of dropping an input feature, in [0, 1).
        weight_decay (`float`): L2 penalty added to the gradient (Adam-coupled), biases too.
        batch_size (`int`): rows in a mini-batch; capped at the size of the training split.
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


def summed_layers(names: Sequence[str]) -> list[str]:
    """Layers that `weighted` sums, first to last: the transformer layers `"1"` to `"L"`, as in MARBLE v1."""
    return sorted((name for name in names if name.isdigit() and name != "0"), key=int)


@dataclass(frozen=True)
class Search:
    """A list of settings, when their training stops, and the layers to try.

    Args:
        name (`str`): name of the protocol, written into every result.
        settings (`tuple[ProbeSettings, ...]`): in the order in which ties are broken: the first one wins.
        max_steps (`int`, *optional*): optimiser steps at most (epochs, if `epochs`); None sets no limit.
        eval_every (`int`): steps (epochs) between two looks at the validation split.
        patience (`int`): looks without a strictly better score after which training stops.
        epochs (`bool`): False draws every mini-batch anew from the whole training split, without replacement, and
            looks at the untrained probe, too; True goes through the shuffled split again and again, a last smaller
            batch included, and looks first after `eval_every` epochs.
        plateau_patience (`int`, *optional*): halve a learning rate after more than so many looks without a better
            score (`torch.optim.lr_scheduler.ReduceLROnPlateau`); None keeps it.
        weighted (`bool`): try the layer `weighted` beside the single ones, and leave out `conv`.
        by_task (`Mapping[str, Mapping]`): task name to fields that differ for this task; see `for_task`.

    Raises:
        ValueError: if a number is below 1.
    """

    name: str
    settings: tuple[ProbeSettings, ...]
    max_steps: int | None
    eval_every: int
    patience: int
    epochs: bool = False
    plateau_patience: int | None = None
    weighted: bool = False
    by_task: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self):
        if min(1 if self.max_steps is None else self.max_steps, self.eval_every, self.patience) < 1:
            raise ValueError(
                f"`max_steps` ({self.max_steps}), `eval_every` ({self.eval_every}) and `patience` ({self.patience}) "
                "must be 1 or more."
            )

    def for_task(self, task_name: str) -> "Search":
        """This search with the numbers that it states for a task."""
        return replace(self, **self.by_task.get(task_name, {}))

    def layers(self, names: Sequence[str]) -> list[str]:
        """Layers that the search tries, of those that there are features of, in the order in which ties are broken."""
        if not self.weighted:
            return list(names)
        single = [name for name in names if name != "conv"]
        return [*single, WEIGHTED] if len(summed_layers(names)) > 1 else single


def _quick_settings() -> tuple[ProbeSettings, ...]:
    # Settings, steps and patience that came near the best of larger lists on validation splits of the synthetic corpus
    # with MFCC, chroma and mel features. 128 hidden units reached what the 512 of JukeMIR and MARBLE did for a quarter
    # of the time, which is spent on patience: a hidden layer may go on learning late. One probe sees the
    # features as they are: chosen on one half of the validation clips and scored on the other, it took mel features
    # from 0.67 to 0.72 on key and left the other eleven pairs of source and task as they were, or a little better.
    linear = [
        ProbeSettings("linear", learning_rate=rate, dropout_input=dropout)
        for rate, dropout in ((3e-3, 0.25), (3e-3, 0.5), (1e-2, 0.25))
    ]
    as_they_are = ProbeSettings("linear", learning_rate=3e-4, dropout_input=0.25, batch_size=256, standardise=False)
    mlp = [
        ProbeSettings("mlp", learning_rate=rate, dropout=dropout, dropout_input=0.25, hidden_size=128)
        for rate, dropout in ((1e-3, 0.5), (3e-3, 0.25))
    ]
    return (*linear, as_they_are, *mlp)


def _jukemir_settings() -> tuple[ProbeSettings, ...]:
    # `dropout_input` is not a further setting: JukeMIR's code drops inputs with the probability of the hidden units.
    grid = product((False, True), PROBE_KINDS, (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3))
    return tuple(
        ProbeSettings(kind, rate, dropout, dropout, decay, batch_size, standardise)
        for standardise, kind, batch_size, rate, dropout, decay in grid
    )


def _marble_settings() -> tuple[ProbeSettings, ...]:
    rates = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    return tuple(ProbeSettings("mlp", rate, dropout=0.2, batch_size=64, standardise=False) for rate in rates)


# Epochs without a better score: before the rate is halved, before training stops. MARBLE's table; tasks that it does
# not name get the numbers of its emotion, key and singer tasks, which are the defaults of the search.
_TAGGING = {"plateau_patience": 3, "patience": 10}
_MARBLE_BY_TASK = {
    "magnatagatune": _TAGGING,
    "magnatagatune-filtered": _TAGGING,
    "mtg-jamendo-top50": _TAGGING,
    "mtg-jamendo-genre": _TAGGING,
    "mtg-jamendo-instrument": _TAGGING,
    "mtg-jamendo-moodtheme": _TAGGING,
    "nsynth-instrument": _TAGGING | {"max_steps": 50},
    "nsynth-pitch": _TAGGING | {"max_steps": 50},
    "vocalset-technique": {"plateau_patience": 5, "patience": 10},
    "gtzan": {"plateau_patience": 6, "patience": 20},
}


SEARCHES = {
    search.name: search
    for search in (
        Search("quick", _quick_settings(), max_steps=2000, eval_every=20, patience=30),
        Search("jukemir", _jukemir_settings(), max_steps=None, eval_every=8, patience=256),
        Search(
            "marble",
            _marble_settings(),
            max_steps=100,
            eval_every=1,
            patience=20,
            epochs=True,
            plateau_patience=5,
            weighted=True,
            by_task=_MARBLE_BY_TASK,
        ),
    )
}


def get_search(name: str) -> Search:
    """Find a search by its name.

    Raises:
        ValueError: if there is no search of this name.
    """
    if name not in SEARCHES:
        raise ValueError(f"There is no search '{name}'; use one of {', '.join(SEARCHES)}.")
    return SEARCHES[name]
