"""The engine: answers in a shared batch are equal to those of single requests."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conftest import SCALE, wait_for
from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve import attention, multi_lora
from hydraft.infer.serve.engine import Answer, Engine, GenerationFailed, QueueFull
from hydraft.infer.serve.sampler import Sampling
from hydraft.system.source_tree import TINY

END = 2
GREEDY = Sampling(temperature=0)
QUESTIONS = [
    "你好",
    "判断这条评论的情感：房间很干净，服务也热情",
    "把这句话翻译成英文：我喜欢读书。",
    "一加一等于几？" * 12,
    "写一首诗",
]


def adapted(adapters: list[Path]) -> peft.PeftModel:
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(adapters[0]), adapter_name="red")
    model.load_adapter(str(adapters[1]), adapter_name="blue")
    return model.eval()


def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for text in QUESTIONS
    ]


async def tokens(answer: Answer) -> list[int]:
    return [token async for new in answer.chunks() for token in new]


def test_greedy_answers_in_one_batch_equal_those_of_generate(adapters: list[Path]) -> None:
    model = adapted(adapters)
    alone: dict[tuple[str, int], list[int]] = {}
    settings = GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=END, pad_token_id=0)
    for name in (
        multi_lora.BASE,
        "red",
        "blue",
    ):  # blue is a DoRA adapter, which peft cannot batch with others
        for index, prompt in enumerate(prompts()):
            ids = torch.tensor([prompt])
            if name == multi_lora.BASE:
                with model.disable_adapter():
                    made = model.generate(input_ids=ids, generation_config=settings)
            else:
                model.set_adapter(name)
                made = model.generate(input_ids=ids, generation_config=settings)
            alone[name, index] = made[0, len(prompt) :].tolist()
    assert len({str([alone[name, i] for i in range(len(QUESTIONS))]) for name in (multi_lora.BASE, "red", "blue")}) == 3

    serve = ServeConfig(max_running=7, batch_tokens=48, cache_tokens=2048)  # splits prompts, and requests must wait
    engine = Engine(model, 3072, serve)

    async def all_at_once() -> dict[tuple[str, int], list[int]]:
        engine.start()
        answers = {key: Answer(prompts()[key[1]], 24, [END], key[0], GREEDY) for key in alone}
        engine.submit(list(answers.values()))
        found = await asyncio.gather(*map(tokens, answers.values()))
        assert not engine.running and engine.free_blocks == engine.cache.num_blocks
        return dict(zip(answers, found, strict=True))

    try:
        assert asyncio.run(all_at_once()) == alone
    finally:
        engine.stop()


def test_slots_of_cancelled_answers_are_freed_and_no_answer_waits_forever() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    engine = Engine(model, 3072, ServeConfig(max_running=2, max_waiting=3, batch_tokens=16, cache_tokens=1024))
    prompt = prompts()[0]

    def endless(size: int = 0) -> Answer:
        return Answer(prompt + [300] * size, 200, [END], multi_lora.BASE, Sampling(logit_bias=((END, -100.0),)))

    async def scenario() -> None:
        engine.start()
        answers = [endless() for _ in range(5)]
        engine.submit(answers)
        assert len(engine.running) == 2 and len(engine.waiting) == 3
        with pytest.raises(QueueFull):
            engine.submit([endless()])
        async for _ in answers[0].chunks():  # it is being generated
            engine.cancel(answers[0])
            break
        engine.cancel(answers[4])  # it has not started
        reading = endless(200)  # sixteen tokens per batch: its prompt takes several
        for answer in answers[1:4]:
            engine.cancel(answer)
        engine.submit([reading])
        while len(engine.running) > 1 or engine.waiting:
            await asyncio.sleep(0.01)
        engine.cancel(reading)
        while engine.running:
            await asyncio.sleep(0.01)
        assert not reading.tokens, "the prompt was read completely"
        assert engine.free_blocks == engine.cache.num_blocks
        while engine.cache.get_num_free_blocks() < engine.free_blocks:  # the thread frees blocks before its next batch
            await asyncio.sleep(0.01)
        late = [endless() for _ in range(3)]
        engine.submit(late)
        engine.close()
        with pytest.raises(GenerationFailed, match="shutting down"):
            engine.submit([endless()])
        engine.fail_all("no more answers")
        for answer in late:
            with pytest.raises(GenerationFailed, match="no more answers"):
                await tokens(answer)

    try:
        asyncio.run(asyncio.wait_for(scenario(), 60 * SCALE))
    finally:
        engine.stop()
    wait_for(lambda: not engine.alive, 5, "the thread's end")


def test_a_failure_of_the_model_is_reported_to_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    engine = Engine(model, 3072, ServeConfig(max_running=1, cache_tokens=1024))
    prompt = prompts()[0]

    async def scenario() -> None:
        engine.start()
        answers = [Answer(prompt, 50, [END], multi_lora.BASE, GREEDY) for _ in range(3)]
        monkeypatch.setattr(model.lm_head, "forward", lambda x: 1 / 0)
        engine.submit(answers)
        for answer in answers:
            with pytest.raises(GenerationFailed):
                await tokens(answer)
        assert not engine.running and not engine.waiting

    asyncio.run(asyncio.wait_for(scenario(), 60 * SCALE))
    wait_for(lambda: not engine.alive, 10, "the thread's end")


def test_an_adapter_that_replaces_weights_of_its_base_is_refused() -> None:
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", bias="lora_only")
    with pytest.raises(ConfigError, match="mode=export"):
        Engine(peft.get_peft_model(base, lora), 3072, ServeConfig())


NAMES = {
    "paged|flash_attention_2": 256, "paged|flash_attention_3": 256, "paged|kernels-community/flash-attn2": 256,
    "paged|kernels-community/vllm-flash-attn3": 256, "paged|sdpa": 32, "paged|eager": 32, attention.NAME: 32,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_block_size_is_that_of_the_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention requires a block size that is a multiple of 256. Its kernels need a GPU; sdpa replaces them."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    prompt, settings = (
        prompts()[3],
        GenerationConfig(do_sample=False, max_new_tokens=150, eos_token_id=-1, pad_token_id=0),
    )
    alone = model.generate(input_ids=torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
    monkeypatch.setattr(attention, "choose", lambda model: name)
    names = []
    real = type(model).set_attn_implementation
    monkeypatch.setattr(
        type(model), "set_attn_implementation", lambda self, name: (names.append(name), real(self, "paged|sdpa"))
    )
    serve = ServeConfig(max_running=1, cache_tokens=300 if NAMES[name] == 256 else 3000, batch_tokens=32)
    engine = Engine(model, 3072, serve)
    assert names == [name]
    assert engine.manager.continuous_batching_config.block_size == engine.cache.block_size == NAMES[name]
    assert engine.cache.num_blocks == (3 if NAMES[name] == 256 else 94)
    assert engine.max_context == (256 if NAMES[name] == 256 else min(92 * 32, model.config.max_position_embeddings))

    async def one() -> list[int]:
        engine.start()
        answer = Answer(prompt, 150, [-1], multi_lora.BASE, GREEDY)
        engine.submit([answer])
        return await tokens(answer)

    assert 200 < len(prompt) + 150 <= 256, "more than one short block, but less than one long one"
    try:
        assert asyncio.run(asyncio.wait_for(one(), 60 * SCALE)) == alone
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "paged|flash_attention_2"),
        ({"installed": False}, "paged|sdpa"),
        ({"dtype": torch.float32}, "paged|sdpa"),
        ({"capability": (7, 5)}, "paged|sdpa"),
        ({"head": 320}, "paged|sdpa"),
        ({"supported": False}, "paged|sdpa"),
        ({"device": "cpu"}, attention.NAME),
    ],
)
def test_flash_attention_is_used_if_supported(
    change: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ = {"installed": True, "dtype": torch.bfloat16, "capability": (8, 0), "head": 128, "supported": True, "device": "cuda:1"} | change  # fmt: skip
    devices = []
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: is_["installed"])
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (devices.append(device), is_["capability"])[1]
    )
    text = SimpleNamespace(head_dim=is_["head"], sliding_window=None)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text), device=torch.device(is_["device"]), dtype=is_["dtype"],
        _supports_flash_attn=is_["supported"], modules=lambda: iter(()),
    )  # fmt: skip
    assert attention.choose(model) == expected
    assert set(devices) <= {torch.device("cuda:1")}, "the model's GPU, not the current one"
