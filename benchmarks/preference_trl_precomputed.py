"""Contestant: TRL's DPOTrainer as in `preference_trl`, the reference's log-probabilities computed once before."""

from benchmarks.preference_trl import train_dpo
from benchmarks.turns import Steps
from training.config.schema import RunConfig


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for as long as `steps` lets it."""
    train_dpo(config, training_stage, steps, is_precomputed=True)
