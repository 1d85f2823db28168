"""Continuous batching of requests: admission to the cache, the queue, and the tokens of each answer.

One thread runs the model, batch after batch (transformers' continuous batching). Everything else here runs in the event loop. A
request is admitted only if the cache has room for its longest possible answer, so that no request is ever preempted. It keeps
its slot until the batch thread reports it finished; a cancelled request ends with the next batch.
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
from hydraft.infer.serve.sampler import BatchSampler, RequestSampler, Sampling
from hydraft.models import row_documents

SPARE = 2
"""Blocks that no single answer may fill: the scheduler allocates one in advance."""


class QueueFull(Exception):
    """The queue is full."""


class GenerationFailed(Exception):
    """An answer could not be finished; the message is for the client."""


class Answer:
    """One answer, from its request to its last token."""

    def __init__(self, prompt: list[int], limit: int, ends: list[int], adapter: str, sampling: Sampling) -> None:
        """``limit``: its most tokens. ``ends``: the tokens that end it. ``adapter``: its adapter's name in the PeftModel."""
        self.prompt, self.limit, self.ends = prompt, limit, ends
        self.sampler = RequestSampler(sampling, adapter, ends[0], prompt)
        self.tokens: list[int] = []
        self.finished = False
        self.error: str | None = None
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        self._updated = asyncio.Event()

    async def chunks(self) -> AsyncIterator[list[int]]:
        """The new tokens, each time there are some.

        Raises:
            GenerationFailed: it will not be finished.
        """
        sent = 0
        while True:
            await self._updated.wait()
            self._updated.clear()
            new, sent = self.tokens[sent:], len(self.tokens)
            if new:
                yield new
            if self.error is not None:
                raise GenerationFailed(self.error)
            if self.finished:
                return

    def update(self, tokens: list[int], finished: bool, error: str | None = None) -> None:
        """Store the tokens so far, and wake the reader."""
        if tokens and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if self.error is None:
            self.tokens, self.error = tokens, error
        self.finished = finished
        self._updated.set()


class Engine:
    """Runs a model for many requests at once."""

    def __init__(self, model: PreTrainedModel | peft.PeftModel, vocabulary: int, serve: ServeConfig) -> None:
        """Allocate the cache. ``vocabulary``: tokens of the tokenizer.

        Raises:
            ConfigError: an adapter cannot share a batch with others, or the cache is too small for one answer.
        """
        multi_lora.check(model)
        base = multi_lora.base_of(model)
        adapters = list(model.peft_config) if isinstance(model, peft.PeftModel) else []
        self.serve = serve
        self.vocabulary = min(vocabulary, base.config.get_text_config().vocab_size)
        self.batch = BatchSampler(self.vocabulary, self._cancel_prefill)
        multi_lora.install(model, self.batch)
        if (reason := row_documents.reason(base)) is not None:
            raise ConfigError(
                f"mode=serve: a batch has several answers in one row, which may see each other: {reason}: use mode=batch"
            )
        implementation = attention.choose(base)
        base.set_attn_implementation(implementation)
        self.block = attention.block_size(implementation)
        """Tokens of a cache block."""
        self.manager = base.init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=self.block,
                num_blocks=max(SPARE + 1, -(-serve.cache_tokens // self.block)),
                max_batch_tokens=serve.batch_tokens,
                max_requests_per_batch=serve.max_running,
                # the keys of a prompt depend on the adapter, which the cache's prefix sharing does not know
                allow_block_sharing=not adapters,
                use_async_batching=False,  # a batch's tokens are sampled before the next batch is assembled
                use_cuda_graph=False,
            ),
        )
        self.manager.logit_processor = self.batch
        with torch.no_grad():
            self.manager.warmup()  # allocates the cache
        self.cache = self.manager.batch_processor.cache
        groups = self.cache.blocks_needed(1, 0)  # layer groups with the same window; each needs its own blocks
        room = (self.cache.num_blocks // groups - SPARE) * self.block
        if room < 1:
            fewest = (SPARE + 1) * groups * self.block
            raise ConfigError(f"serve.cache_tokens={serve.cache_tokens}: must be at least {fewest} for this model")
        known = getattr(base.config.get_text_config(), "max_position_embeddings", None) or room
        self.max_context = min(serve.max_context or known, known, room)
        self.running: dict[str, tuple[Answer, int]] = {}
        self.waiting: deque[Answer] = deque()
        self.free_blocks = self.cache.num_blocks
        """Cache blocks that are not reserved for a running answer."""
        self.closed = False
        self._ids = itertools.count()

    def start(self) -> None:
        """Start the batch thread."""
        self.manager.start()

    def stop(self) -> None:
        """Stop the batch thread; running answers are dropped."""
        self.manager.stop(block=True, hard_stop=True)

    @property
    def alive(self) -> bool:
        """Whether the batch thread runs."""
        return bool(self.manager.is_running())

    def submit(self, answers: list[Answer]) -> None:
        """Run or queue all of these answers, or none.

        Raises:
            QueueFull: they would have to wait, and the queue has no room for them.
            GenerationFailed: the server is shutting down.
        """
        if self.closed:
            raise GenerationFailed("the server is shutting down")
        free, blocks, at_once = self.serve.max_running - len(self.running), self.free_blocks, 0
        for answer in answers if not self.waiting else []:
            blocks -= self._blocks_for(answer)
            at_once += free > at_once and blocks >= 0
        if len(self.waiting) + len(answers) - at_once > self.serve.max_waiting:
            raise QueueFull
        self.waiting.extend(answers)
        self._admit()

    def cancel(self, answer: Answer) -> None:
        """Stop generating ``answer`` and free its slot."""
        answer.sampler.cancelled = True
        if answer in self.waiting:
            self.waiting.remove(answer)
            answer.update([], finished=True)

    def close(self) -> None:
        """Accept no new requests."""
        self.closed = True

    def fail_all(self, reason: str) -> None:
        """End every running and waiting answer with an error."""
        for answer in [*self.waiting, *(answer for answer, _ in self.running.values())]:
            answer.sampler.cancelled = True
            answer.update(answer.tokens, finished=True, error=reason)
        self.waiting.clear()

    def _blocks_for(self, answer: Answer) -> int:
        """Cache blocks that ``answer`` needs at most."""
        return int(self.cache.blocks_needed(-(-(len(answer.prompt) + answer.limit) // self.block) + 1, 0))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.serve.max_running:
            blocks = self._blocks_for(self.waiting[0])
            if blocks > self.free_blocks:
                return
            answer = self.waiting.popleft()
            identity = str(next(self._ids))
            self.running[identity] = (answer, blocks)
            self.free_blocks -= blocks
            self.manager.register_result_handler(identity, self._on_output)
            accepted = self.manager.add_request(
                answer.prompt,
                request_id=identity,
                max_new_tokens=answer.limit,
                streaming=True,
                eos_token_id=answer.ends,
                sampler=answer.sampler,
            )
            if accepted is None:  # the batch thread has died
                self._on_output(GenerationOutput(identity, error="the model has stopped", status=RequestStatus.FAILED))

    def _on_output(self, output: GenerationOutput) -> None:
        """Pass a batch's output for a request to its answer."""
        held = self.running.get(output.request_id)
        if held is None:
            return
        answer, blocks = held
        if output.is_finished():
            del self.running[output.request_id]
            self.free_blocks += blocks
        answer.update(output.generated_tokens, output.is_finished(), output.error)
        self._admit()

    def _cancel_prefill(self, state: RequestState) -> None:
        """In the batch thread: cancel a request during its prefill, before the next batch."""
        self.manager.batch_processor.scheduler.set_request_cancellation(state.request_id)
        output = GenerationOutput(state.request_id, status=RequestStatus.FINISHED)
        self.manager.output_router.deliver(output)
