"""Memory of evaluation on the held-out records, and the batch size for generating answers. No torch.

Nothing is saved for a backward pass: in memory are the values of one layer, and either the logits of ``loss.ROWS`` trained
tokens, or the keys and values of every token of the prompts and of the answers so far.

As many answers are generated at once, and as many rows with a label as the answer (``data.labels``) are computed at once, as need no
more memory than a micro-batch's activations in training, between one and ``MOST``: if training fits, evaluation fits. The number
depends on the config only, not on the number of ranks.

Shapes: N tokens of a batch, L of them trained, T tokens of the longest prompt.
"""

from dataclasses import dataclass, replace

from hydraft.config.data import DataConfig
from hydraft.config.schema import Config
from hydraft.data.label_names import classes
from hydraft.models.loss import ROWS
from hydraft.plan.activations import activations
from hydraft.plan.memory_parts import Parts
from hydraft.plan.parameters import Layout, Trained

MOST = 32
"""The largest batch size for generating answers, and for labels."""


@dataclass(frozen=True)
class GenerationMemory:
    """The memory available for generating answers, and the memory that they need."""

    layout: Layout
    learns: Trained
    width: int
    """Bytes per element in the compute type."""
    new: int
    """The most tokens of an answer."""
    bytes: int
    """The available bytes: those of a micro-batch's activations in training."""

    def records(self, prompt: int) -> int:
        """The batch size for records whose longest prompt has ``prompt`` tokens."""
        return max(1, min(MOST, self.bytes // self.answer(prompt).total))

    def answer(self, prompt: int) -> Parts:
        """The memory of one record with a prompt of ``prompt`` tokens."""
        last = self.layout.vocabulary * (self.width + 4)  # the logits of the last token, and in fp32
        read, written = self._read(prompt), self._written(prompt + self.new)
        return max(replace(read, logits=last), replace(written, logits=last), key=lambda parts: parts.total)

    def _read(self, prompt: int) -> Parts:
        """The forward pass over a prompt, without logits."""
        layer = self._cached
        return Parts(
            cache=prompt * self.layout.attention_layers * layer,
            activations=prompt
            * (forward_bytes(self.layout, self.learns, self.width, prompt) + layer),  # the cache is a copy
        )

    def _written(self, tokens: int) -> Parts:
        """The forward pass over the last of ``tokens`` tokens, without logits."""
        known, layer = self.layout, self._cached
        # The keys and values of a layer are copied to append a token, and repeated for every query head.
        copied = layer + (2 * known.query * self.width if known.key < known.query else 0)
        return Parts(cache=tokens * known.attention_layers * layer, activations=tokens * copied)

    @property
    def _cached(self) -> int:
        """Bytes of the keys and values of a token in one layer."""
        return (2 * self.layout.key + self.layout.features(self.width)) * self.width

    def rows(self, length: int, label: int) -> int:
        """The batch size for prompts of up to ``length`` tokens, each with a label of up to ``label`` tokens."""
        return max(1, min(MOST, self.bytes // self.row(length, label).total))

    def row(self, length: int, label: int) -> Parts:
        """The memory of computing a prompt of ``length`` tokens and then the log-likelihood of a label of ``label`` tokens.

        Logits, their copy in fp32 and its log-softmax are in memory at once: of the prompt's last token, whose log-softmax is kept, and
        of all tokens of the label but its last. A row with both the prompt and the label, which is computed as for the loss, needs less.
        """
        one = self.layout.vocabulary * (self.width + 8)
        read = replace(self._read(length), logits=one)
        written = replace(self._written(length + label), logits=max(1, label - 1) * one + self.layout.vocabulary * 4)
        return max(read, written, key=lambda parts: parts.total)

    def most_rows(self, length: int, label: int) -> Parts:
        """The memory of the largest batch of such rows."""
        return self.row(length, label).times(self.rows(length, label))

    def most(self, prompt: int) -> Parts:
        """The memory of the largest batch, for prompts of up to ``prompt`` tokens."""
        one = self.answer(prompt)
        count = max(1.0, min(float(MOST), self.bytes / one.total))  # shorter prompts may use the rest
        return Parts(**{name: round(count * value) for name, value in one.to_dict().items()})


def label_tokens(data: DataConfig) -> int:
    """The most tokens that a label of ``data.labels`` can have: one for each byte and one for its end; 0 without labels."""
    return min(data.max_length, max((len(label.encode()) + 1 for label in classes(data.labels)), default=0))


def generation_memory(config: Config, layout: Layout, learns: Trained, width: int) -> GenerationMemory:
    """The memory for generating answers in a run whose compute type has ``width`` bytes."""
    tokens = config.train.micro_batch_size * config.objective.requirements.sequences * config.data.max_length
    held = activations(config, layout, learns, width, tokens, 0)
    most = max(held.at_loss, held.at_layer + held.working)
    return GenerationMemory(layout, learns, width, config.data.eval_max_new_tokens, most)


def losses(config: Config, layout: Layout, learns: Trained, width: int) -> list[Parts]:
    """The memory of computing a batch's loss: in a layer, and at the head."""
    longest = config.data.max_length
    tokens = config.train.micro_batch_size * config.objective.requirements.sequences * longest
    layer = tokens * forward_bytes(layout, learns, width, longest)
    states = tokens * layout.hidden * width
    # Logits in fp32 and their log-softmax, and the hidden states of trained tokens, which may be all tokens.
    head = min(tokens, ROWS) * layout.vocabulary * 8 + states
    return [Parts(activations=layer), Parts(activations=states, logits=head)]


def forward_bytes(layout: Layout, learns: Trained, width: int, length: int) -> int:
    """Peak bytes per token of one decoder layer in a forward pass without gradients, for records of ``length`` tokens."""
    hidden, query, key, inner = layout.hidden, layout.query, layout.key, layout.inner
    # The input and its norm; queries, keys and values; the attention output and a copy of it; and the mask, as booleans and as
    # a bias. With a mask, keys and values are repeated for every query head.
    repeated = 2 * query if key < query else 0
    attention = width * (2 * hidden + 3 * query + 2 * key + repeated) + length * (1 + width)
    attention += 4 * width * layout.features(width) + layout.bias(width, length)
    # silu(gate), up, and their product; with an adapter the layer's output, the adapter's and their sum are in memory at once.
    joined = "gate_up_proj" in layout.linears()
    adapted = any(target.endswith(("up_proj", "gate_up_proj")) for target in learns.targets)
    block = width * (2 * hidden + (3 + adapted + (1 + 2 * adapted) * joined) * inner) + length
    return max(attention, block)
