"""One model of each architecture, and the published sizes."""

FAMILIES = {  # one of each architecture
    "llama3": "model=llama3",
    "qwen2.5": "model=qwen model.size=2.5-7b",
    "qwen3": "model=qwen model.size=3-8b",
    "chatglm2": "model=chatglm2",
    "baichuan2": "model=baichuan2",
}

WITH_ALIBI = FAMILIES | {"alibi": "model=baichuan2 model.size=13b-chat"}
"""Its layers are those of baichuan2, but for the positions: for the few tests of what ALiBi needs."""

MIXTURE = "model=qwen model.size=3-30b-a3b"
"""A mixture of experts, for the few tests of what they need."""

PUBLISHED = {  # parameters in all, as the hub counts them in each checkpoint's safetensors
    ("llama3", "3.2-1b"): 1_235_814_400,
    ("llama3", "3.2-3b"): 3_212_749_824,
    ("llama3", "3.1-8b"): 8_030_261_248,
    ("llama3", "3.1-70b"): 70_553_706_496,
    ("qwen", "2.5-0.5b"): 494_032_768,
    ("qwen", "2.5-1.5b"): 1_543_714_304,
    ("qwen", "2.5-3b"): 3_085_938_688,
    ("qwen", "2.5-7b"): 7_615_616_512,
    ("qwen", "2.5-14b"): 14_770_033_664,
    ("qwen", "2.5-32b"): 32_763_876_352,
    ("qwen", "2.5-72b"): 72_706_203_648,
    ("qwen", "3-0.6b"): 596_049_920,
    ("qwen", "3-1.7b"): 1_720_574_976,
    ("qwen", "3-4b"): 4_022_468_096,
    ("qwen", "3-8b"): 8_190_735_360,
    ("qwen", "3-14b"): 14_768_307_200,
    ("qwen", "3-32b"): 32_762_123_264,
    ("qwen", "3-30b-a3b"): 30_532_122_624,
    ("qwen", "3-235b-a22b"): 235_093_634_560,
    ("qwen", "3.5-0.8b"): 752_393_024,  # and on the hub, with vision and MTP, 873_438_784
    ("qwen", "3.5-2b"): 1_881_825_088,  # and on the hub, with vision and MTP, 2_274_069_824
    ("qwen", "3.5-4b"): 4_205_751_296,  # and on the hub, with vision and MTP, 4_659_865_088
    ("qwen", "3.5-9b"): 8_953_803_264,  # and on the hub, with vision and MTP, 9_653_104_368
    ("qwen", "3.5-27b"): 26_895_998_464,  # and on the hub, with vision and MTP, 27_781_427_952
    ("chatglm2", "6b"): 6_243_584_000,
    ("chatglm3", "6b"): 6_243_584_000,
    ("chatglm3", "6b-base"): 6_243_584_000,
    ("chatglm3", "6b-32k"): 6_243_584_000,
    ("chatglm3", "6b-128k"): 6_243_584_000,
    ("internlm2", "2-1.8b-chat"): 1_889_110_016,
    ("internlm2", "2-7b-chat"): 7_737_708_544,
    ("internlm2", "2-20b-chat"): 19_861_149_696,
    ("internlm2", "2.5-7b-chat"): 7_737_708_544,
    ("internlm2", "2.5-20b-chat"): 19_861_149_696,
    ("baichuan2", "7b-chat"): 7_505_973_248,
    ("baichuan2", "7b-base"): 7_505_973_248,
    ("baichuan2", "13b-chat"): 13_896_668_160,
    ("baichuan2", "13b-base"): 13_896_668_160,
}
