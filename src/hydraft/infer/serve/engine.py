"""Answers being written: who runs, who waits, and what of them has come.

One thread runs the model, batch after batch (transformers' continuous batching). Everything else here belongs to the event
loop. A request is admitted only when the cache has room for all it may become, so that none is ever pushed out half-way. It
holds its slot until the batch's thread says that it is through; who is not waited for any more is ended by the next batch.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator

import peft
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState, RequestStatus

from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve import attention, multi_lora
from hydraft.infer.serve.sampler import Batch, Draw, Sampling

SPARE = 2
"""Blocks that no single answer may fill: the scheduler asks for one ahead of need."""


class Full(Exception):
    """No room to wait in."""


class Failed(Exception):
    """An answer that could not be finished; the message is for whoever asked."""


class Answer:
    """One answer, from when it is asked for to its last token."""

    def __init__(self, prompt: list[int], limit: int, ends: list[int], adapter: str, sampling: Sampling) -> None:
        """``limit``: tokens it may have. ``ends``: tokens that end it. ``adapter``: as peft calls it."""
        self.prompt, self.limit, self.ends = prompt, limit, ends
        self.draw = Draw(sampling, adapter, ends[0])
        self.tokens: list[int] = []
        self.finished = False
        self.error: str | None = None
        self.asked_at = time.monotonic()
        self.first_at: float | None = None
        self._news = asyncio.Event()

    async def pieces(self) -> AsyncIterator[list[int]]:
        """The tokens as they come, as many at a time as there are.

        Raises:
            Failed: it will not be finished.
        """
        told = 0
        while True:
            await self._news.wait()
            self._news.clear()
            new, told = self.tokens[told:], len(self.tokens)
            if new:
                yield new
            if self.error is not None:
                raise Failed(self.error)
            if self.finished:
                return

    def update(self, tokens: list[int], finished: bool, error: str | None = None) -> None:
        """Note what came."""
        if tokens and self.first_at is None:
            self.first_at = time.monotonic()
        if self.error is None:
            self.tokens, self.error = tokens, error
        self.finished = finished
        self._news.set()


class Engine:
    """A model at work for many requests."""

    def __init__(self, model: PreTrainedModel | peft.PeftModel, words: int, serve: ServeConfig) -> None:
        """Make the cache; ``start`` sets it to work. ``words``: tokens of the tokenizer.

        Raises:
            ConfigError: an adapter cannot be served beside others, or the cache is too small for one answer.
        """
        multi_lora.check(model)
        base = multi_lora.base_of(model)
        adapters = list(model.peft_config) if isinstance(model, peft.PeftModel) else []
        self.serve = serve
        self.vocabulary = min(words, base.config.get_text_config().vocab_size)
        self.batch = Batch(self.vocabulary, self._drop)
        multi_lora.mix(model, self.batch)
        implementation = attention.choose(base)
        base.set_attn_implementation(implementation)
        self.block = attention.block_size(implementation)
        """Tokens of a block of the cache."""
        self.manager = base.init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=self.block,
                num_blocks=max(SPARE + 1, -(-serve.cache_tokens // self.block)),
                max_batch_tokens=serve.batch_tokens,
                max_requests_per_batch=serve.max_running,
                # what is read of a prompt depends on the adapter, which the cache's index of shared beginnings does not know
                allow_block_sharing=not adapters,
                use_async_batching=False,  # a batch's tokens are chosen here, before the next is put together
                use_cuda_graph=False,
            ),
        )
        self.manager.logit_processor = self.batch
        with torch.no_grad():
            self.manager.warmup()  # makes the cache
        self.cache = self.manager.batch_processor.cache
        groups = self.cache.blocks_needed(1, 0)  # of layers that look back equally far; each takes blocks of its own
        room = (self.cache.num_blocks // groups - SPARE) * self.block
        if room < 1:
            fewest = (SPARE + 1) * groups * self.block
            raise ConfigError(f"serve.cache_tokens={serve.cache_tokens}: must be at least {fewest} for this model")
        known = getattr(base.config.get_text_config(), "max_position_embeddings", None) or room
        self.max_context = min(serve.max_context or known, known, room)
        self.running: dict[str, tuple[Answer, int]] = {}
        self.waiting: deque[Answer] = deque()
        self.blocks = self.cache.num_blocks
        """Of the cache, not promised to anyone."""
        self.closed = False
        self._ids = itertools.count()

    def start(self) -> None:
        """Begin to run batches, in a thread of its own."""
        self.manager.start()

    def stop(self) -> None:
        """End the thread; what still runs is dropped."""
        self.manager.stop(block=True, hard_stop=True)

    @property
    def alive(self) -> bool:
        """Whether batches are run."""
        return bool(self.manager.is_running())

    def ask(self, asked: list[Answer]) -> None:
        """Have answers written; all of them are taken or none.

        Raises:
            Full: they would have to wait, and too many do.
            Failed: the server is ending.
        """
        if self.closed:
            raise Failed("the server is ending")
        free, blocks, at_once = self.serve.max_running - len(self.running), self.blocks, 0
        for answer in asked if not self.waiting else []:
            blocks -= self._needs(answer)
            at_once += free > at_once and blocks >= 0
        if len(self.waiting) + len(asked) - at_once > self.serve.max_waiting:
            raise Full
        self.waiting.extend(asked)
        self._admit()

    def leave(self, answer: Answer) -> None:
        """No one waits for the rest of ``answer``: its slot is wanted back."""
        answer.draw.unwanted = True
        if answer in self.waiting:
            self.waiting.remove(answer)
            answer.update([], finished=True)

    def close(self) -> None:
        """Take nothing new."""
        self.closed = True

    def end_all(self, why: str) -> None:
        """Tell everyone who still waits that no more will come."""
        for answer in [*self.waiting, *(answer for answer, _ in self.running.values())]:
            answer.draw.unwanted = True
            answer.update(answer.tokens, finished=True, error=why)
        self.waiting.clear()

    def _needs(self, answer: Answer) -> int:
        """Blocks of the cache that ``answer`` may come to fill."""
        return int(self.cache.blocks_needed(-(-(len(answer.prompt) + answer.limit) // self.block) + 1, 0))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.serve.max_running:
            needs = self._needs(self.waiting[0])
            if needs > self.blocks:
                return
            answer = self.waiting.popleft()
            identity = str(next(self._ids))
            self.running[identity] = (answer, needs)
            self.blocks -= needs
            self.manager.register_result_handler(identity, self._came)
            taken = self.manager.add_request(
                answer.prompt,
                request_id=identity,
                max_new_tokens=answer.limit,
                streaming=True,
                eos_token_id=answer.ends,
                draw=answer.draw,
            )
            if taken is None:  # the thread has died: nothing will come
                self._came(GenerationOutput(identity, error="the model has stopped", status=RequestStatus.FAILED))

    def _came(self, output: GenerationOutput) -> None:
        """A batch brought something for a request."""
        held = self.running.get(output.request_id)
        if held is None:
            return
        answer, needs = held
        if output.is_finished():
            del self.running[output.request_id]
            self.blocks += needs
        answer.update(output.generated_tokens, output.is_finished(), output.error)
        self._admit()

    def _drop(self, state: RequestState) -> None:
        """In the batch's thread: end a request whose prompt is still being read; it is gone before the next batch."""
        self.manager.batch_processor.scheduler.set_request_cancellation(state.request_id)
        gone = GenerationOutput(state.request_id, status=RequestStatus.FINISHED)
        self.manager.output_router.deliver(gone)
