"""Layers whose operations torch.compile fuses (Ansel et al. 2024, doi:10.1145/3620665.3640366), and what that needs.

Each layer's forward pass is compiled by itself: one piece of code serves all layers of a kind, and what surrounds a
layer, such as gathering its weights, stays as it is. Modules and names in checkpoints are the same as without.
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from cloze_trainer.errors import InputError

#: Of torch.compile: what makes programs of a layer.
BACKEND: Final = "inductor"
#: Variants of a layer's code: each kind of layer, with a mask and without, one row and several, training or not.
_VARIANTS: Final = 64


def lacking(device: str, *, compiler: bool, headers: bool, triton: bool) -> str:
    """What compiling for a device misses in an image; empty when nothing.

    compiler: whether there is one, of C++ for processors and of C for GPUs. headers: Python's. triton: the library.
    """
    gpu = device == "cuda"
    missing = [
        *([] if compiler else ["a C compiler (gcc)" if gpu else "a C++ compiler (g++)"]),
        *([] if headers else ["Python's headers (Python.h)"]),
        *(["Triton"] if gpu and not triton else []),
    ]
    return " and ".join(missing)


def check(device: torch.device) -> None:
    """Raise InputError where layers can't be compiled for a device."""
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    missing = lacking(
        device.type,
        compiler=any(map(shutil.which, [named] if (named := os.environ.get(variable)) else names)),
        headers=(Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        triton=find_spec("triton") is not None,
    )
    if missing:
        raise InputError(
            "CompilerMissing",
            f"optimization.compile needs {missing}, which this image lacks: take an image that has it (spec.image), or "
            "remove optimization.compile",
        )


@contextmanager
def compiled(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Within it, the encoder's layers are compiled as they are first run, for any number and length of rows."""
    layers = list(cast(Any, model).encoder.layers) if wanted else []
    if not layers:
        yield
        return
    from torch._dynamo import config  # noqa: PLC0415 - seconds, for few

    with config.patch(recompile_limit=_VARIANTS):
        for layer in layers:
            layer.forward = torch.compile(layer.forward, dynamic=True, backend=BACKEND)
        try:
            yield
        finally:
            # Of the instance: the class's own comes to light again.
            for layer in layers:
                del layer.forward
