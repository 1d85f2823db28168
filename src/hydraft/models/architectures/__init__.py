"""Model classes of our own, for architectures that transformers does not have.

A module here is copied into each folder that such a model is saved in, and imports only torch and transformers.
"""


def register() -> None:
    """Let transformers' Auto classes build and load these models, and save their module beside the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hydraft.models.architectures.modeling_baichuan_alibi import BaichuanAlibiConfig, BaichuanAlibiForCausalLM

    AutoConfig.register(BaichuanAlibiConfig.model_type, BaichuanAlibiConfig, exist_ok=True)
    AutoModelForCausalLM.register(BaichuanAlibiConfig, BaichuanAlibiForCausalLM, exist_ok=True)
    BaichuanAlibiConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    BaichuanAlibiForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
