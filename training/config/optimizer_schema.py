"""The section `optimizer`: AdamW, Muon, and parameter groups by name. Part of `schema.py`."""

from dataclasses import dataclass, field
from enum import StrEnum


class OptimizerKind(StrEnum):
    """What updates the matrices of the decoder blocks; AdamW updates everything else."""

    adamw = "adamw"
    muon = "muon"


class NewtonSchulz(StrEnum):
    """What Muon's iteration multiplies: the matrix, or its smaller product with itself; alike but for rounding."""

    standard = "standard"
    gram = "gram"


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig:
    """Muon as in DeepSpeed (Jordan et al. 2024, kellerjordan.github.io/posts/muon; at scale: arXiv:2502.16982)."""

    lr: float = 0.02
    """Peak learning rate: the spectral norm of an update of a square matrix. It rises and falls as optimizer.lr does,
    and a training stage's own lr changes both in proportion."""
    momentum: float = 0.95
    """Decay of the gradient's running mean; Nesterov's form."""
    weight_decay: float = 0.01
    """Decoupled weight decay, a multiple of this rate: 0.02 x 0.01 is as much as 2e-3 x 0.1 of AdamW."""
    newton_schulz: NewtonSchulz = NewtonSchulz.gram
    """standard computes in bf16, gram in fp16, each in fp32 where the device has no such numbers."""


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
    """AdamW (arXiv:1711.05101), with Muon for hidden matrices if asked for. Vectors, as norms are, get no decay."""

    kind: OptimizerKind = OptimizerKind.adamw
    """adamw for everything; muon for the matrices of decoder blocks but routers, adamw for the rest."""
    lr: float
    """Peak learning rate; a training stage may set its own."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """What kind=muon needs besides."""
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
