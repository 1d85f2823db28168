"""Schema of the ``train`` section: batch, schedule, checkpoints and divergence. No torch."""

from dataclasses import dataclass

from hydraft.config.bounds import setting
from hydraft.config.choices import Keep, OnDivergence, Precision, Save, Scheduler

AUTO = "auto"
"""The value of a setting that the plan decides."""


def _is_interval(every: int | str) -> bool:
    return every == "epoch" or (isinstance(every, int) and every >= 1)


def _is_window(steps: list[int]) -> bool:
    """Whether ``steps`` can be ``train.profile``."""
    return len(steps) == 2 and 1 <= steps[0] <= steps[1] < steps[0] + 50


@dataclass
class TrainConfig:
    """The training loop: batch, learning rate, loss, evaluation, checkpoints and divergence."""

    epochs: float = setting(3, above=0, at_most=1_000_000, unit="epochs")
    """Passes over the training records."""
    max_steps: int | None = setting(None, at_least=1, unit="steps", hint=", or null for train.epochs")
    """Optimizer steps in all; replaces ``epochs``. null: ``epochs`` decides."""
    micro_batch_size: int = setting(4, at_least=1, unit="records")
    """Records of one forward and backward pass on each rank. More than 256 are refused if an epoch has fewer on all ranks together."""
    gradient_accumulation_steps: int = setting(1, at_least=1, unit="passes")
    """Forward and backward passes of one optimizer step."""
    learning_rate: float = setting(2e-4, above=0, below=100, hint=" (usual for LoRA: 1e-4 to 5e-4)")
    """Peak learning rate."""
    scheduler: Scheduler = Scheduler.linear
    """How the learning rate changes after the warm-up: ``constant``; ``linear`` and ``cosine`` fall until the last step; ``wsd``
    (warm-up, stable, decay) is constant until ``decay_ratio``, and then falls linearly; ``polynomial`` falls as the power
    ``decay_power`` of the rest of the steps."""
    min_learning_rate: float = setting(0.0, at_least=0)
    """The learning rate that the schedule falls to."""
    warmup_ratio: float = setting(0.0, at_least=0, below=1)
    """Fraction of all steps over which the learning rate rises from 0."""
    warmup_steps: int | None = setting(None, at_least=1, unit="steps", hint=", or null for train.warmup_ratio")
    """Steps over which it rises, instead of ``warmup_ratio``, which is then 0. null: ``warmup_ratio`` decides."""
    decay_ratio: float = setting(0.1, above=0, at_most=1)
    """``wsd``: fraction of all steps, the last ones, over which the learning rate falls."""
    decay_power: float = setting(2.0, above=0)
    """``polynomial``: 1 falls linearly, 2 first faster and then more slowly."""
    neftune_alpha: float | None = setting(None, above=0, hint=", or null for no noise")
    """NEFTune (arXiv:2310.05914): uniform noise of at most alpha / sqrt(tokens of a row x features) on embeddings in training. null: none."""
    label_smoothing: float = setting(0.0, at_least=0, below=1)
    """Share of a token's target that is spread over the vocabulary (Szegedy et al. 2016). The held-out loss has none."""
    max_grad_norm: float = setting(1.0, at_least=0, hint="; 0 turns clipping off")
    """Clip the global gradient norm; 0 for no clipping."""
    precision: Precision = Precision.auto
    """Data type of the computation. ``auto``: bf16 on a GPU that supports it, fp16 on an older one, fp32 on a CPU."""
    gradient_checkpointing: bool | str = setting(AUTO, one_of=(AUTO, True, False), allowed="auto, true or false")
    """Recompute activations in the backward pass: less memory, about a third more computation. ``auto``: only if the run does not
    fit into memory without it, and does with it."""
    compile: bool = False
    """Compile the decoder layers with torch.compile after the first steps, and print from which step on it saves time."""
    profile: list[int] | None = setting(
        None,
        valid=_is_window,
        allowed="the first and the last of at most 50 steps, as in [10,13]",
        unit="steps",
        hint=", or null",
    )
    """Measure the optimizer steps from the first to the last of these with torch.profiler, on rank 0: a trace, a table of operators, where
    the time of a step goes, and with a GPU a snapshot of its memory. These steps are slower. null: none."""
    log_every: int = setting(10, at_least=1, unit="steps")
    """Optimizer steps between two lines of metrics.jsonl."""
    eval_every: int | str | None = setting(
        None,
        valid=_is_interval,
        allowed="at least 1, or epoch",
        unit="steps",
        hint=", or null to evaluate only before and after training",
    )
    """Evaluate the held-out records during training too: every so many optimizer steps, or every ``epoch``. null: only before and
    after training."""
    eval_loss_only: bool = False
    """During training, compute only the held-out loss (one forward pass per record) and generate no answers (one per token)."""
    patience: int | None = setting(None, at_least=1, unit="evaluations", hint=", or null to train to the end")
    """End the training after this many evaluations in a row without a better held-out score; needs ``eval_every``. null: train to the
    end."""
    min_delta: float = setting(0.0, at_least=0)
    """``patience``: a score is better only if it exceeds the best one before by more than this. 0: by any amount."""
    best_by: str = setting("loss", valid=lambda name: bool(name.strip()), allowed="the name of a held-out score")
    """The held-out score that decides which evaluation is the best: ``loss``, or a score of generated answers such as ``exact_match``."""
    keep: Keep = Keep.last
    """Which weights the result has: those of the ``last`` step, or of the ``best`` evaluation, which needs ``eval_every``."""
    show_answers: int = setting(0, at_least=0, unit="records")
    """Held-out records whose answers before and after training are printed at the end, and shown as a table on the dashboard."""
    save: Save = Save.end
    """``end``: the model is saved at the end. ``epoch``: a checkpoint of each epoch is kept as well."""
    save_every: int | None = setting(None, at_least=1, unit="steps", hint=", or null for none by steps")
    """Optimizer steps between two checkpoints. null: only ``save_minutes`` decides."""
    save_minutes: float | None = setting(1, above=0, unit="minutes", hint=", or null for none by time")
    """Minutes between two checkpoints; longer if saving would take more than 2 % of the time. null: none by time."""
    grace: float = setting(60, at_least=0, at_most=3600, unit="seconds", hint="; with 0 a signal ends the run at once")
    """Time after a signal (SIGTERM, SIGUSR1, Ctrl-C) to finish the step and save a checkpoint. 0: the run ends at once."""
    keep_last: int = setting(2, at_least=1, unit="checkpoints")
    """Newest checkpoints to keep. The one of the best evaluation (``best_by``) is kept too."""
    on_divergence: OnDivergence = OnDivergence.stop
    """When a step has diverged: ``stop`` the run, ``rewind`` to the newest checkpoint and skip that batch, or ``ignore`` it with a
    warning."""
    loss_spike: float | None = setting(
        3.0, above=1, hint=" (times the highest loss of the last 64 steps), or null for no bound"
    )
    """A step has diverged if its loss is above this many times the highest loss of the last 64 steps. null: no bound."""
    zero_grad_steps: int | None = setting(3, at_least=1, unit="steps", hint=", or null for no bound")
    """The run has diverged after this many steps in a row with a gradient norm of exactly 0. null: no bound."""
    max_rewinds: int = setting(3, at_least=1, unit="rewinds", hint="; for none use train.on_divergence=stop")
    """Rewinds of one command, after which the run stops."""
    pass_over: list[int] = setting(
        factory=list,
        valid=lambda steps: all(step >= 1 for step in steps),
        allowed="optimizer steps, counted from 1",
        unit="steps",
    )
    """Optimizer steps to skip: their records are not trained. ``rewind`` adds to this list."""
    auto_micro_batch: bool = False
    """When a GPU runs out of memory: halve the micro-batch, keep the global batch, and restart from the newest checkpoint."""

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate of the first step is 0."""
        return self.warmup_ratio > 0 or self.warmup_steps is not None

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed; an ``auto`` that the plan has not decided yet means no."""
        return self.gradient_checkpointing is True
