"""Schema of the ``debug`` section: what a run is for that is not trained for its result. No torch."""

from dataclasses import dataclass
from enum import Enum

from hydraft.config.bounds import setting


class DebugKind(Enum):
    none = "none"
    fast = "fast"
    overfit = "overfit"
    profile = "profile"


@dataclass
class DebugConfig:
    """Runs that look for a mistake. They are saved below outputs/debug/, and ``run=last`` leaves them out."""

    kind: DebugKind = DebugKind.none
    """``fast``: a run that is to show that everything works. ``overfit``: train the first batch until it is learned, or to the last step,
    and say which. ``profile``: measure the operators of a few steps. The files of ``conf/debug/`` set what goes with each."""
    cpu: bool = False
    """Use no GPU of this machine, even if there is one."""
    learned_loss: float = setting(0.05, above=0)
    """overfit: the batch is learned if its loss is at most this."""

    @property
    def on(self) -> bool:
        """Whether the run looks for a mistake."""
        return self.cpu or self.kind is not DebugKind.none

    @property
    def name(self) -> str:
        """The option of ``conf/debug/``."""
        return self.kind.value if self.kind is not DebugKind.none or not self.cpu else "cpu"
