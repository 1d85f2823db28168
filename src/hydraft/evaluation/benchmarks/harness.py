"""A loaded model for lm-evaluation-harness. Its requests are made and scored by the harness; here they become batches, shared out over ranks.

Shapes: B requests, T tokens, K of them with logits, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import peft
import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM

from hydraft.evaluation.batches import Done, chunks, of_this_rank
from hydraft.models import exchange

WHOLE = 10**9
"""The harness gets one batch at a time."""


class _Model:
    """What the harness calls of a model. It is no module: the harness would tie its weights anew, which ZeRO-3 has sharded."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        self.config, self.name_or_path = inner.config, inner.name_or_path
        self.keep: int | None = None
        """The last positions of a batch whose logits are needed; None for all."""
        self._keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters

    def __call__(self, ids: torch.Tensor) -> Any:
        """Logits, (B, T, V) or (B, K, V): the harness counts positions from the end."""
        few = {"logits_to_keep": self.keep} if self._keeps and self.keep else {}
        return self.model(input_ids=ids, **few)

    def generate(self, **settings: Any) -> Any:
        several = dist.is_initialized() and dist.get_world_size() > 1
        return self.model.generate(synced_gpus=several, **settings)


class Harness(HFLM):  # type: ignore[misc]
    """``HFLM`` over a model that is already loaded, perhaps sharded, on one or several ranks. Every rank must make the same calls."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        rows: Callable[[int, int], int],
        done: Done,
        begin: Done | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            model: on every rank the same, or its shards.
            tokenizer: of the model.
            device: that of this rank.
            rows: the batch size for rows of up to so many tokens, with so many of them scored or generated.
            done: called with the requests that all ranks have finished.
            begin: called with the number of requests before those of a kind.
        """
        super().__init__(
            _Model(model, device), "causal", tokenizer=tokenizer, batch_size=WHOLE, softmax_dtype="float32"
        )
        self.rows, self.done, self.begin = rows, done, begin or (lambda _: None)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness makes them of texts, without its bar."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each request, and whether it is what greedy decoding gives."""
        groups: dict[tuple[int, ...], list[int]] = {}  # the requests of a group differ in the last token: one row
        for index, (_, context, continuation) in enumerate(requests):
            groups.setdefault((*context, *continuation[:-1]), []).append(index)
        rows = sorted(groups, key=lambda tokens: (len(tokens), tokens))
        longest = max((len(continuation) for _, _, continuation in requests), default=1)
        batches = chunks([len(tokens) for tokens in rows], lambda length: self.rows(length, longest))
        parts = [[index for row in batch for index in groups[rows[row]]] for batch in batches]

        def answer(part: list[int]) -> list[Any]:
            some = [(None, *requests[index][1:]) for index in part]
            read = [min(len(context) + len(end) - 1, self.max_length) for _, context, end in some]
            before = min(length - len(end) for length, (_, _, end) in zip(read, some, strict=True))
            self.model.keep = max(read) - max(before, 0)
            return [list(pair) for pair in HFLM._loglikelihood_tokens(self, some, disable_tqdm=True)]

        return [(float(value), bool(greedy)) for value, greedy in self._shared(parts, answer, len(requests))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that the model generates for each request."""
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(index)
        parts: list[list[int]] = []
        for members in kinds.values():
            new = int(requests[members[0]].args[1].get("max_gen_toks", self.max_gen_toks))
            lengths = [len(self.tok_encode(requests[index].args[0])) for index in members]
            batches = chunks(lengths, lambda length, new=new: self.rows(length, new))  # type: ignore[misc]
            parts += [[members[index] for index in batch] for batch in batches]

        def answer(part: list[int]) -> list[Any]:
            some = [SimpleNamespace(args=requests[index].args) for index in part]
            return list(HFLM.generate_until(self, some, disable_tqdm=True))

        return [str(text) for text in self._shared(parts, answer, len(requests))]

    def _shared(self, parts: list[list[int]], answer: Callable[[list[int]], list[Any]], count: int) -> list[Any]:
        """The answers to ``count`` requests, from this rank's parts and those of the others."""
        self.begin(count)
        found: dict[int, Any] = {}
        if not dist.is_initialized():
            for part in parts:
                found |= dict(zip(part, answer(part), strict=True))
                self.done(len(part))
            return [found[index] for index in range(count)]
        for number, counts, current in of_this_rank(len(parts)):
            answers = answer(parts[number])
            found |= dict(zip(parts[number], answers, strict=True)) if counts else {}
            self.done(sum(len(parts[other]) for other in current))
        shares = exchange.all_gather([[index, one] for index, one in found.items()])
        merged = {index: one for share in shares for index, one in share}
        return [merged[index] for index in range(count)]
