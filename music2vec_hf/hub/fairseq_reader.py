"""Reads a torch checkpoint that names classes of other libraries, without running what it says.

A checkpoint is a pickle, and a pickle is a program: it names functions and says what to call them with. Here only the
few that rebuild tensors and containers are called. Every other name becomes an [`Inert`] placeholder, which keeps what
it is given and does nothing, so that neither omegaconf, argparse nor fairseq is needed or imported.
"""

import functools
import pickle
import re
import tarfile
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

# What reading a damaged or hostile pickle can raise.
_READ_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Inert:
    """In place of an instance of a class, or a result of a function, that a checkpoint names and we do not run.

    `args` is what it was made from, `state` what it was given afterwards; items put into it are dropped.
    """

    def __new__(cls, *args, **kwargs):  # pickle does not always call `__init__`
        self = super().__new__(cls)
        self.args, self.state = args, kwargs
        return self

    def __setstate__(self, state):
        self.state = state

    def _drop(self, *items):
        pass

    __setitem__ = append = extend = add = _drop


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` does in pickles of bytes."""
    return text.encode("latin1")


def _numpy_number(dtype: Inert, data: bytes = b"") -> int | float | bool | None:
    """The number in a pickled numpy scalar; its type is inert, as everything else of numpy's."""
    code = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
    if not isinstance(data, bytes) or code not in ("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8"):
        return None
    return np.frombuffer(data, f"<{code}")[0].item()


_ADMITTED = {
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1_bytes,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
    **{f"numpy.{core}.multiarray.scalar": _numpy_number for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Looks names up in `_ADMITTED` and nowhere else. (torch resolves its storages' names before it asks.)"""

    def find_class(self, module, name):
        found = _ADMITTED.get(f"{module}.{name}")
        if found is None:
            return type("Inert", (Inert,), {"origin": f"{module}.{name}"})
        # A function's copy: a pickle may set attributes of whatever it gets.
        return found if isinstance(found, type) else functools.partial(found)


_PICKLE = types.SimpleNamespace(
    __name__="inert", Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load()
)


def read_checkpoint(checkpoint: str | Path) -> dict:
    """Read a fairseq checkpoint without running anything that it says.

    Returns:
        `dict`: its content, tensors on the CPU, unknown objects as [`Inert`]; `content["model"]` is a dict.

    Raises:
        ValueError: if it cannot be read, or holds no dictionary `model`.
        FileNotFoundError: if there is no such file.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"There is no file {checkpoint}. Give the .pt file of a fairseq run.")
    try:
        with open(checkpoint, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            # torch would unpack the one and hand the other to a reader that runs its code; fairseq writes neither.
            if not is_zip and tarfile.is_tarfile(checkpoint):
                raise ValueError("it is a tar archive")
            if is_zip and "constants.pkl" in torch._C.PyTorchFileReader(str(checkpoint)).get_all_records():
                raise ValueError("it is a TorchScript archive")
            content = torch.load(file, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except _READ_ERRORS as error:
        reason = re.split(r"[.\n]\s|[.\n]$", str(error) or type(error).__name__)[0]  # torch writes paragraphs
        raise ValueError(
            f"{checkpoint} cannot be read as a torch checkpoint ({reason}). It is another kind of file or damaged: "
            "give the .pt file of a fairseq run, or copy it again."
        ) from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not any(isinstance(value, torch.Tensor) for value in model.values()):
        raise ValueError(
            f"{checkpoint} is a torch file without the weights of a fairseq checkpoint (an entry `model`). "
            "Give the .pt file of a fairseq data2vec-audio pretraining run."
        )
    return content


def plain_values(value, depth: int = 0):
    """Dicts, lists, numbers and strings out of what [`read_checkpoint`] gives; `None` for what is none of these.

    Inert placeholders stand for namespaces, omegaconf nodes and enums; `depth` is that of the recursion.
    """
    if depth > 12:  # something that holds itself
        return None
    if isinstance(value, dict):
        return {key: plain_values(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, (list, tuple)):
        return [plain_values(item, depth + 1) for item in value]
    if not isinstance(value, Inert):
        return value if isinstance(value, (bool, int, float, str)) else None
    state = value.state
    if not state:  # an enum member is made from its value
        return plain_values(value.args[0], depth + 1) if len(value.args) == 1 else None
    if isinstance(state, dict):
        state = next((state[key] for key in ("_content", "_val") if key in state), state)
    return plain_values(state, depth + 1)
