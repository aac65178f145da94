"""Plain single-process torch training: the truth that every engine is compared with. Nothing of the engines is used."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor

from tests.distributed.configs import STAGE, global_batch
from training.config.optimizer_schema import OptimizerKind
from training.config.schema import Precision, RunConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.dropout import dropout_of
from training.models.loss import summed_cross_entropy


def train_plain(config: RunConfig, lrs: list[float], *, optimizer: str = "adamw") -> dict[str, list[float]]:
    """Losses and global gradient norms of full-batch steps with AdamW (or SGD without weight decay)."""
    assert STAGE in config.stages
    model = plain_model(config)
    stepper = torch.optim.SGD(model.parameters(), lr=1.0) if optimizer == "sgd" else plain_adamw(model, config)
    muon = PlainMuon(model, config)
    losses, norms = [], []
    for step, lr in enumerate(lrs):
        for group in stepper.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        model.zero_grad()
        loss, norm = backward(model, config, step)
        muon.step(lr)
        stepper.step()
        losses.append(loss)
        norms.append(norm)
    return {"losses": losses, "norms": norms}


def first_gradients(config: RunConfig) -> dict[str, Tensor]:
    """The clipped gradient of every parameter in the first step, float64, by canonical name."""
    model = plain_model(config)
    backward(model, config, 0)
    return {name: p.grad.double() for name, p in model.canonical_parameters() if p.grad is not None}


def plain_model(config: RunConfig) -> Decoder:
    """The whole model with its initial weights."""
    return Decoder(decoder_layers(config.model, seed=config.run.seed))


def plain_adamw(model: Decoder, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with decayed matrices and undecayed vectors, but for what a group says: each parameter by itself."""
    return torch.optim.AdamW(
        [
            {"params": [p], **plain_settings(name, p, config)}
            for name, p in model.canonical_parameters()
            if not takes_muon(name, p, config)
        ],
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
    )


def plain_settings(name: str, parameter: Tensor, config: RunConfig) -> dict[str, float]:
    """Rate, as a multiple of the step's, and decay of a parameter."""
    decay = config.optimizer.weight_decay if parameter.dim() >= 2 else 0.0
    for group in config.optimizer.groups.values():
        if any(fnmatchcase(name, pattern) for pattern in group.parameters):
            own = group.weight_decay
            return {"lr_ratio": group.lr_ratio, "weight_decay": decay if own is None else own}
    return {"lr_ratio": 1.0, "weight_decay": decay}


class PlainMuon:
    """Muon in fp32 as its author describes it (kellerjordan.github.io/posts/muon), with decoupled weight decay."""

    def __init__(self, model: Decoder, config: RunConfig) -> None:
        self.config = config
        self.momenta = {
            name: (p, torch.zeros_like(p)) for name, p in model.canonical_parameters() if takes_muon(name, p, config)
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the matrices; `lr` is AdamW's."""
        settings, optimizer = self.config.optimizer.muon, self.config.optimizer
        for name, (parameter, momentum) in self.momenta.items():
            ratio = plain_settings(name, parameter, self.config)["lr_ratio"]
            rate = lr * settings.lr / optimizer.lr * ratio
            gradient = parameter.grad
            assert gradient is not None
            momentum.mul_(settings.momentum).add_(gradient, alpha=1 - settings.momentum)
            ahead = settings.momentum * momentum + (1 - settings.momentum) * gradient
            rows, columns = parameter.shape
            parameter.mul_(1 - rate * settings.weight_decay)
            parameter.sub_(rate * max(1.0, rows / columns) ** 0.5 * orthogonal(ahead))


def orthogonal(matrix: Tensor) -> Tensor:
    """Five steps of the quintic Newton-Schulz iteration."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def takes_muon(name: str, parameter: Tensor, config: RunConfig) -> bool:
    """Whether Muon updates a parameter: a matrix of a block."""
    return config.optimizer.kind is OptimizerKind.muon and ".layers." in name and parameter.dim() == 2


def backward(model: Decoder, config: RunConfig, step: int) -> tuple[float, float]:
    """Leave the clipped gradient of a step's whole batch; return the mean loss and the norm before clipping."""
    batch = global_batch(step, config.batch_sizes(STAGE).sequences(step))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision is Precision.bf16),
        dropout_of(batch.sample_ids_B, config.run.seed),
    ):
        logits = model(batch.input_ids_BT)
    loss = summed_cross_entropy(logits, batch.labels_BT) / batch.num_tokens
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    for gradient in gradients:
        gradient *= min(1.0, config.optimizer.gradient_clip_norm / (norm + 1e-6))
    return loss.item(), norm
