"""The engine of a member: what DeepSpeed's engine is to a run alone, on one rank and without its own forward pass.

The pack computes the loss of a micro-batch and its gradients together with those of other members (``passes.py``). What is left is
to accumulate, clip and step, as DeepSpeed's stages 0 to 2 do on one rank: the norm is that of all gradients in fp32, and in bf16
Adam updates fp32 copies of the weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from hydraft.training.pack.adapter import ADAPTER
from hydraft.training.pack.passes import Answer, Request, Separate
from hydraft.training.pack.scheduler import Member

EPSILON = 1e-6
"""Added to the norm by which gradients are divided, as in DeepSpeed and in torch's ``clip_grad_norm_``."""


class _Given(torch.autograd.Function):
    """A loss that is known already, with its gradients."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, gradients: list[torch.Tensor | None], *_: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        return (None, None, *(None if each is None else each * upstream.to(each.dtype) for each in ctx.gradients))


@dataclass
class Widened:
    """The parameters of a member in bf16, and the fp32 copies that Adam updates."""

    fp16_groups: list[list[torch.nn.Parameter]]
    """Named as in DeepSpeed's optimizers, where ``checkpoint/optimizer_state.py`` looks for them."""
    fp32_groups: list[list[torch.nn.Parameter]]


class MemberEngine:
    """The engine of one member."""

    def __init__(self, module: Any, adam: torch.optim.Optimizer, bound: float, chunked: bool, member: Member) -> None:
        """Create it.

        Args:
            module: the member's own model.
            adam: over the trained parameters of ``module``.
            bound: the largest gradient norm; 0 for none.
            chunked: whether its loss is computed in chunks.
            member: the member that this is the engine of.
        """
        named = module.get_base_model().named_modules()
        self.layers = {name: layer for name, layer in named if isinstance(layer, LoraLayer)}
        self.module = module
        self.basic_optimizer = adam
        self.optimizer: Any = adam
        self.member = member
        self.chunked = chunked
        self.trained = [p for group in adam.param_groups for p in group["params"]]
        self._has_dropout = any(getattr(layer.lora_dropout[ADAPTER], "p", 0.0) for layer in self.layers.values())
        self._bound = bound
        self._norm: torch.Tensor | None = None
        self._mode: bool | None = None
        """The mode of all modules, if it was set here last."""
        self._copies: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        """By parameter in 16 bits, the fp32 copy that Adam updates."""
        if any(parameter.dtype != torch.float32 for parameter in self.trained):
            self._widen()

    def _widen(self) -> None:
        """Have Adam update fp32 copies of the parameters."""
        low, high = [], []
        for group in self.basic_optimizer.param_groups:
            low.append(list(group["params"]))
            high.append([torch.nn.Parameter(parameter.detach().float()) for parameter in group["params"]])
            group["params"] = high[-1]
        self.optimizer = Widened(low, high)
        self._copies = {p: q for lows, highs in zip(low, high, strict=True) for p, q in zip(lows, highs, strict=True)}

    def __call__(self, **batch: Any) -> Any:
        """The loss of a micro-batch: of the pass with other members, or of this member's own if it cannot take part in that."""
        pack, device = self.member.pack, batch["input_ids"].device
        if pack.joins(self.layers, batch):
            try:
                state = random_state(device) if self._has_dropout else None
                answer: Answer = self.member.submit(Request(self.layers, batch, self.trained, state, self.chunked))
                if answer.random is not None:
                    set_random_state(device, answer.random)
                loss = _Given.apply(answer.loss, answer.gradients, *self.trained)  # type: ignore[no-untyped-call]
                return {"loss": loss}
            except Separate:
                pass
        self.member.pause()
        return self.module(**batch)

    def backward(self, loss: torch.Tensor, sync_gradients: bool = True, **_: Any) -> None:
        """Accumulate the gradients of a micro-batch; with ``sync_gradients``, the optimizer step follows."""
        loss.backward()
        if sync_gradients:
            self._step()

    @torch.no_grad()
    def _step(self) -> None:
        held = [parameter for parameter in self.trained if parameter.grad is not None]
        gradients = [parameter.grad.float() for parameter in held if parameter.grad is not None]
        norms = torch._foreach_norm(gradients)
        self._norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        if self._bound and gradients:
            torch._foreach_mul_(gradients, (self._bound / (self._norm + EPSILON)).clamp(max=1.0))
        for parameter, gradient in zip(held, gradients, strict=True):
            if parameter in self._copies:
                self._copies[parameter].grad = gradient
        self.basic_optimizer.step()
        if self._copies:
            torch._foreach_copy_(list(self._copies), list(self._copies.values()))
        self.zero_grad()

    def get_global_grad_norm(self) -> torch.Tensor | None:
        """The gradient norm of the last step, before clipping."""
        return self._norm

    def gradient_clipping(self) -> float:
        """The largest gradient norm; 0 for none."""
        return self._bound

    def was_step_applied(self) -> bool:
        """A step is never skipped: there is no loss scale."""
        return True

    def zero_grad(self) -> None:
        """Remove the gradients."""
        for parameter in (*self.trained, *self._copies.values()):
            parameter.grad = None

    def train(self, mode: bool = True) -> "MemberEngine":
        """As of a module."""
        if (self._mode, self.module.training) != (
            mode,
            mode,
        ):  # the Trainer asks each step; a model has hundreds of modules
            self.module.train(mode)
            self._mode = mode
        return self

    def eval(self) -> "MemberEngine":
        """As of a module."""
        return self.train(False)

    def parameters(self) -> Any:
        """As of a module."""
        return self.module.parameters()


def random_state(device: torch.device) -> torch.Tensor:
    """The state of torch's generator for a device."""
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Replace the state of torch's generator for a device."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
