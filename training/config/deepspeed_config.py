"""RunConfig -> DeepSpeed's dictionary. The only place where DeepSpeed's key names are written.

Every value that changes numbers is named, none is left to a default: DeepSpeed 0.19.8 clips gradients at 1.0 when
`gradient_clipping` is left out (runtime/constants.py).
"""

from typing import Any

from training.config.optimizer_schema import OptimizerKind
from training.config.schema import Precision, RunConfig

NEVER = 2**31
"""A step interval that is never reached."""


REDUCE_BUCKET_ELEMENTS = 500_000_000
"""Most gradients that are collected before they are reduced; DeepSpeed's own default, named."""


def deepspeed_config(
    config: RunConfig,
    training_stage: str,
    *,
    reduce_bucket_elements: int = REDUCE_BUCKET_ELEMENTS,
    num_shards: int | None = None,
) -> dict[str, Any]:
    """Return the DeepSpeed dictionary of one training stage, `deepspeed.extra` merged in.

    The optimizer is not in it: it is passed as an object, with parameter groups DeepSpeed's JSON cannot express.

    Args:
        config: the run.
        training_stage: its training stage.
        reduce_bucket_elements: gradients that are collected before they are reduced, in elements.
        num_shards: ranks that the engine's state is divided among; None is all of a pipeline stage. DeepSpeed takes
            them all for readers of samples of their own, and wants a batch size to match.
    """
    stage = config.stages[training_stage]
    layout = config.layout_of(training_stage)
    bf16 = config.precision is Precision.bf16
    own_pipeline = layout.runs_in_chunks
    accumulation_steps = config.accumulation_steps(training_stage)
    num_shards = num_shards or config.num_shards(training_stage)
    sharded_muon = layout.zero_stage == 3 and config.optimizer.kind is OptimizerKind.muon
    # Without ZeRO the engine clips by itself: DeepSpeed's own raises IndexError there when a NaN left no gradient. Our
    # pipeline does too: DeepSpeed would know the norm of one pipeline stage only. And so it is for Muon under ZeRO-3:
    # DeepSpeed would clip what Muon has made of the gradient (runtime/zero/stage3.py, `step`).
    clips_itself = layout.zero_stage == 0 or own_pipeline or sharded_muon
    derived: dict[str, Any] = {
        "train_batch_size": stage.micro_batch_sequences * accumulation_steps * num_shards,
        "train_micro_batch_size_per_gpu": stage.micro_batch_sequences,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": 0.0 if clips_itself else config.optimizer.gradient_clip_norm,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": layout.zero_stage,
            "overlap_comm": False,
            "reduce_scatter": not sharded_muon,  # DeepSpeed: "Muon and reduce scatter cannot be used together"
            "contiguous_gradients": True,
            "reduce_bucket_size": reduce_bucket_elements,
            # A persistent (never sharded) parameter changes nothing but memory. Our pipeline gathers whole layers, so
            # sharding the small ones costs no collective of its own.
            "stage3_param_persistence_threshold": 0 if own_pipeline else 10_000,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
    }
    if layout.pipeline > 1 and not own_pipeline:
        derived["pipeline"] = {"activation_checkpoint_interval": 0, "use_reentrant": False}
    return {**derived, **config.deepspeed.extra}
