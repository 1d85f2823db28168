"""The search space: converts Hydra's sweep overrides to Optuna's distributions, and a trial's values to overrides. No torch."""

from dataclasses import dataclass
from decimal import Decimal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, IntegerNode, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hydraft.errors import ConfigError

Value = str | int | float


@dataclass(frozen=True)
class Space:
    """The axes that are searched, and the overrides that all jobs share."""

    axes: dict[str, BaseDistribution]
    """By override key (``lora.r``, ``zero``); choices are texts as on the command line."""
    fixed: list[str]
    """Overrides of every job."""

    def overrides(self, values: dict[str, Value]) -> list[str]:
        """The overrides of the job that tries ``values``."""
        return [*self.fixed, *(f"{key}={_typed(value)}" for key, value in values.items())]

    def grid(self) -> dict[str, list[Value]]:
        """Every value of each axis.

        Raises:
            ConfigError: an axis is an interval without steps.
        """
        return {key: _points(key, axis) for key, axis in self.axes.items()}


def make_space(overrides: list[Override], config: DictConfig) -> Space:
    """The space of ``overrides``: ``a,b`` and ``choice`` are choices, ``range`` has steps, ``interval`` has none.

    ``tag(log, interval(1e-5, 1e-3))`` is searched on a logarithmic scale. ``config`` is a composed one: if a setting is an integer
    in it, so are the values of its interval.

    Raises:
        ConfigError: there is nothing to search, or an axis is not valid.
    """
    axes: dict[str, BaseDistribution] = {}
    fixed: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            axes[key] = _axis(key, override, config)
        else:
            axes.pop(key, None)  # given after a search space of conf/sweep, it removes that axis
            fixed.append(f"{key}={override.get_value_element_as_str()}")
    if not axes:
        raise ConfigError(
            "-m: nothing to search: give settings more than one value, as in lora.r=4,8,16 or "
            "'train.learning_rate=tag(log, interval(1e-5, 1e-3))'"
        )
    return Space(axes, [item for item in fixed if item.partition("=")[0] not in axes])


def _axis(key: str, override: Override, config: DictConfig) -> BaseDistribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        assert low is not None and high is not None
        if not low < high or (log and low <= 0):
            raise ConfigError(f"{key}: an interval goes from a lower value to a higher one{', above 0' if log else ''}")
        if isinstance(_node(config, key), IntegerNode):
            return IntDistribution(round(low), round(high), log=log)
        return FloatDistribution(float(low), float(high), log=log)
    texts = list(override.sweep_string_iterator())
    if isinstance(sweep, RangeSweep) and len(texts) > 1 and not sweep.shuffle:
        first, last, step = (Decimal(text) for text in (texts[0], texts[-1], str(sweep.step)))
        if step > 0 and all(number == int(number) for number in (first, step)):
            return IntDistribution(int(first), int(last), step=int(step))
        if step > 0:
            return FloatDistribution(float(first), float(first + step * (len(texts) - 1)), step=float(step))
    if not texts:
        raise ConfigError(f"{key}: no value to search")
    return CategoricalDistribution(texts)


def _node(config: DictConfig, key: str) -> object:
    parent, _, leaf = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    return section._get_node(leaf) if isinstance(section, DictConfig) else None


def _points(key: str, axis: BaseDistribution) -> list[Value]:
    if isinstance(axis, CategoricalDistribution):
        return [str(choice) for choice in axis.choices]
    if isinstance(axis, IntDistribution) and not axis.log:
        return list(range(axis.low, axis.high + 1, axis.step))
    if isinstance(axis, FloatDistribution) and axis.step:
        return [axis.low + number * axis.step for number in range(round((axis.high - axis.low) / axis.step) + 1)]
    raise ConfigError(f"{key}: a grid has no intervals; list values ({key}=a,b,c), or use hydra.sweeper.sampler=tpe")


def _typed(value: Value) -> str:
    """Six digits of a float are precise enough for a search, and keep names short."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
