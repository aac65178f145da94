"""The section `optimizer`: AdamW, and parameter groups by name. Part of `schema.py`."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters, by canonical name, that are trained at a rate or with a decay of their own."""

    parameters: list[str]
    """Patterns of canonical names, * for any text: "model.layers.*.mlp.gate_proj.weight", "*layernorm.weight"."""
    lr_ratio: float = 1.0
    """Their learning rate as a multiple of the step's. 0 freezes them: decay is a multiple of the rate too."""
    weight_decay: float | None = None
    """Their decoupled weight decay, of vectors too; null is what they would have in no group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101). Norms, biases and other vectors get no weight decay."""

    lr: float
    """Peak learning rate; a training stage may set its own."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices."""
    gradient_clip_norm: float = 1.0
    """Largest global gradient norm, over all parameters of the model; 0 switches clipping off."""
    groups: dict[str, ParameterGroup] = field(default_factory=dict)
    """Group name -> its parameters; the first group that names a parameter counts, the rest is in none."""
