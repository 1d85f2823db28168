"""A server in its own process, and adapters to serve, for the tests of mode=serve."""

import json as jsonlib
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import SCALE, start_script, wait_for
from hydraft.system.source_tree import TINY

if TYPE_CHECKING:
    import openai

KEY = "a-secret-key-for-tests"


def make_adapters(folder: Path) -> list[Path]:
    """Two adapters of the embedded model whose answers differ from its own and from each other."""
    made = []
    for seed, name in enumerate(("red", "blue")):
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        torch.manual_seed(seed)
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, use_dora=name == "blue"
        )
        model = peft.get_peft_model(base, lora)
        model.save_pretrained(str(folder / name))
        AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / name)
        made.append(folder / name)
    return made


@dataclass
class Server:
    """``python infer.py mode=serve …``, forked from a process that has imported the libraries."""

    adapters: list[Path]
    streams: Path
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    process: Any = None
    url: str = ""

    def start(self) -> "Server":
        """Start the server, and wait until it prints its address."""
        self.streams.mkdir()
        key = self.streams / "key"
        key.write_text(KEY + "\n", encoding="utf-8")
        run = f"run=[{','.join(map(str, self.adapters))}]"
        arguments = ("mode=serve", run, "dtype=fp32", "serve.port=0", f"serve.api_key_file={key}", *self.settings)
        self.process = start_script("infer.py", *arguments, streams=self.streams, **self.environment)
        wait_for(lambda: "http://" in self.said() or not self.process.is_alive(), 120, "the server")
        found = re.search(r"http://\S+", self.said())
        assert found, self.said()
        self.url = found[0]
        return self

    def said(self) -> str:
        """Its stderr so far."""
        file = self.streams / "err"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def client(self, **options: Any) -> "openai.OpenAI":
        """OpenAI's own client."""
        import openai  # a bare GPU machine, where only `adapters` is used, may not have it

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, **options)

    def post(self, path: str, json: Any = None, content: bytes | None = None) -> httpx.Response:
        """Send a request without the client: a value, or raw bytes with a JSON content type."""
        headers = {**bearer(), "Content-Type": "application/json"}
        body = jsonlib.dumps(json).encode() if content is None else content
        return httpx.post(f"{self.url}{path}", content=body, headers=headers, timeout=60 * SCALE)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers=bearer(), timeout=60 * SCALE).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def idle(self) -> bool:
        """Whether no slot is in use and the whole cache is free."""
        return not any(map(self.metric, ("hydraft_running", "hydraft_waiting", "hydraft_cache_used_ratio")))

    def end(self, seconds: float = 60) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
        assert self.process.exitcode is not None, "the server did not end"
        return int(self.process.exitcode)


def bearer(key: str = KEY) -> dict[str, str]:
    """The authorization header with the key."""
    return {"Authorization": f"Bearer {key}"}
