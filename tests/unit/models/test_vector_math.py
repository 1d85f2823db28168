"""Vector functions of MKL are first called on one thread: two threads that call one first may get a kernel of low accuracy."""

import re
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.models import vector_math
from hydraft.models.load import load_base

TINY = Path(vector_math.__file__).parent / "tiny"


class Calls(TorchDispatchMode):
    """The number of elements in the first call of each function."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[tuple[str, torch.dtype], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            self.first.setdefault((func.overloadpacket.__name__.rstrip("_"), args[0].dtype), args[0].numel())
        return func(*args, **(kwargs or {}))


def test_functions_are_those_of_torchs_own_list() -> None:
    header = (Path(torch.__file__).parent / "include/ATen/cpu/vml.h").read_text()
    listed = re.findall(r"^IMPLEMENT_VML_MKL\((\w+), \w+\)", header, re.MULTILINE)
    assert sorted(listed) == sorted(function.__name__ for function in vector_math.FUNCTIONS)


def test_no_function_is_first_called_on_many_elements() -> None:
    with Calls() as calls:
        model = load_base(ModelConfig(path=str(TINY)), QuantConfig(), Precision.fp32)
        model(input_ids=torch.arange(5, 60)[None], labels=torch.arange(5, 60)[None]).loss.backward()
    for function in vector_math.FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            assert calls.first[function.__name__, dtype] == 1, function.__name__
