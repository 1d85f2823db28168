"""Makes our model classes known to transformers. No torch at module level."""


def register() -> None:
    """Let transformers' Auto classes build and load these models, and save their module beside the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hydraft.models.architectures.modeling_baichuan_alibi import BaichuanAlibiConfig, BaichuanAlibiForCausalLM

    AutoConfig.register(BaichuanAlibiConfig.model_type, BaichuanAlibiConfig, exist_ok=True)
    AutoModelForCausalLM.register(BaichuanAlibiConfig, BaichuanAlibiForCausalLM, exist_ok=True)
    BaichuanAlibiConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    BaichuanAlibiForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
