"""Who may speak after whom in a conversation that is trained. No torch."""

from collections.abc import Sequence

from hydraft.data.records import Turn
from hydraft.errors import ConfigError

AFTER = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
"""The roles that may follow each role; ``""`` is the start, after a system turn."""


def check_order(turns: Sequence[tuple[int, Turn]], place: str) -> None:
    """Refuse turns that no chat template has in this order.

    Args:
        turns: each with its number in the record.

    Raises:
        ConfigError: a role is out of order, a tool's result belongs to no call, or the last turn is not an answer.
    """
    before, calls = "", set[str]()
    for index, (number, turn) in enumerate(turns):
        if turn.role == "system" and index == 0:
            continue
        if turn.role not in AFTER[before]:
            expected = " or ".join(AFTER[before])
            more = "; a system turn is only read as the first" if turn.role == "system" else ""
            raise ConfigError(f"{place}: turn {number} has the role {turn.role}, expected {expected}{more}")
        if turn.role == "assistant":
            calls = {str(call["id"]) for call in turn.tool_calls if "id" in call}
        if turn.role == "tool" and calls and turn.tool_call_id and turn.tool_call_id not in calls:
            raise ConfigError(
                f"{place}: turn {number} is the result of {turn.tool_call_id!r}, which the answer before it does not call"
            )
        before = turn.role
    if before != "assistant":
        raise ConfigError(f"{place}: does not end with an answer of the assistant")
