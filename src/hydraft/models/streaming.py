"""Hooks into transformers' loader, which goes through a checkpoint one tensor at a time.

Its ``from_pretrained`` renames and merges the tensors of each architecture, quantises what bitsandbytes replaced, and places the results in
a model on the meta device. Within ``each_parameter`` another function decides what is placed, so that a tensor can be sharded, or written to a
file, before the next one is read; and 4-bit weights are quantised in pieces, or by ``quantise``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import PreTrainedModel, core_model_loading
from transformers.integrations import bitsandbytes as integration
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from hydraft.models.nf4 import quantise_whole

Visit = Callable[[PreTrainedModel, str, torch.Tensor], torch.Tensor | None]
"""Takes the model, the name of a parameter or buffer, and its value; returns what is placed in the model. None: it stays on the meta
device."""

Quantise = Callable[[Linear4bit, torch.Tensor], torch.nn.Parameter]
"""Takes a 4-bit layer and its weight (O, I), on the CPU a view of the mapped file; returns the layer's parameter."""

After = Callable[[Linear4bit, torch.Tensor], None]


class _Aborted(BaseException):
    """Passes an error through transformers' loader, which would go on with the next tensor: ranks that wait for each other must not."""


@contextmanager
def each_parameter(
    visit: Visit | None = None, quantise: Quantise | None = None, after: After | None = None
) -> Iterator[None]:
    """Within, ``from_pretrained`` reads one tensor at a time, and places what ``visit`` returns for it.

    Args:
        visit: by default, every value is placed as it is.
        quantise: makes the parameter of a 4-bit layer. Then all tensors are read on the CPU, as views of the mapped files, and it and
            ``visit`` move them. By default that is ``nf4.quantise_whole``, on the device that the model is placed on.
        after: called with each 4-bit layer that was quantised here, and its weight.
    """
    place = core_model_loading.set_param_for_module

    def placed(model: PreTrainedModel, name: str, value: Any, info: Any, quantizer: Any) -> None:
        found = value if visit is None else visit(model, name, value)
        if found is not None:
            place(model, name, found, info, quantizer)
            return
        info.missing_keys.discard(name)
        model.get_parameter_or_buffer(name)._is_hf_initialized = True  # otherwise it would be drawn at random

    class Quantised(integration.Bnb4bitQuantize):
        def convert(self, input_dict: Any, *_: Any, model: Any = None, **named: Any) -> Any:
            try:
                return {name: _parameter(model, name, value, quantise, after) for name, value in input_dict.items()}
            except Exception as error:
                raise _Aborted from error

    def on_cpu(quantizer: Any, device_map: Any) -> Any:
        return {"": "cpu"}

    with ExitStack() as replaced:
        replaced.enter_context(_replaced(core_model_loading, "set_param_for_module", placed))
        replaced.enter_context(_replaced(integration, "Bnb4bitQuantize", Quantised))
        if quantise is not None:
            replaced.enter_context(_replaced(Bnb4BitHfQuantizer, "update_device_map", on_cpu))
        replaced.enter_context(_in_order())
        try:
            yield
        except _Aborted as aborted:
            assert aborted.__cause__ is not None
            raise aborted.__cause__ from None


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _in_order() -> Iterator[None]:
    """No threads that read ahead of the tensor that is placed: they have no limit."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _parameter(
    model: PreTrainedModel, name: str, value: Any, quantise: Quantise | None, after: After | None
) -> torch.nn.Parameter:
    layer: Any = model.get_submodule(name.rpartition(".")[0])
    weight = value[0] if isinstance(value, list) else value
    if issubclass(layer.source_cls, Conv1D):  # (I, O), as in GPT-2
        weight = weight.T
    made: torch.nn.Parameter = (quantise or _whole)(layer, weight)
    layer._is_hf_initialized = True
    if after is not None:
        after(layer, weight)
    return made


def _whole(layer: Linear4bit, weight: torch.Tensor) -> torch.nn.Parameter:
    """The layer's parameter, as bitsandbytes makes it."""
    empty = layer.weight
    codes, state = quantise_whole(weight, empty.compress_statistics, empty.quant_storage)
    layer.quant_state = state
    known = {name: value for name, value in vars(empty).items() if name not in ("quant_state", "bnb_quantized")}
    made: torch.nn.Parameter = Params4bit(codes, requires_grad=False, quant_state=state, bnb_quantized=True, **known)
    return made
