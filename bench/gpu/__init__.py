"""Everything worth measuring on a machine with a GPU, in one command with a limit on its time, most valuable part first.

    make bench-gpu                                       # 530 seconds, the default parts
    make bench-gpu BUDGET=200 PARTS="unsloth benches"    # another time limit, other parts
    make bench-gpu WHEELS=.whl OUT=results               # a machine without .venv: the wheels in .whl are all that is installed
    make bench-gpu SCRATCH=/tmp/scratch                  # keep runs and random weights there, for a second call; libraries are
                                                         # loaded from it too, so not /dev/shm where that is mounted noexec

Parts (``parts.py`` has every command and its limit), with about what each takes on an H100; a machine without a card takes every
part through the same commands with tiny shapes, which shows that they work and measures nothing (``REHEARSE=1`` asks for that
where there is a card):

* first: versions, probes (context, NCCL, matmul rate, attention, import times), random weights, a first run        65 s
* tests: every test marked gpu; each ZeRO stage with NF4 and without; precisions; resume; a sweep                    110 s
* chatglm2: ChatGLM2-6B's shape, QLoRA, ZeRO-2 and ZeRO-3: memory against the plan                                   75 s
* llama: Llama-3.1-8B's shape: QLoRA, LoRA in bf16, transformers' Trainer, Liger with both: tokens/s, MFU, memory    230 s
* serve: mode=serve of the QLoRA adapter, 1, 16 and 32 requests at once                                              45 s
* unsloth: kernels=unsloth, and Unsloth alone, on the same records (not by default)                                  120 s
* benches: optimizer.py, loss.py, memory.py, throughput.py (not by default)                                          300 s

A step that fails, or takes longer than its limit, stops no other; one that would begin after the time is up is recorded as "no
time left". What a step prints is in logs.tgz, the figures in results.json beside the card, the driver, the date and the versions,
and table.md has the summary that is also printed. All three are written after each part, so a call that is cut off leaves them.

This package starts with the standard library alone (``steps.py``, ``parts.py``, ``wheels.py``): on a bare machine nothing else is
there yet. The others are commands of their own, each run in a process with the wheels on its path.
"""
