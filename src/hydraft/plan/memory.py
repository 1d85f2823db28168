"""Memory of a rank while the model loads, while it trains and while it is scored. No torch.

Weights and optimizer state are exact; activations follow a formula that autograd was held against; what the driver, the
libraries and the allocator take is a constant and a share, and so about right.
"""

import dataclasses
from dataclasses import dataclass

from hydraft.config.choices import Batching, LoraMethod, Offload, Precision, QuantKind
from hydraft.config.schema import Config
from hydraft.plan import scoring
from hydraft.plan.activations import activations
from hydraft.plan.memory_parts import Parts
from hydraft.plan.optimizer_states import States, pinned, states
from hydraft.plan.parameters import Layout, Tensor, Trained, codes, constants

WIDTH = {Precision.fp32: 4, Precision.bf16: 2, Precision.fp16: 2}
"""Bytes an element."""

DRIVER = 500 << 20
"""Bytes of a CUDA context with its kernels: 0.4 to 0.6 GiB by card and driver."""

NCCL = 300 << 20
"""Bytes of NCCL's channels, with more than one rank."""

SLACK = 0.05
"""Share of what is allocated that the caching allocator cannot use."""

PROCESS_ON_CPU, PROCESS_ON_GPU = 600 << 20, 2 << 30
"""Bytes of main memory that a rank's interpreter and libraries take; the first was measured here, the second is usual."""

HEAP = 1.0
"""Share of the activations that the C library keeps on a CPU after they are freed: measured as 0.6 to 1.2."""

REUSE = 1_000_000_000
"""Stage 3 keeps a gathered weight that comes again within so many elements (DeepSpeed's stage3_max_reuse_distance)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank on its card, and in main memory; on a CPU all of it is main memory."""

    loading: Parts
    training: Parts
    scoring: Parts
    """All 0 for a run without held-out records."""
    host_loading: Parts
    host_training: Parts
    host_scoring: Parts

    @property
    def peak(self) -> int:
        """The most that the card holds."""
        return max(self.loading.total, self.training.total, self.scoring.total)

    @property
    def host_peak(self) -> int:
        """The most that main memory holds, for one rank."""
        return max(self.host_loading.total, self.host_training.total, self.host_scoring.total)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is priced, apart from settings that a search may change."""

    layout: Layout
    learns: Trained
    labelled: int
    """The most trained tokens of a record."""
    stored: Precision = Precision.bf16
    """What the checkpoint's weights are kept in."""


def memory(config: Config, subject: Subject, on_gpu: bool) -> Memory:
    """Price a resolved ``config``; ``on_gpu``: whether ranks have a card each."""
    layout, learns = subject.layout, subject.learns
    width = WIDTH[config.train.precision]
    kept = states(config, learns, width, on_gpu)
    frozen = _frozen(config, layout, learns, on_gpu)
    training = _training(config, subject, kept, frozen, width)
    scored = _scoring(config, subject, kept, frozen, width)
    loading, host_loading = _loading(config, subject, on_gpu)
    host = _named(kept.host, learns) + Parts(weights=frozen.host)
    process = Parts(overhead=PROCESS_ON_GPU if on_gpu else PROCESS_ON_CPU)
    none = Parts()
    if on_gpu:
        return Memory(
            _with_overhead(config, loading),
            _with_overhead(config, training),
            _with_overhead(config, scored) if scored.total else none,
            host_loading + process,
            host + process,
            host + process if scored.total else none,
        )
    passes, scores = (
        parts + host + process + Parts(overhead=round(HEAP * parts.activations)) for parts in (training, scored)
    )
    return Memory(none, none, none, loading + host_loading + process, passes, scores if scored.total else none)


def _named(parts: Parts, learns: Trained) -> Parts:
    """In full fine-tuning what learns is the weights, not an adapter."""
    return dataclasses.replace(parts, weights=parts.adapter, adapter=0) if learns.full else parts


def _with_overhead(config: Config, parts: Parts) -> Parts:
    fixed = DRIVER + (NCCL if config.world_size > 1 else 0)
    return parts + Parts(overhead=fixed + round(SLACK * parts.total))


def stored_bytes(config: Config, tensor: Tensor, width: int) -> tuple[int, int]:
    """Bytes of ``tensor`` itself, and of the constants beside it."""
    quant = config.quant
    return codes(tensor, quant.kind, width), constants(tensor, quant.kind, quant.double_quant)


@dataclass(frozen=True)
class _Frozen:
    """Bytes of the weights that do not learn."""

    device: int
    host: int
    gathered: int
    """On the device, of weights that stage 3 holds whole for a while."""


def _frozen(config: Config, layout: Layout, learns: Trained, on_gpu: bool) -> _Frozen:
    """The model's own weights; in full fine-tuning none is frozen, and only what stage 3 gathers is counted."""
    precision = config.train.precision
    width = WIDTH[precision if precision is not Precision.fp32 else config.model.dtype]
    pairs = [stored_bytes(config, tensor, width) for tensor in layout.tensors]
    copies = int(learns.full and config.objective.requirements.reference_model)
    if config.zero.stage < 3:
        trained_base = sum(learns.base) * width
        return _Frozen(sum(map(sum, pairs)) * (1 + copies) - trained_base, 0, 0)
    ranks, rests = config.world_size, config.zero.offload_param is not Offload.none
    device = sum(beside for _, beside in pairs)  # constants are no parameters: every rank has all of them
    device += copies * sum(map(sum, pairs)) // ranks
    host, large = 0, []
    for size, _ in pairs:
        slice_ = -(-size // (width * ranks)) * width
        if size <= config.zero.stage3_param_persistence_threshold * width:
            device += 0 if learns.full else slice_ + (size if ranks > 1 else 0)
            continue
        large.append(size // width)
        if not learns.full:
            device += 0 if rests else slice_
            host += pinned(slice_, config, on_gpu) if rests else 0
    whole = _gathered(large, config.zero.stage3_prefetch_bucket_size) * width if ranks > 1 or rests else 0
    return _Frozen(device, host, whole)


def _gathered(elements: list[int], prefetch: int) -> int:
    """Elements that are whole at once where forward turns to backward: the tail that comes again within ``REUSE``, the next
    weight, and what is fetched ahead (``__params_to_release`` of partitioned_param_coordinator.py)."""
    if not elements:
        return 0
    tail = 0
    for count in reversed(elements):
        if 2 * tail >= REUSE:  # through the rest of the forward pass, and back
            break
        tail += count
    return min(sum(elements), tail + max(elements) + prefetch)


def _unpacked(config: Config, layout: Layout, width: int) -> int:
    """Bytes of a quantised weight while the backward pass has it in the compute type (``dequantize_4bit``)."""
    copies = 0 if config.quant.kind is QuantKind.none else 1
    if config.lora.method is LoraMethod.dora:
        copies += 3  # the weight, the update, and their sum
    return copies * layout.largest_linear * width


def _training(config: Config, subject: Subject, kept: States, frozen: _Frozen, width: int) -> Parts:
    """The largest of three moments: the loss, one layer's backward pass, the optimizer's step."""
    layout, learns, batch = subject.layout, subject.learns, config.train.micro_batch_size
    tokens = batch * config.objective.requirements.sequences * config.data.max_length  # no micro-batch is larger
    packed = config.data.packing or config.data.batching is Batching.padded  # padding has logits too
    labelled = tokens if packed else min(tokens, batch * subject.labelled)
    held = activations(config, layout, learns, width, tokens, labelled)
    base = Parts(weights=frozen.device) + _named(kept.device, learns)
    unpacked = _unpacked(config, layout, width)
    moments = [
        Parts(activations=held.at_loss, logits=held.logits, buffers=frozen.gathered),
        Parts(activations=held.at_layer, buffers=frozen.gathered + unpacked + held.working),
        Parts(gradients=kept.step),
    ]
    return base + max(moments, key=lambda parts: parts.total)


def _scoring(config: Config, subject: Subject, kept: States, frozen: _Frozen, width: int) -> Parts:
    """The largest of three moments: a layer, the loss, answers; what training keeps between its steps is there too."""
    layout, learns = subject.layout, subject.learns
    if config.data.eval is None:
        return Parts()
    base = Parts(weights=frozen.device) + _named(kept.device, learns)
    layer, head = scoring.losses(config, layout, learns, width)
    answers = scoring.room(config, layout, learns, width).most(config.data.max_length)
    working = Parts(buffers=frozen.gathered + _unpacked(config, layout, width))
    moments = [layer + working, head + Parts(buffers=frozen.gathered), answers + working]
    return base + max(moments, key=lambda parts: parts.total)


def _loading(config: Config, subject: Subject, on_gpu: bool) -> tuple[Parts, Parts]:
    """Where the weights are until training begins: on the card, and in main memory.

    Quantised ones go to the card one by one and whole on each rank, under stage 3 too, which shards them afterwards; stage 3
    shards unquantised ones as it reads them; other stages read them into main memory, where those that keep their type stay
    pages of the file.
    """
    layout, learns = subject.layout, subject.learns
    dtype, quantised = WIDTH[config.model.dtype], config.quant.kind is not QuantKind.none
    whole = sum(sum(stored_bytes(config, tensor, dtype)) for tensor in layout.tensors)
    adapter = sum(learns.adapter) * dtype
    flat = learns.count * dtype if config.zero.stage in (1, 2) else 0  # a second copy while it becomes a flat buffer
    if config.zero.stage == 3 and not quantised:
        slices = sum(-(-tensor.count // config.world_size) for tensor in layout.tensors) * dtype
        rests = config.zero.offload_param is not Offload.none
        largest = max(tensor.count for tensor in layout.tensors) * dtype
        device = Parts(weights=0 if rests else slices, adapter=adapter, buffers=largest)
        return device, Parts(weights=slices if rests else 0)
    device = Parts(weights=whole, adapter=adapter, buffers=max(flat, layout.largest_linear * dtype if quantised else 0))
    reads_first = on_gpu and not quantised and config.model.dtype is not subject.stored
    return device, Parts(weights=whole if reads_first else 0)
