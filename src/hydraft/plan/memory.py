"""Estimates the memory of a rank while the model loads, in training and in evaluation. No torch.

Weights and optimizer state are exact; activations follow a formula that was compared with autograd; the memory of the driver, the
libraries and the allocator is a constant and a percentage, and so approximate.
"""

import dataclasses
from dataclasses import dataclass

from hydraft.config.choices import Batching, Offload, QuantKind
from hydraft.config.schema import Config
from hydraft.plan import hpz, scoring, swap
from hydraft.plan.activations import activations
from hydraft.plan.gathered import Gathered, gathered
from hydraft.plan.loading import loading as while_loading
from hydraft.plan.memory_parts import Parts
from hydraft.plan.model_size import ModelSize
from hydraft.plan.optimizer_states import States, pinned, states
from hydraft.plan.parameters import Layout, Trained
from hydraft.plan.weights import WIDTH, model_bytes, sharded_bytes, share_bytes, storage_width, whole_bytes

DRIVER = 1250 << 20
"""Bytes of a rank's CUDA context with the kernels of cuBLAS and bitsandbytes (681 MiB) and of NCCL's communicator (564 MiB), which
DeepSpeed needs for a single rank too; measured on an H100 (driver 580, CUDA 13.0, NCCL 2.28), GPUs with fewer cores need less."""

SLACK = 0.05
"""Fragmentation of the caching allocator, as a share of the allocated memory."""

PROCESS_ON_CPU, PROCESS_ON_GPU = 600 << 20, 2 << 30
"""Bytes of main memory for a rank's interpreter and libraries; the first was measured, the second is typical."""

HEAP = 1.0
"""Freed activations that the C library keeps on a CPU, as a share of all: measured as 0.6 to 1.2."""


@dataclass(frozen=True)
class Memory:
    """Memory of one rank on its GPU and in main memory; on a CPU all of it is main memory."""

    loading: Parts
    training: Parts
    scoring: Parts
    """0 for a run without held-out records."""
    host_loading: Parts
    host_training: Parts
    host_scoring: Parts

    @property
    def peak(self) -> int:
        """Peak bytes on the GPU."""
        return max(self.loading.total, self.training.total, self.scoring.total)

    @property
    def host_peak(self) -> int:
        """Peak bytes of main memory for one rank."""
        return max(self.host_loading.total, self.host_training.total, self.host_scoring.total)


def memory(config: Config, subject: ModelSize, on_gpu: bool) -> Memory:
    """Estimate the memory of a resolved ``config``; ``on_gpu``: whether ranks have a GPU each."""
    layout, learns = subject.layout, subject.learns
    width = WIDTH[config.train.precision]
    kept = states(config, learns, width, on_gpu)
    if config.zero.swaps:
        kept = swap.in_memory(config, layout, learns, kept, on_gpu)
    frozen = _frozen(config, layout, learns, on_gpu)
    training = _training(config, subject, kept, frozen, width)
    scored = _scoring(config, subject, kept, frozen, width)
    loading, host_loading = while_loading(config, subject, on_gpu)
    host = _relabelled(kept.host, learns) + Parts(weights=frozen.host)
    process = Parts(overhead=PROCESS_ON_GPU if on_gpu else PROCESS_ON_CPU)
    none = Parts()
    if on_gpu:
        return Memory(
            _with_overhead(loading),
            _with_overhead(training),
            _with_overhead(scored) if scored.total else none,
            host_loading + process,
            host + process,
            host + process if scored.total else none,
        )
    passes, scores = (
        parts + host + process + Parts(overhead=round(HEAP * parts.activations)) for parts in (training, scored)
    )
    return Memory(none, none, none, loading + host_loading + process, passes, scores if scored.total else none)


def _relabelled(parts: Parts, learns: Trained) -> Parts:
    """In full fine-tuning, count trained tensors as weights instead of adapter."""
    return dataclasses.replace(parts, weights=parts.adapter, adapter=0) if learns.full else parts


def _with_overhead(parts: Parts) -> Parts:
    return parts + Parts(overhead=DRIVER + round(SLACK * parts.total))


@dataclass(frozen=True)
class _Frozen:
    """Bytes of the frozen weights."""

    device: int
    host: int
    gathered: Gathered
    """Weights that stage 3 has gathered, on the device; in bytes."""


def _frozen(config: Config, layout: Layout, learns: Trained, on_gpu: bool) -> _Frozen:
    """The frozen weights; in full fine-tuning only those that stage 3 gathers."""
    width, own = storage_width(config), WIDTH[config.train.precision]
    if config.zero.stage < 3:
        whole = model_bytes(config, layout.tensors, width) + (sum(learns.frozen) + learns.shared) * own
        return _Frozen(whole - sum(learns.base) * width, 0, Gathered())
    ranks, offloads = config.world_size, config.zero.offload_param is not Offload.none
    device, host = whole_bytes(config, layout.tensors) + learns.shared * own, 0
    sizes = [
        (sharded_bytes(config, tensor, width, ranks), share_bytes(config, tensor, width)) for tensor in layout.tensors
    ]
    sizes += [(count * own, -(-count // ranks) * own) for count in learns.frozen]
    for size, shard in () if learns.full else sizes:
        if size <= config.zero.stage3_param_persistence_threshold * width:
            device += shard + (size if ranks > 1 else 0)
        elif offloads:
            host += 0 if swap.on_disk(config, shard) else pinned(shard, config, on_gpu)
        else:
            device += shard
    device += hpz.second_copy(config, layout, learns)
    moves = ranks > 1 or offloads
    return _Frozen(device, host, gathered(config, layout, learns).times(width) if moves else Gathered())


def _dequantised(config: Config, layout: Layout, width: int) -> int:
    """Bytes of a quantised weight while the backward pass has dequantised it (``dequantize_4bit``)."""
    copies = 0 if config.quant.kind is QuantKind.none else 1
    if config.lora.variant.reads_base:
        copies += 3  # the weight, the update, and their sum
    return copies * layout.largest_linear * width


def _training(config: Config, subject: ModelSize, kept: States, frozen: _Frozen, width: int) -> Parts:
    """The largest of the phases: the embedding, the loss, the backward pass of a layer and of the first, the optimizer step."""
    layout, learns, batch = subject.layout, subject.learns, config.train.micro_batch_size
    tokens = batch * config.objective.requirements.sequences * config.data.max_length  # no micro-batch is larger
    packed = config.data.packing or config.data.batching is Batching.padded  # padding also has logits
    labelled = tokens if packed else min(tokens, batch * subject.labelled)
    held = activations(config, layout, learns, width, tokens, labelled)
    base = Parts(weights=frozen.device) + _relabelled(kept.device, learns)
    dequantised = _dequantised(config, layout, width)
    whole, early = frozen.gathered, held.at_loss // layout.layers
    phases = [
        Parts(activations=early, buffers=whole.start),
        Parts(activations=held.at_loss, logits=held.logits, buffers=whole.head),
        Parts(activations=held.at_layer, buffers=whole.layers + dequantised + held.working),
        Parts(activations=held.at_layer - held.at_loss + early, buffers=whole.end + dequantised + held.working),
        Parts(gradients=kept.step),
    ]
    return base + max(phases, key=lambda parts: parts.total)


def _scoring(config: Config, subject: ModelSize, kept: States, frozen: _Frozen, width: int) -> Parts:
    """The largest of a layer, the loss, answers and labels; plus the memory that training keeps between steps."""
    layout, learns = subject.layout, subject.learns
    if config.data.eval is None:
        return Parts()
    base = Parts(weights=frozen.device) + _relabelled(kept.device, learns)
    layer, head = scoring.losses(config, layout, learns, width)
    memory = scoring.generation_memory(config, layout, learns, width)
    answers = memory.most(config.data.max_length)
    label = scoring.label_tokens(config.data)
    labels = memory.most_rows(config.data.max_length, label) if label else Parts()
    working = Parts(buffers=frozen.gathered.layers + _dequantised(config, layout, width))
    embedding = Parts(buffers=frozen.gathered.start)
    phases = [
        embedding,
        layer + working,
        head + Parts(buffers=frozen.gathered.head),
        answers + working,
        labels + working,
    ]
    return base + max(phases, key=lambda parts: parts.total)
