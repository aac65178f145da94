"""Whether what is to compute attention, and the logits, can do so on the cluster's devices."""

from training.config.schema import AttentionImplementation, Precision, RunConfig
from training.errors import ConfigError

_LARGEST_FLASH_HEAD = 256


def check_attention(config: RunConfig, training_stage: str) -> None:
    """Check that a training stage's attention has a kernel for the device, the precision and the model.

    Raises:
        ConfigError: it has none.
    """
    wanted = config.layout_of(training_stage).attention
    if wanted in (AttentionImplementation.auto, AttentionImplementation.sdpa):
        return
    own = config.stages[training_stage].parallel is not None
    key = f"stages.{training_stage}.parallel.attention" if own else "parallel.attention"
    remedy = f"{key}=auto chooses what works"
    if config.cluster.accelerator.device == "cpu":
        reason = "torch 2.13 trains with FlexAttention and FlashAttention on accelerators only, and the device is cpu"
        raise ConfigError(key, wanted, reason, f"{remedy}, or {key}=sdpa")
    if wanted is not AttentionImplementation.flash:
        return
    if config.precision is Precision.fp32:
        reason = "FlashAttention has no kernels for precision=fp32"
        raise ConfigError(key, wanted, reason, f"{key}=flex has, or precision=bf16")
    model = config.model
    latent = model.latent_attention
    size = model.attention_head_size if latent is None else latent.head_size + latent.rope_head_size
    if size > _LARGEST_FLASH_HEAD:
        reason = f"FlashAttention has kernels up to a head size of {_LARGEST_FLASH_HEAD}, and the model has {size}"
        raise ConfigError(key, wanted, reason, f"{key}=flex has one for it")
