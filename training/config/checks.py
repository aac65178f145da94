"""The only door to the checks: what `check` lets pass can be started."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict

from training.config.attention_checks import check_attention
from training.config.checkpoint_checks import check_checkpoints
from training.config.cluster_checks import check_cluster
from training.config.engine_checks import check_engine_exists
from training.config.fault_tolerance_checks import check_fault_tolerance
from training.config.initial_weights import split_initial_weights
from training.config.layout_checks import check_layout, check_model
from training.config.model_checks import check_sizes
from training.config.optimizer_checks import check_groups_in_pipeline, check_muon, check_optimizer
from training.config.path_checks import check_names, check_paths
from training.config.precision_checks import check_precision
from training.config.recovery_checks import check_recovery
from training.config.resume_policy import check_allow
from training.config.schema import ModelConfig, RunConfig
from training.config.secret_checks import refuse_secret_values
from training.config.slurm_checks import check_slurm
from training.config.training_stage_checks import check_sources, check_suites, check_training_stage
from training.config.value_checks import check_numbers, check_values
from training.errors import ConfigError

DERIVED_KEYS: dict[str, str] = {
    "train_batch_size": "stages.*.global_batch_sequences",
    "train_micro_batch_size_per_gpu": "stages.*.micro_batch_sequences",
    "gradient_accumulation_steps": "stages.*.global_batch_sequences and micro_batch_sequences",
    "gradient_clipping": "optimizer.gradient_clip_norm",
    "prescale_gradients": "the engine, which sums token losses",
    "gradient_predivide_factor": "the engine, which sums token losses",
    "zero_optimization": "parallel.zero_stage",
    "zero_allow_untested_optimizer": "the engine",
    "zero_force_ds_cpu_optimizer": "the engine",
    "bf16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "communication_data_type": "precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "pipeline": "parallel.pipeline",
    "activation_checkpointing": "parallel.recompute",
    "steps_per_print": "reporting.console_every_steps",
    "wall_clock_breakdown": "the engine",
    "wandb": "reporting.wandb",
    "seed": "run.seed",
}
"""DeepSpeed keys that Autarky derives -> the key they follow from."""


def check(config: RunConfig, *, to_plan: bool = False) -> None:
    """Check everything that can be known before a process starts.

    Args:
        config: the run.
        to_plan: leave out whether an engine of ours can run it: plans and rehearsals may be of what none can yet.

    Raises:
        ConfigError: the first thing that cannot be, with the nearest value that can.
    """
    refuse_secret_values(asdict(config))
    check_names(config)
    check_paths(config)
    check_values(config)
    check_model(config)
    check_optimizer(config)
    check_precision(config, to_plan=to_plan)
    check_sources(config)
    check_suites(config)
    for training_stage in config.stages:
        check_training_stage(config, training_stage)
        check_layout(config, training_stage)
        check_groups_in_pipeline(config, training_stage)
        check_attention(config, training_stage)
        if not to_plan:
            check_engine_exists(config, training_stage)
            check_muon(config, training_stage)
    check_checkpoints(config)
    check_fault_tolerance(config)
    check_recovery(config)
    check_cluster(config)
    check_slurm(config)
    if config.init_from is not None:
        split_initial_weights(config.init_from)
    check_allow(config)
    _check_deepspeed_extra(config)


def check_architecture(model: ModelConfig) -> None:
    """Check a model by itself, as it comes with weights from elsewhere.

    Raises:
        ConfigError: the first thing that cannot be.
    """
    check_numbers(asdict(model), "model")
    check_sizes(model)


def check_used(config: RunConfig, given: Mapping[str, str]) -> None:
    """Check that no override of a top-level default is without effect because every training stage sets its own.

    Args:
        config: the config the overrides led to.
        given: keys and groups of the overrides, with their values as typed.

    Raises:
        ConfigError: an override would be ignored in silence.
    """
    stages = config.stages.values()
    used = {
        "parallel": any(stage.parallel is None for stage in stages),
        "schedule": any(stage.schedule is None for stage in stages),
        "optimizer.lr": any(stage.lr is None for stage in stages),
    }
    for key, value in given.items():
        for default, is_used in used.items():
            if not is_used and (key == default or key.startswith(f"{default}.")):
                own = default.removeprefix("optimizer.")
                names = [f"stages.{name}.{own}" for name in config.stages]
                group = f", as group choices {own}@{names[0]}=…" if own != "lr" else ""
                reason = "every training stage sets its own, so this would be ignored"
                raise ConfigError(key, value, reason, f"set {' and '.join(names)}{group}")


def _check_deepspeed_extra(config: RunConfig) -> None:
    for name, value in config.deepspeed.extra.items():
        close = difflib.get_close_matches(name, DERIVED_KEYS, n=1, cutoff=0.9)
        if close:  # a mistyped one too: DeepSpeed ignores keys it does not know
            raise ConfigError(
                f"deepspeed.extra.{name}",
                value,
                f"Autarky derives DeepSpeed's {close[0]}: two sources would contradict each other",
                f"leave it out; {close[0]} follows from {DERIVED_KEYS[close[0]]}",
            )
