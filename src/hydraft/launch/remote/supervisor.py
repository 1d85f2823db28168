"""The launcher's side of many agents: leads them through a run, shows rank 0's screen, and finds out why one ended. No torch.

It knows nothing of how an agent was started. See ``job.py`` for what is said.
"""

import base64
import logging
import os
import selectors
import sys
import time
from pathlib import Path
from typing import Any

from hydraft.checkpoint import manifest
from hydraft.errors import ConfigError, RankFailed
from hydraft.launch.local import hang
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.launch.remote.channel import Channel, Node, weight
from hydraft.launch.remote.protocol import Job
from hydraft.runs import consistency

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
HELLO_SECONDS = 60.0
"""From starting an agent to its first word."""
SETTLE_SECONDS = 2.0
"""From the first failure to the verdict: the cause may arrive after its effects."""
STOP_SECONDS = 8.0
"""From asking agents to stop to closing their stdin."""


class Supervisor:
    """Leads the agents of one job, from their first word to their last."""

    def __init__(self, job: Job, channels: list[Channel], hang_timeout: float, wish: Wish) -> None:
        self.job = job
        self.channels = channels
        self.wish = wish
        self.asked = 0
        """A signal that is still to be passed on."""
        self.hang_timeout = hang_timeout
        self.nodes = [Node(name, time.monotonic()) for name in job.hosts]
        self.beaten = 0.0
        self.candidates: list[str] | None = None
        """Addresses of the first host; None until all are ready."""
        self.port = 0
        self.went = False
        self.dumped: float | None = None
        """When the ranks were asked for their stacks."""
        self.begun: set[Path] = set()
        """Files of the run's folder that an agent has sent something of."""
        self.selector = selectors.DefaultSelector()
        for channel in channels:
            channel.register(self.selector)

    def run(self) -> None:
        """Wait for all nodes; whatever happens, no agent is left.

        Raises:
            RankFailed: the cause of the first failure.
            ConfigError: what a person has to change on a host.
            Preempted: a signal asked for an early end, and all is saved.
            Stopped: a signal ended the ranks at once.
        """
        try:
            with self.wish.passed_to(self.ask):
                while not self.settled():
                    self.hear(0.2)
                    self.look_after()
                    if not self.failures():
                        self.lead()
                        self.find_a_hang()
            first = self.nodes[0].outcome or {}
            if "step" in first:  # all is saved and here: how the others end is no matter
                raise Preempted(first["step"], first["signal"])
            if self.failures():
                raise self.cause()
        finally:
            self.end()

    def ask(self, number: int) -> bool:
        """Have the ranks save and leave; False as long as there are none."""
        if not self.went:
            return False
        self.asked = number  # a handler calls this: nothing is written here, where something may be half written
        return True

    def failures(self) -> list[Node]:
        """The nodes that ended badly so far."""
        return [node for node in self.nodes if node.failed]

    def settled(self) -> bool:
        """Whether all is over, or one node has failed and the cause must have been told by now."""
        told = min((node.told for node in self.failures()), default=float("inf"))
        return all(node.outcome for node in self.nodes) or time.monotonic() - told > SETTLE_SECONDS

    def hear(self, seconds: float) -> None:
        """Take what the agents say within ``seconds``, and let them know that this process is there."""
        if time.monotonic() - self.beaten >= BEAT_SECONDS:
            self.beaten = time.monotonic()
            self.send(do="beat")
        if self.asked:
            self.send(do="finish", signal=self.asked)
            self.asked = 0
        for key, _ in self.selector.select(seconds):
            channel: Channel = key.data
            for said in channel.read(key.fileobj, self.selector):
                if isinstance(said, str):
                    logger.info("%s: %s", self.nodes[channel.nodes[0]].name, said)
                else:
                    self.take(self.nodes[said["node"]], said)

    def send(self, **command: Any) -> None:
        """Tell all agents."""
        for channel in self.channels:
            channel.send(**command)

    def take(self, node: Node, event: dict[str, Any]) -> None:
        """One event."""
        node.heard = time.monotonic()
        match event["event"]:
            case "hello":
                node.about = event["about"]
                node.folder = None if event["shared"] else event["folder"]
                logger.info("%s: %s, folder %s", node.name, node.about, event["folder"])
                if node.folder is not None and node is self.nodes[0] and manifest.checkpoints(Path(self.job.folder)):
                    cause = f"resume: {node.name} has rank 0 and does not see the checkpoints in {self.job.folder}"
                    self.fail(node, "config", None, f"{cause}: share that folder, or resume from the first host")
            case "say":
                logger.info("%s: %s", node.name, event["text"])
                print(f"{node.name}: {event['text']}", file=sys.stderr)
            case "ready":
                node.ready = event
            case "reached":
                node.reached = event["addresses"]
            case "status":
                node.ranks = {int(rank): known for rank, known in event["ranks"].items()}
            case "stacks":
                node.stacks = {int(rank): known for rank, known in event["ranks"].items()}
            case "screen":
                sys.stdout.flush()
                os.write(1, base64.b64decode(event["data"]))
            case "file":
                self.keep(event["name"], base64.b64decode(event["data"]))
            case "failed" | "done":
                self.end_of(node, event)

    def end_of(self, node: Node, outcome: dict[str, Any]) -> None:
        """How a node ended; its first word on that counts."""
        if node.outcome is None:
            node.outcome, node.told = outcome, time.monotonic()
            logger.info("%s: %s", node.name, outcome)

    def fail(self, node: Node, kind: str, rank: int | None, cause: str) -> None:
        """A node that cannot tell it itself has failed."""
        self.end_of(node, {"event": "failed", "kind": kind, "rank": rank, "cause": cause})

    def lead(self) -> None:
        """Go on where all nodes are at the same point.

        Raises:
            ConfigError: hosts have different versions, or one does not reach the first.
        """
        if self.candidates is None and all(node.about for node in self.nodes):
            own = {"hydraft": consistency.about()["hydraft"]}  # whatever else is installed here, ranks run there
            for node in self.nodes:
                consistency.check([("this machine", own), (node.name, node.about or {})])
            consistency.check([(node.name, node.about or {}) for node in self.nodes])
        if self.candidates is None and all(node.ready for node in self.nodes):
            first = self.nodes[0].ready or {}
            self.port = first["port"]
            self.candidates = self.addresses(first["addresses"])
            self.send(do="reach", port=self.port, addresses=self.candidates)
        elif self.candidates and not self.went and all(node.reached is not None for node in self.nodes[1:]):
            self.went = True
            endpoint = f"{self.meeting_point(self.candidates)}:{self.port}"
            logger.info("ranks meet at %s", endpoint)
            self.send(do="go", endpoint=endpoint)

    def addresses(self, own: list[str]) -> list[str]:
        """Where the first host, with addresses of its ``own``, may be reached."""
        if self.job.address is not None:
            return [self.job.address]
        if len(set(self.job.hosts)) == 1:
            return ["127.0.0.1"]
        return [address for address in own if not address.startswith("127.")]

    def meeting_point(self, candidates: list[str]) -> str:
        """The first of the ``candidates`` that every node reaches."""
        for node in self.nodes[1:]:
            candidates = [address for address in candidates if address in (node.reached or [])]
            if not candidates:
                raise ConfigError(
                    f"{node.name} does not reach {self.nodes[0].name} on port {self.port}: name an address of it with "
                    "cluster.address=, or a port that is open with cluster.port="
                )
        return candidates[0]

    def find_a_hang(self) -> None:
        """When no rank gets on, ask for every stack; when they are there, name the rank that stood still."""
        now = time.monotonic()
        if self.dumped is None:
            if hang.hangs(
                {rank: known for node in self.nodes for rank, known in node.ranks.items()}, self.hang_timeout
            ):
                self.dumped = now
                self.send(do="dump")
        elif all(node.stacks is not None for node in self.nodes) or now - self.dumped > self.job.link_timeout:
            ranks = {rank: known for node in self.nodes for rank, known in (node.stacks or {}).items()}
            rank, cause = hang.verdict(ranks)
            self.fail(self.nodes[(rank or 0) // self.job.ranks], "hung", rank, cause)

    def keep(self, name: str, piece: bytes) -> None:
        """Add a piece to a file of the run's folder; whoever sends it stays inside."""
        root = Path(self.job.folder).resolve()
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise RankFailed(None, f"an agent sent a file named {name!r}", root)
        if target not in self.begun:
            self.begun.add(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
        with target.open("ab") as file:
            file.write(piece)

    def look_after(self) -> None:
        """An agent that ended without a last word, or that fell silent, has failed."""
        now = time.monotonic()
        for channel in self.channels:
            for node in (self.nodes[number] for number in channel.nodes):
                silence = now - node.heard
                if channel.over:
                    cause = channel.explain(channel.process.returncode, "\n".join(channel.said))
                    self.fail(node, "lost" if node.about else "config", None, cause)
                elif silence > (self.job.link_timeout if node.about else HELLO_SECONDS):
                    stays = f"; its logs stay there, in {node.folder}" if node.folder else ""
                    cause = f"no word for {silence:.0f} s: the machine, or the link to it, is gone{stays}"
                    self.fail(node, "lost", None, cause)

    def cause(self) -> RankFailed | Stopped:
        """The failure that brought about the others."""
        node = min(self.failures(), key=weight)
        outcome = node.outcome or {}
        if outcome["kind"] == "asked":
            return Stopped(outcome["signal"])
        rank = outcome["rank"]
        if outcome["kind"] == "config":
            where = "" if rank is not None else f"{node.name}: "
            return RankFailed(
                rank, f"ConfigError: {where}{outcome['cause']}", Path(self.job.folder), "config", node.name
            )
        log = "train.log" if rank is None else f"rank-{rank}.log"
        return RankFailed(rank, outcome["cause"], Path(self.job.folder) / log, outcome["kind"], node.name)

    def end(self) -> None:
        """Stop what still runs: kindly, while its logs come home, then by the end of its stdin."""
        self.send(do="stop")
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(self.may_speak(channel) for channel in self.channels):
            self.hear(0.1)
        for channel in self.channels:
            channel.close()
        self.selector.close()

    def may_speak(self, channel: Channel) -> bool:
        """Whether an agent of it may still have something to say."""
        gone = all((self.nodes[number].outcome or {}).get("kind") == "lost" for number in channel.nodes)
        return not channel.over and not gone
