"""The launcher's side of a run on several hosts: directs the agents, prints rank 0's output, and finds the cause of a failure.

It does not depend on how the agents were started. See ``protocol.py`` for the messages. No torch.
"""

import base64
import logging
import selectors
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydraft.checkpoint import manifest
from hydraft.errors import ConfigError, Failure, FailureReason, RankFailed
from hydraft.launch.local import hang
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.launch.remote.channel import Channel, Node, close, severity
from hydraft.launch.remote.protocol import LaunchSpec
from hydraft.launch.remote.received_files import ReceivedFiles
from hydraft.runs import consistency
from hydraft.system import streams

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
HELLO_SECONDS = 60.0
"""From starting an agent to its first event."""
SETTLE_SECONDS = 2.0
"""From the first failure to the decision: the cause may arrive after its effects."""
STOP_SECONDS = 8.0
"""From the command ``stop`` to closing the agents' stdin."""


class Supervisor:
    """Directs the agents of one run, from their first event to their last."""

    def __init__(
        self, spec: LaunchSpec, channels: list[Channel], hang_timeout: float, shutdown: ShutdownHandler
    ) -> None:
        self.spec = spec
        self.channels = channels
        self.shutdown = shutdown
        self.signal_to_send = 0
        """A signal that is still to be forwarded to the ranks."""
        self.hang_timeout = hang_timeout
        self.nodes = [Node(name, time.monotonic()) for name in spec.hosts]
        self.last_beat = 0.0
        self.candidates: list[str] | None = None
        """Addresses of the first host; None until all are ready."""
        self.port = 0
        self.started = False
        """Whether the ranks have been started."""
        self.dumped_at: float | None = None
        """When the ranks' stacks were requested."""
        self.received = ReceivedFiles(Path(spec.folder))
        self.selector = selectors.DefaultSelector()
        for channel in channels:
            channel.register(self.selector)

    def run(self) -> None:
        """Wait for all nodes; in any case, no agent is left running.

        Raises:
            RankFailed: the cause of the first failure.
            ConfigError: what the user has to change on a host.
            Preempted: a signal arrived, and the ranks have saved and exited.
            Stopped: a signal ended the ranks at once.
        """
        try:
            with self.shutdown.forwarding(self.request_exit):
                while not self.settled():
                    self.receive(0.2)
                    self.check_connections()
                    if not self.failures():
                        self.advance()
                        self.check_for_hang()
            first = self.nodes[0].done or {}
            if "step" in first:  # everything is saved and has been received: how the others end does not matter
                raise Preempted(first["step"], first["signal"])
            if self.failures():
                raise self.cause()
        finally:
            self.end()

    def request_exit(self, number: int) -> bool:
        """Have the ranks save and exit; False if there are none yet."""
        if not self.started:
            return False
        self.signal_to_send = number  # called by a signal handler, in which a command may be half written: sent later
        return True

    def failures(self) -> list[Node]:
        """The nodes that have failed so far."""
        return [node for node in self.nodes if node.failure is not None]

    def settled(self) -> bool:
        """Whether all nodes have ended, or one has failed and the cause must have arrived by now."""
        first = min((node.ended_at for node in self.failures()), default=float("inf"))
        return all(node.ended for node in self.nodes) or time.monotonic() - first > SETTLE_SECONDS

    def receive(self, seconds: float) -> None:
        """Handle the events that arrive within ``seconds``, and send the heartbeat of this process."""
        if time.monotonic() - self.last_beat >= BEAT_SECONDS:
            self.last_beat = time.monotonic()
            self.send(do="beat")
        if self.signal_to_send:
            self.send(do="finish", signal=self.signal_to_send)
            self.signal_to_send = 0
        for key, _ in self.selector.select(seconds):
            channel: Channel = key.data
            for message in channel.read(key.fileobj, self.selector):
                if isinstance(message, str):
                    logger.info("%s: %s", self.nodes[channel.nodes[0]].name, message)
                else:
                    self.handle(self.nodes[message["node"]], message)

    def send(self, **command: Any) -> None:
        """Send a command to all agents."""
        for channel in self.channels:
            channel.send(**command)

    def handle(self, node: Node, event: dict[str, Any]) -> None:
        """Handle one event."""
        node.last_seen = time.monotonic()
        match event["event"]:
            case "hello":
                self.greet(node, event)
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
                streams.show(base64.b64decode(event["data"]))
            case "file":
                self.received.add(event["name"], base64.b64decode(event["data"]), event["last"])
            case "failed":
                self.fail(node, Failure.from_dict(event["failure"]))
            case "done" if not node.ended:
                node.done, node.ended_at = event, time.monotonic()
                logger.info("%s: %s", node.name, event)

    def greet(self, node: Node, event: dict[str, Any]) -> None:
        """An agent's first event: its versions, and whether it sees the run's folder."""
        node.about = event["about"]
        node.folder = None if event["shared"] else event["folder"]
        logger.info("%s: %s, folder %s", node.name, node.about, event["folder"])
        if node.folder is not None and node is self.nodes[0] and manifest.checkpoints(Path(self.spec.folder)):
            cause = f"resume: {node.name} runs rank 0 and does not see the checkpoints in {self.spec.folder}"
            self.fail(node, _config(f"{cause}: share that folder, or resume from the first host"))

    def fail(self, node: Node, failure: Failure) -> None:
        """A node has failed; only its first final event counts."""
        if not node.ended:
            node.failure, node.ended_at = failure, time.monotonic()
            logger.info("%s: %s", node.name, failure)

    def advance(self) -> None:
        """Take the next step of the start when all nodes have completed the last one.

        Raises:
            ConfigError: hosts have different versions, or one cannot reach the first.
        """
        if self.candidates is None and all(node.about for node in self.nodes):
            own = {"hydraft": consistency.about()["hydraft"]}  # other packages here do not matter: ranks run there
            for node in self.nodes:
                consistency.check([("this machine", own), (node.name, node.about or {})])
            consistency.check([(node.name, node.about or {}) for node in self.nodes])
        if self.candidates is None and all(node.ready for node in self.nodes):
            first = self.nodes[0].ready or {}
            self.port = first["port"]
            self.candidates = self.addresses(first["addresses"])
            self.send(do="probe", port=self.port, addresses=self.candidates)
        elif self.candidates and not self.started and all(node.reached is not None for node in self.nodes[1:]):
            self.started = True
            endpoint = f"{self.rendezvous_address(self.candidates)}:{self.port}"
            logger.info("rendezvous at %s", endpoint)
            self.send(do="go", endpoint=endpoint)

    def addresses(self, own: list[str]) -> list[str]:
        """Addresses at which the first host, which listed its ``own``, may be reached."""
        if self.spec.address is not None:
            return [self.spec.address]
        if len(set(self.spec.hosts)) == 1:
            return ["127.0.0.1"]
        return [address for address in own if not address.startswith("127.")]

    def rendezvous_address(self, candidates: list[str]) -> str:
        """The first of the ``candidates`` that every node reaches."""
        for node in self.nodes[1:]:
            candidates = [address for address in candidates if address in (node.reached or [])]
            if not candidates:
                raise ConfigError(
                    f"{node.name} does not reach {self.nodes[0].name} on port {self.port}: set cluster.address= to an "
                    "address of it, or cluster.port= to a port that is open"
                )
        return candidates[0]

    def check_for_hang(self) -> None:
        """If no rank makes progress, request every stack; once they have arrived, name the rank that hangs."""
        now = time.monotonic()
        if self.dumped_at is None:
            ranks = {rank: known for node in self.nodes for rank, known in node.ranks.items()}
            if hang.is_hung(ranks, self.hang_timeout):
                self.dumped_at = now
                self.send(do="dump")
        elif all(node.stacks is not None for node in self.nodes) or now - self.dumped_at > self.spec.link_timeout:
            failure = hang.diagnose({rank: known for node in self.nodes for rank, known in (node.stacks or {}).items()})
            self.fail(self.nodes[(failure.rank or 0) // self.spec.ranks], failure)

    def check_connections(self) -> None:
        """An agent that ended without a final event, or that no longer sends events, has failed."""
        now = time.monotonic()
        for channel in self.channels:
            closed = channel.closed
            if closed and not self.failures() and channel.retry(self.selector):
                for number in channel.nodes:
                    self.nodes[number].last_seen = now
                continue
            blamed = channel.blamed(channel.stderr) if closed else None
            for node in (self.nodes[number] for number in channel.nodes):
                silence = now - node.last_seen
                if closed:
                    cause = channel.explain(channel.process.returncode, "\n".join(channel.stderr))
                    to_change = node.about is None and blamed in (None, node.name)
                    self.fail(node, _config(cause) if to_change else _lost(cause))
                elif silence > (self.spec.link_timeout if node.about else HELLO_SECONDS):
                    logs = f"; its logs are still there, in {node.folder}" if node.folder else ""
                    self.fail(
                        node, _lost(f"no message for {silence:.0f} s: the machine or the connection is lost{logs}")
                    )

    def cause(self) -> RankFailed | Stopped:
        """The failure that caused the others."""
        node = min(self.failures(), key=severity)
        failure = node.failure
        assert failure is not None
        if failure.reason is FailureReason.interrupted and failure.signal is not None:
            return Stopped(failure.signal)
        log = "train.log" if failure.rank is None else f"rank-{failure.rank}.log"
        failure = replace(failure, host=node.name, log=Path(self.spec.folder) / log)
        if failure.reason is FailureReason.host_lost:
            lost = [one.name for one in self.failures() if one is not node and one.lost]
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            failure = replace(failure, message=f"{failure.message}{_so_are(lost[:3], more)}")
        if failure.reason is FailureReason.config and failure.rank is None:
            failure = replace(failure, message=f"{node.name}: {failure.message}")
        return RankFailed(failure)

    def end(self) -> None:
        """Stop what is still running: by a command, so that its logs arrive, then by closing its stdin."""
        self.send(do="stop")
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(self.may_send(channel) for channel in self.channels):
            self.receive(0.1)
        for channel in self.channels:
            if len(channel.nodes) == 1 and self.nodes[channel.nodes[0]].lost:
                channel.process.kill()  # ssh would wait for a host that does not answer
        close(self.channels)
        self.selector.close()

    def may_send(self, channel: Channel) -> bool:
        """Whether an agent behind ``channel`` may still send events."""
        return not channel.closed and not all(self.nodes[number].lost for number in channel.nodes)


def _so_are(names: list[str], more: str) -> str:
    """The other hosts that are lost, as an addition to a message: a switch or a power line may be the cause of all."""
    return f"; so {'is' if len(names) == 1 else 'are'} {', '.join(names)}{more}" if names else ""


def _config(message: str) -> Failure:
    return Failure(FailureReason.config, message, exception="ConfigError")


def _lost(message: str) -> Failure:
    return Failure(FailureReason.host_lost, message)
