"""Tokens per second of mode=serve: 16 concurrent requests or one at a time, compared with transformers' own server.

    python bench/serve.py [--requests 32] [--tokens 64] [--rounds 3] [--device cpu]

On a CPU a Llama of 31 M parameters with random weights (bench/throughput.py) in fp32, on a GPU one of 0.9 B parameters
in bf16. The prompts are those of the shipped records, decoding is greedy, and answers have a fixed length. Both servers
use continuous batching and a cache of the same size. They alternate; the table shows medians over the rounds. Time to
first token is measured until the first text of a stream. Peak memory is that of each server's process.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.results import card, device, write  # noqa: E402
from bench.throughput import LARGE, SMALL, build  # noqa: E402

BLOCK = 256 if find_spec("flash_attn") else 32
"""Tokens per page of the cache; flash-attn requires multiples of 256 for decoding."""
CACHE, BATCH = 16384, 512
"""Tokens of the cache and of a forward pass: the defaults of mode=serve, also passed to the other server."""


@dataclass
class Pass:
    """Results of sending all requests once."""

    rate: float
    """Tokens per second."""
    first: list[float]
    """Seconds to the first token of each request."""


class Server:
    """One of the two servers, in its own process."""

    def __init__(
        self, name: str, command: list[str], model: str | None, url: str, log: Path, limit: float = 300
    ) -> None:
        """Start the server and wait until it responds.

        Args:
            model: model name in the requests; None for the first that the server lists.
            limit: seconds within which it must start.

        Raises:
            SystemExit: the server ended, or did not start in time.
        """
        self.name, self.url = name, url
        began = time.monotonic()
        with log.open("w") as file:
            # infer.py sets this too: idle threads do not spin
            environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        while not self._up():
            if self.process.poll() is not None or time.monotonic() > began + limit:
                self.end()
                sys.exit(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        self.started = time.monotonic() - began
        """Seconds until it responded."""
        self.model = model or httpx.get(f"{url}/v1/models").json()["data"][0]["id"]

    def _up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def peak(self) -> float:
        """Peak memory in GiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 2**20 if found else float("nan")

    def end(self) -> None:
        """Stop the server."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def drive(server: Server, prompts: list[str], tokens: int, at_once: int) -> Pass:
    """Send all prompts, ``at_once`` concurrently; answers without a usage count must have ``tokens`` tokens."""
    semaphore, first, counts = asyncio.Semaphore(at_once), list[float](), list[int]()

    async def one(client: httpx.AsyncClient, prompt: str) -> None:
        body = {
            "model": server.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with semaphore:
            began, seen, ending, counted = time.perf_counter(), False, None, None
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    sys.exit(f"{server.name}: {response.status_code} {await response.aread()!r}")
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    part = json.loads(line.removeprefix("data: "))
                    if "error" in part:
                        sys.exit(f"{server.name}: {part['error']}")
                    counted = (part.get("usage") or {}).get("completion_tokens") or counted
                    for choice in part.get("choices") or ():
                        if choice["delta"].get("content") and not seen:
                            seen = True
                            first.append(time.perf_counter() - began)
                        ending = choice.get("finish_reason") or ending
            if counted is None and ending != "length":  # the assumed number of tokens would be wrong
                sys.exit(f"{server.name}: an answer ended with {ending}")
            counts.append(counted or tokens)

    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, prompt) for prompt in prompts))
        return Pass(sum(counts) / (time.perf_counter() - began), first)


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def servers(model: str, logs: Path, where: str) -> list[Server]:
    """Start hydraft's and transformers' server on the device ``where``."""
    ports = [free_port(), free_port()]
    short, long = ("bf16", "bfloat16") if where == "cuda" else ("fp32", "float32")
    ours = [
        sys.executable, str(ROOT / "infer.py"), "mode=serve", f"run={model}", f"dtype={short}", f"device={where}", f"serve.port={ports[0]}",
        f"serve.cache_tokens={CACHE}", f"serve.batch_tokens={BATCH}",
    ]  # fmt: skip
    theirs = [
        str(Path(sys.executable).with_name("transformers")), "serve", model, "--continuous-batching", "--device", where, "--dtype",
        long, "--cb-block-size", str(BLOCK), "--cb-num-blocks", str(CACHE // BLOCK), "--cb-max-batch-tokens", str(BATCH),
        "--host", "127.0.0.1", "--port", str(ports[1]),
    ]  # fmt: skip
    started = []
    for name, command, model_name, port in (
        ("hydraft", ours, Path(model).name, ports[0]),
        ("transformers serve", theirs, model, ports[1]),
    ):
        started.append(Server(name, command, model_name, f"http://127.0.0.1:{port}", logs / name.split()[0]))
    return started


def percentile(values: list[float], share: float) -> float:
    """The smallest value that a fraction ``share`` of all do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    """Run the servers in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="requests in total")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each server")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device(), help="default: the GPU if there is one")
    options = parser.parse_args()
    file = ROOT / "data/zh_tasks.train.json"
    records = json.loads(file.read_text(encoding="utf-8"))[: options.requests]
    prompts = ["\n".join(filter(None, (record["instruction"], record.get("input")))) for record in records]
    found: dict[tuple[str, int], list[Pass]] = {}
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        build(model, file, LARGE if options.device == "cuda" else SMALL)
        both = servers(str(model), Path(name), options.device)
        try:
            for server in both:
                asyncio.run(drive(server, prompts[:4], 8, 4))  # warm-up
            for turn in range(1, options.rounds + 1):
                for server in both:
                    for at_once in (1, 16):
                        result = asyncio.run(drive(server, prompts, options.tokens, at_once))
                        found.setdefault((server.name, at_once), []).append(result)
                        print(
                            f"round {turn}: {server.name}, {at_once} at once, {result.rate:.0f} tokens/s",
                            file=sys.stderr,
                        )
            peaks = {server.name: server.peak() for server in both}
        finally:
            for server in both:
                server.end()
    where = card() if options.device == "cuda" else "cpu"
    print(
        f"on {where}: {len(prompts)} requests of {options.tokens} tokens, median of {options.rounds}; memory is the process's own\n"
    )
    print("| server | at once | tokens/s | against one at a time | first token p50 | p99 | peak memory |")
    print("|---|---|---|---|---|---|---|")
    rate = {key: statistics.median(result.rate for result in results) for key, results in found.items()}
    for (server_name, at_once), results in found.items():
        first = [seconds for result in results for seconds in result.first]
        print(
            f"| {server_name} | {at_once} | {rate[server_name, at_once]:.0f} "
            f"| {rate[server_name, at_once] / rate[server_name, 1]:.1f} | {percentile(first, 0.5) * 1000:.0f} ms "
            f"| {percentile(first, 0.99) * 1000:.0f} ms | {peaks[server_name]:.2f} GiB |"
        )
    print(
        f"\n{write('serve', {f'{name}, {at_once} at once': found for (name, at_once), found in rate.items()}, options.device)}"
    )


if __name__ == "__main__":
    main()
