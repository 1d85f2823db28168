"""Shards a quantised model over the ranks while it is loaded, under ZeRO-3: no rank ever has more of it than its share and one weight.

transformers shards only unquantised models as it loads them (``zero.Init``); a quantised one it loads whole on every rank. Here each tensor
is sharded as soon as it is read (``streaming.py``). A rank quantises its own share of a weight, whole blocks of it; since the nested
quantisation needs all scales of a weight, the ranks gather them. Of a checkpoint that is stored in 4 bits a rank reads its share.

Shapes: O output features, I input features.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import deepspeed_config

from hydraft.models import experts, nf4
from hydraft.models.linear_4bit import hold, kept_constants
from hydraft.models.nf4 import Payload


class Sharding:
    """Shards what transformers' loader places. ``dtype``: of unquantised weights, and in which 4-bit weights are stored and computed with;
    ``double``: whether the constants of experts are quantised too; ``folder``: of the checkpoint.

    The TrainingArguments must exist: their DeepSpeed config says how ZeRO-3 shards.
    """

    def __init__(self, dtype: torch.dtype, double: bool, folder: Path) -> None:
        self.dtype, self.double, self.folder = dtype, double, folder
        # It converts the parameters of a module, of which there are none yet; and it replaces F.linear, which would keep gathered weights.
        self.zero: Any = deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=deepspeed_config())
        self.device: torch.device = self.zero.local_device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def visit(self, model: PreTrainedModel, name: str, value: torch.Tensor) -> torch.Tensor:
        """What is placed under ``name``: a buffer on the rank's device, or a sharded parameter."""
        module, _, last = name.rpartition(".")
        layer = model.get_submodule(module)
        if last in layer._buffers:
            return value.to(self.device)
        if isinstance(layer, Linear4bit) and last == "weight":
            # Those that were quantised here are sharded.
            return self._stored(layer, value) if isinstance(value, Params4bit) and value.quant_state else value
        if experts.is_stacked(layer, last):
            if value.is_floating_point():
                payload, share, state = self._quantised(value.to(self.dtype), self.double)
            else:
                experts.expect_constants(model)
                state = experts.stored_constants(self.folder, name, self.device, self.dtype)
                payload, share = self._share(value, state)
            experts.hold(layer, last, payload, kept_constants(state))
            return self._packed(payload, share, blocksize=payload.block, quant_type="nf4")
        floats = value.is_floating_point()
        return self._sharded(torch.nn.Parameter(value.to(self.dtype) if floats else value, requires_grad=floats))

    def quantise(self, layer: Linear4bit, weight: torch.Tensor) -> torch.nn.Parameter:
        """The sharded parameter of a layer with ``weight`` (O, I), of which only this rank's share is read. Every rank must call it."""
        payload, share, state = self._quantised(weight, layer.weight.compress_statistics)
        return self._held(layer, payload, share, state)

    def _quantised(self, weight: torch.Tensor, double: bool) -> tuple[Payload, torch.Tensor, QuantState]:
        """The payload of a ``weight``, this rank's share of it, and its constants."""
        payload = Payload(weight.shape, double, self.ranks)
        block, of_share = payload.block, payload.share * 2 // payload.block
        first, end = (min(rank * of_share, payload.blocks) for rank in (self.rank, self.rank + 1))
        codes, scales = nf4.quantise_blocks(weight.reshape(-1)[first * block : end * block], self.device)
        mine = torch.nn.functional.pad(scales, (0, of_share - scales.numel()))
        every = torch.empty(of_share * self.ranks, device=self.device)
        dist.all_gather_into_tensor(every, mine)
        state = nf4.quantisation(every[: payload.blocks], weight.shape, weight.dtype, payload.double)
        return payload, payload.packed(codes, state, self.rank, first * block // 2), state

    def _stored(self, layer: Linear4bit, weight: Params4bit) -> torch.nn.Parameter:
        """The sharded parameter of a layer that the checkpoint stores in 4 bits."""
        state: QuantState = weight.quant_state
        payload, share = self._share(weight.data, state)
        state.dtype = self.dtype
        nf4.share_tables(state, self.device)
        if state.nested:
            state.offset = state.offset.to(self.device)
        return self._held(layer, payload, share, state)

    def _share(self, codes: torch.Tensor, state: QuantState) -> tuple[Payload, torch.Tensor]:
        """The payload of a weight that the checkpoint stores in 4 bits, and this rank's share of it."""
        payload = Payload(state.shape, state.nested, self.ranks, state.blocksize)
        return payload, payload.packed(codes, state, self.rank).to(self.device)

    def _held(self, layer: Any, payload: Payload, share: torch.Tensor, state: QuantState) -> torch.nn.Parameter:
        """The parameter of a layer that has this rank's ``share`` of its payload."""
        hold(layer, payload, state, self.dtype)
        known = {name: getattr(layer.weight, name) for name in ("blocksize", "quant_type", "module")}
        return self._packed(payload, share, **known)

    def _packed(self, payload: Payload, share: torch.Tensor, **known: Any) -> torch.nn.Parameter:
        """The sharded parameter that has this rank's ``share`` of a payload."""
        whole = torch.empty(payload.bytes, dtype=torch.uint8, device=self.device)
        if self.zero.zero_param_process_group is None:
            whole[self.rank * payload.share :][: payload.share] = share
        else:  # hpZ makes a second copy, of which this rank's share is that of several ranks
            dist.all_gather_into_tensor(whole, share.contiguous())
        return self._sharded(
            Params4bit(
                whole.view(self.dtype).unsqueeze(1),
                compress_statistics=payload.double,
                quant_storage=self.dtype,
                bnb_quantized=True,
                **known,
            )
        )

    def _sharded(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        self.zero._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=self.device)  # on which it is gathered
        return parameter

    def finish(self, model: torch.nn.Module) -> None:
        """Move what is not in the checkpoint to the rank's device: buffers that are computed."""
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
