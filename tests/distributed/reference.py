"""Plain single-process torch training: the truth that every engine is compared with. Nothing of the engines is used."""

import torch

from tests.distributed.configs import STAGE, global_batch
from training.config.schema import Precision, RunConfig
from training.models.decoder import Decoder, decoder_layers
from training.models.dropout import dropout_of
from training.models.loss import summed_cross_entropy


def train_plain(config: RunConfig, lrs: list[float]) -> dict[str, list[float]]:
    """Losses and global gradient norms of full-batch AdamW steps, and the final weights' sums."""
    assert STAGE in config.stages
    model = Decoder(decoder_layers(config.model, seed=config.run.seed))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
    )
    losses, norms = [], []
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = global_batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision is Precision.bf16):
            with dropout_of(batch.sample_ids_B, config.run.seed):
                logits = model(batch.input_ids_BT)
        loss = summed_cross_entropy(logits, batch.labels_BT) / batch.num_tokens
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        clip = min(1.0, config.optimizer.gradient_clip_norm / (norm.item() + 1e-6))
        for gradient in gradients:
            gradient *= clip
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return {"losses": losses, "norms": norms}
