"""Plain single-process torch training: the truth that every engine is compared with. Nothing of the engines is used."""

import torch
from torch import Tensor

from tests.distributed.configs import STAGE, global_batch
from training.config.schema import Precision, RunConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.documents import Documents
from training.models.dropout import dropout_of
from training.models.learning import LearningPass, learning
from training.models.loss import summed_cross_entropy


def train_plain(config: RunConfig, lrs: list[float], *, optimizer: str = "adamw") -> dict[str, list[float]]:
    """Losses and global gradient norms of full-batch steps with AdamW (or SGD without weight decay)."""
    assert STAGE in config.stages
    model = plain_model(config)
    stepper = torch.optim.SGD(model.parameters(), lr=1.0) if optimizer == "sgd" else plain_adamw(model, config)
    losses, norms = [], []
    for step, lr in enumerate(lrs):
        for group in stepper.param_groups:
            group["lr"] = lr
        stepper.zero_grad()
        loss, norm = backward(model, config, step)
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
    """AdamW with decayed matrices and undecayed vectors."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
    )


def backward(model: Decoder, config: RunConfig, step: int) -> tuple[float, float]:
    """Leave the clipped gradient of a step's whole batch; return the mean loss and the norm before clipping."""
    batch = global_batch(step, documents=config.stages[STAGE].document_mask)
    documents = None if batch.documents_BT is None else Documents(batch.documents_BT)
    whole = LearningPass(labels_BT=batch.labels_BT, loss_chunk_tokens=batch.labels_BT.numel(), documents=documents)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision is Precision.bf16),
        dropout_of(batch.sample_ids_B, config.run.seed),
        learning(whole),
    ):
        logits = model(batch.input_ids_BT)
    loss = summed_cross_entropy(logits, batch.labels_BT) / batch.num_tokens
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    for gradient in gradients:
        gradient *= min(1.0, config.optimizer.gradient_clip_norm / (norm + 1e-6))
    return loss.item(), norm
