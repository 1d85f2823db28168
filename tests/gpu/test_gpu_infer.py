"""Inference on a GPU: generate, batch, serve, export; a batch of several adapters does not wait for the GPU."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from conftest import ROOT, wait_for
from gpu.on_card import DEVICE, gpu_only, run, train, weights
from hydraft.config.serve import ServeConfig
from hydraft.infer.serve import multi_lora
from hydraft.infer.serve.engine import Answer, Engine
from hydraft.infer.serve.sampler import Sampling
from hydraft.system.source_tree import TINY
from using import adapter

pytestmark = pytest.mark.gpu

ON = f"device={DEVICE}"
QUESTION = "判断这条评论的情感：房间很干净，服务也热情"


@pytest.fixture(scope="module", params=["none", "nf4", "int8"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose base is quantised according to the parameter."""
    return adapter(tmp_path_factory.mktemp(request.param) / "mine", f"quant={request.param}")


def test_a_prompt_is_answered(made: Path) -> None:
    """Greedy answers are the same twice, and sampling works too."""
    arguments = ("mode=generate", f"run={made}", f"prompt={QUESTION}", "max_new_tokens=16", ON)
    first, second = (run("infer.py", *arguments).stdout.strip() for _ in range(2))
    assert first and first == second
    assert run("infer.py", *arguments, "temperature=0.8", "top_p=0.9", "seed=3").stdout.strip()


def test_a_file_of_prompts_is_answered(made: Path, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i}加一等于几？" * (1 + i % 3)}) + "\n" for i in range(7)))
    settings = (
        "mode=batch",
        f"run={made}",
        f"input={prompts}",
        f"output={answers}",
        "max_new_tokens=8",
        "batch_size=3",
    )
    run("infer.py", *settings)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    assert all(0 < line["tokens"] <= 8 for line in lines)


def test_a_server_answers(made: Path, tmp_path: Path) -> None:
    """Concurrent requests, some with sampling, logprobs and penalties; the server ends on SIGTERM."""
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "infer.py"), "mode=serve", f"run={made}", "serve.port=0", "serve.cache_tokens=4096", ON],
            stdout=file, stderr=file, cwd=ROOT, env={**os.environ, "HYDRAFT_API_KEY": ""},
        )  # fmt: skip
    try:
        wait_for(lambda: "http://" in log.read_text() or process.poll() is not None, 180, "the server")
        assert process.poll() is None, log.read_text()
        url = log.read_text().split(" at ")[-1].strip()

        async def ask(client: httpx.AsyncClient, **more: Any) -> Any:
            body = {
                "model": "mine",
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": 12,
                "temperature": 0,
                **more,
            }
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            return response.json()["choices"][0]

        async def scenario() -> tuple[Any, list[Any]]:
            async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                alone = await ask(client)
                others = [
                    ask(client), ask(client, temperature=1.0, seed=3), ask(client, temperature=1.0, seed=3), ask(client, top_p=0.5, temperature=1.0),
                    ask(client, logprobs=True, top_logprobs=3), ask(client, frequency_penalty=1.0, logit_bias={"300": 5}), ask(client, max_tokens=1),
                ]  # fmt: skip
                return alone, list(await asyncio.gather(*others))

        alone, many = asyncio.run(scenario())
        assert many[1]["message"] == many[2]["message"], "the same seed gave two answers"
        assert len(many[4]["logprobs"]["content"][0]["top_logprobs"]) == 3
        assert alone["message"]["content"] and all(choice["finish_reason"] in ("stop", "length") for choice in many)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, log.read_text()


def test_a_trained_model_is_exported(records: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", records, "quant=nf4")
    target = tmp_path / "exported"
    run("infer.py", "mode=export", f"run={tmp_path / 'run'}", f"output={target}", "export.dtype=fp32", ON)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).to(DEVICE).eval()
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 5, 300, 17]], device=DEVICE)).logits.isfinite().all()
    assert weights(tmp_path / "run")
    run("infer.py", "mode=generate", f"run={target}", f"prompt={QUESTION}", "max_new_tokens=8", ON)


def mixed(adapters: list[Path], dtype: torch.dtype) -> peft.PeftModel:
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype).to(DEVICE)
    model = peft.PeftModel.from_pretrained(base, str(adapters[0]), adapter_name="red", autocast_adapter_dtype=False)
    model.load_adapter(str(adapters[1]), adapter_name="blue", autocast_adapter_dtype=False)
    return model.eval()


def write(engine: Engine, answers: list[Answer]) -> list[list[int]]:
    """The answers, all at once."""

    async def tokens(answer: Answer) -> list[int]:
        return [token async for new in answer.chunks() for token in new]

    async def scenario() -> list[list[int]]:
        engine.start()
        engine.submit(answers)
        return list(await asyncio.gather(*map(tokens, answers)))

    try:
        return asyncio.run(asyncio.wait_for(scenario(), 120))
    finally:
        engine.stop()


def test_greedy_answers_of_several_adapters_equal_those_of_generate(adapters: list[Path]) -> None:
    """In fp32, token for token."""
    model, prompt = mixed(adapters, torch.float32), [1, 300, 17, 400, 9, 22]
    settings = GenerationConfig(do_sample=False, max_new_tokens=16, eos_token_id=-1, pad_token_id=0)
    alone = []
    for name in ("red", "blue"):
        model.set_adapter(name)
        ids = torch.tensor([prompt], device=DEVICE)
        alone.append(model.generate(input_ids=ids, generation_config=settings)[0, len(prompt) :].tolist())
    engine = Engine(model, 3072, ServeConfig(cache_tokens=2048, batch_tokens=32, max_running=8))
    greedy = Sampling(temperature=0)
    names = ["blue", "red", multi_lora.BASE, "red", "blue"]
    found = write(engine, [Answer(prompt, 16, [-1], name, greedy) for name in names])
    assert [found[0], found[1]] == [alone[1], alone[0]] == [found[4], found[3]]
    assert alone[0] != alone[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@gpu_only
def test_a_batch_waits_for_the_gpu_once(dtype: torch.dtype, adapters: list[Path]) -> None:
    """From a batch's creation until its tokens are read, nothing waits for the GPU: torch would raise an error."""
    engine = Engine(mixed(adapters, dtype), 3072, ServeConfig(cache_tokens=4096, max_running=12))
    samplings = [
        Sampling(temperature=0), Sampling(seed="1"), Sampling(seed="2", top_p=0.5),
        Sampling(seed="3", presence_penalty=0.5, frequency_penalty=0.2, logit_bias=((300, 2.0), (2, -100.0))),
    ]  # fmt: skip
    runner: Any = engine.manager.batch_processor.model_runner
    compute, steps = runner.compute_batch, []

    def step(*args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 2 else "default")  # libraries query the GPU at first
        try:
            compute(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            steps.append(1)

    runner.compute_batch = step
    prompt = [1, 300, 17, 400, 9, 22]
    answers = [Answer(prompt, 12, [2], name, s) for s in samplings for name in (multi_lora.BASE, "red", "blue")]
    assert all(write(engine, answers)) and len(steps) > 6


@gpu_only
@pytest.mark.parametrize("tokens", [20, 400])
def test_flash_attention_decodes_from_blocks_of_its_size(tokens: int) -> None:
    """If flash-attn is installed: blocks have 256 tokens, so 400 tokens need two. All answers must be equal."""
    pytest.importorskip("flash_attn")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16).to(DEVICE).eval()
    engine = Engine(model, 3072, ServeConfig(cache_tokens=4096))
    assert engine.block == 256 and engine.manager.continuous_batching_config.max_blocks_per_request > 0
    found = write(
        engine, [Answer([1, 300, 17], tokens, [-1], multi_lora.BASE, Sampling(temperature=0)) for _ in range(3)]
    )
    assert found[0] == found[1] == found[2] and len(found[0]) == tokens
