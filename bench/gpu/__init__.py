"""All measurements for a machine with a GPU, in one command with a time limit; the most valuable parts run first.

    make bench-gpu                                       # 530 seconds, the default parts
    make bench-gpu BUDGET=200 PARTS="unsloth benches"    # another time limit, other parts
    make bench-gpu WHEELS=.whl OUT=results               # a machine without .venv: install only the wheels in .whl
    make bench-gpu SCRATCH=/tmp/scratch                  # keep runs and random weights there for another call
                                                         # (not in /dev/shm if it is mounted noexec)

Parts (``parts.py`` has every command and its limit), with their approximate time on an H100. On a machine without a
GPU, the same commands run with tiny shapes: this tests the commands and measures nothing. ``REHEARSE=1`` does the same
on a machine with a GPU.

* first: versions, probes (context, NCCL, matmul rate, attention, import times), random weights, a first run      65 s
* tests: every test marked gpu; each ZeRO stage with NF4 and without; precisions; resume; a sweep                  110 s
* chatglm2: ChatGLM2-6B's shape, QLoRA, ZeRO-2 and ZeRO-3: memory compared with the plan                           75 s
* llama: Llama-3.1-8B's shape: QLoRA, LoRA in bf16, transformers' Trainer, Liger with both: tokens/s, MFU, memory  230 s
* serve: mode=serve of the QLoRA adapter, with 1, 16 and 32 concurrent requests                                    45 s
* unsloth: kernels=unsloth, and Unsloth without hydraft, on the same records (not by default)                      120 s
* sharded: Llama-3.1-8B's shape in 4 bits under ZeRO-3, with all of its weights in main memory and torch limited to
  4 GiB of the GPU, and without: memory while loading and training, compared with the plan (not by default)          150 s
* packs: eight adapters over one base of 0.5 B shape, one by one, packed, and with halving: tokens/s, memory (not by
  default)                                                                                                           150 s
* benches: optimizer.py, loss.py, memory.py, throughput.py (not by default)                                        300 s

If a step fails or exceeds its limit, the others still run; a step that would start after the time limit is recorded as
"no time left". The output of the steps is in logs.tgz, the figures are in results.json with the GPU, the driver, the
date and the versions, and table.md has the summary that is also printed. All three are written after each part, so an
interrupted call leaves them too.

This package is started with the standard library only (``steps.py``, ``parts.py``, ``wheels.py``), since nothing else
is installed on a bare machine. The other modules are commands, each run in its own process with the wheels on its path.
"""
