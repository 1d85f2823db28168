"""The train section of the schema; ``config.py`` has the others. No torch here."""

from dataclasses import dataclass, field

from hydraft.config.choices import OnDivergence, Precision, Save, Scheduler

AUTO = "auto"
"""A setting that the plan settles."""


@dataclass
class TrainConfig:
    epochs: float = 3
    """Passes over the training records."""
    max_steps: int | None = None
    """Optimizer steps; set, it takes the place of ``epochs``."""
    micro_batch_size: int = 4
    """Records a rank takes through one forward and backward pass."""
    gradient_accumulation_steps: int = 1
    """Passes before the optimizer steps."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    scheduler: Scheduler = Scheduler.linear
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of the first and second moment (AdamW)."""
    eps: float = 1e-8
    """Added to the root of the second moment (AdamW)."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm; 0 for no clipping."""
    precision: Precision = Precision.auto
    """``auto``: bf16 where the card has it, fp16 on older cards, fp32 on a CPU."""
    gradient_checkpointing: bool | str = AUTO
    """Recompute activations in the backward pass: less memory, about a third more work. ``auto``: where the plan says that the run
    does not fit without, and fits with it."""
    compile: bool = False
    """Compile the decoder layers after the first steps (TorchInductor), and say from which step on that pays."""
    log_every: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    eval_every: int | str | None = None
    """Score the held-out records in mid-training too: each so many optimizer steps, or each ``epoch``; null for neither."""
    eval_loss_only: bool = False
    """In mid-training take the held-out loss alone: one forward pass a record, where answers take one a token."""
    save: Save = Save.end
    """``epoch`` also keeps a checkpoint of each epoch."""
    save_every: int | None = None
    """Optimizer steps between two checkpoints; null leaves it to ``save_minutes``."""
    save_minutes: float | None = 1
    """Minutes between two checkpoints, longer where saving would take more than 2 % of the time; null for none by the clock."""
    grace: float = 60
    """Seconds from a signal (SIGTERM, SIGUSR1, Ctrl-C) to the end: the step is finished and saved; 0 to end at once."""
    keep_last: int = 2
    """Newest checkpoints that are kept, and the one with the lowest held-out loss beside them; the adapter of each loads by itself."""
    on_divergence: OnDivergence = OnDivergence.stop
    """When a step is sick: ``stop``; ``rewind`` to the newest checkpoint and pass that batch over; or ``ignore``, with a warning."""
    loss_spike: float | None = 3.0
    """A loss above so many times the highest of the last 64 steps is sick; null for no bound."""
    zero_grad_steps: int | None = 3
    """So many steps in a row with a gradient norm of exactly 0 are sick; null for any number."""
    max_rewinds: int = 3
    """Rewinds of a command before it stops after all."""
    pass_over: list[int] = field(default_factory=list)
    """Optimizer steps that are not made: their records are never trained from there on. ``rewind`` adds to it."""
    auto_micro_batch: bool = False
    """Out of memory in a pass: halve the micro-batch, keep the global batch, and go on from the newest checkpoint."""

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed; an ``auto`` that has not been settled means no."""
        return self.gradient_checkpointing is True
