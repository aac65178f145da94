"""Plain single-process torch training: the truth that every engine is compared with. Nothing of the engines is used."""

import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from tests.distributed.configs import STAGE, global_batch
from training.config.optimizer_schema import OptimizerKind
from training.config.schema import Precision, RunConfig
from training.config.stage_schema import PreferenceConfig
from training.data.batch import MicroBatch
from training.models.decoder import Decoder, decoder_layers
from training.models.documents import Documents
from training.models.dropout import dropout_of
from training.models.learning import LaterTokens, LearningPass, learning
from training.models.loss import IGNORED_LABEL, summed_cross_entropy
from training.models.routing_log import RoutingLog, RoutingResult, routing_into

LATER_WEIGHT = 0.15
"""Of each of two depths: 0.3 in all."""


def train_plain(config: RunConfig, lrs: list[float], *, optimizer: str = "adamw") -> dict[str, Any]:
    """Losses and global gradient norms of full-batch steps with AdamW (or SGD without weight decay).

    Of a model with experts also its routing: [auxiliary loss, loads of all blocks…] of each step. Of pairs also what is
    measured of them.
    """
    assert STAGE in config.stages
    model = plain_model(config)
    stepper = torch.optim.SGD(model.parameters(), lr=1.0) if optimizer == "sgd" else plain_adamw(model, config)
    muon = PlainMuon(model, config)
    losses, norms, layers = [], [], []
    measured: list[dict[str, float]] = []
    routing: list[RoutingResult] = []
    for step, lr in enumerate(lrs):
        for group in stepper.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        model.zero_grad()
        loss, norm = backward(model, config, step, routing, measured)
        before = {name: p.detach().clone() for name, p in model.canonical_parameters()}
        muon.step(lr)
        stepper.step()
        layers.append(layer_norms(model, before, clipping=clipping(norm, config)))
        if config.model.experts is not None:
            move_biases(model, config.model.experts.bias_update_rate, routing[-1].loads)
        losses.append(loss)
        norms.append(norm)
    found = {"losses": losses, "norms": norms, "layers": layers, **routing_numbers(routing)}
    return found | ({"preference": measured} if measured else {})


def routing_numbers(routing: Sequence[RoutingResult | None]) -> dict[str, Any]:
    """The auxiliary losses of steps, and the loads of all blocks one after the other."""
    known = [result for result in routing if result is not None]
    if not known:
        return {}
    return {
        "auxiliary": [result.balance_loss + result.z_loss for result in known],
        "loads": [[load for loads in result.loads for load in loads] for result in known],
    }


def move_biases(model: Decoder, rate: float, loads: Sequence[Sequence[int]]) -> None:
    """Balance without a loss: an expert with less than the mean is preferred a little more from now on."""
    for (_, router), load_E in zip(model.routers(), loads, strict=True):
        if router.bias_E is not None:
            mean = sum(load_E) / len(load_E)
            for expert, load in enumerate(load_E):
                router.bias_E[expert] += rate * ((load < mean) - (load > mean))


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


def later_tokens(config: RunConfig, batch: MicroBatch) -> LaterTokens | None:
    """What blocks of multi-token prediction learn from, position by position."""
    if config.model.prediction is None:
        return None
    (B, T), depths = batch.input_ids_BT.shape, range(1, config.model.prediction.num_blocks + 1)
    ids, labels = (torch.full((len(depths), B, T), fill) for fill in (0, IGNORED_LABEL))
    for depth in depths:
        for row in range(B):
            for place in range(T - depth):
                ids[depth - 1, row, place] = batch.input_ids_BT[row, place + depth]
                documents_BT = batch.documents_BT
                if documents_BT is None or documents_BT[row, place] == documents_BT[row, place + depth]:
                    labels[depth - 1, row, place] = batch.labels_BT[row, place + depth]
    return LaterTokens(ids_KBT=ids, labels_KBT=labels, weight=LATER_WEIGHT)


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


def backward(
    model: Decoder,
    config: RunConfig,
    step: int,
    routing: list[RoutingResult] | None = None,
    measured: list[dict[str, float]] | None = None,
) -> tuple[float, float]:
    """Leave the clipped gradient of a step's whole batch; return the mean loss and the norm before clipping."""
    sequences, documented = config.batch_sizes(STAGE).sequences(step), config.stages[STAGE].masks_documents
    preference = config.stages[STAGE].preference_settings
    batch = global_batch(step, sequences, documents=documented, pairs=preference is not None)
    documents = None if batch.documents_BT is None else Documents(batch.documents_BT)
    whole = LearningPass(
        labels_BT=batch.labels_BT,
        loss_chunk_tokens=3 * batch.labels_BT.numel(),
        documents=documents,
        later=later_tokens(config, batch),
    )
    experts, log = config.model.experts, None
    if experts is not None:
        places = {name: place for place, (name, _) in enumerate(model.routers())}
        log = RoutingLog(places, num_experts=experts.num_experts, experts_per_token=experts.experts_per_token)
        log.begin(1 / batch.num_tokens)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision is Precision.bf16),
        dropout_of(batch.sample_ids_B, config.run.seed),
        learning(whole),
        routing_into(log),
    ):
        logits = model(batch.input_ids_BT)
    if log is not None and routing is not None:
        routing.append(log.result(log.sums(), batch.num_tokens))
    if preference is None:
        parts = zip(logits.chunk(len(whole.labels)), whole.labels, strict=True)
        loss, *later = [summed_cross_entropy(part, labels_BT) / batch.num_targets for part, labels_BT in parts]
    else:
        (loss, numbers), later = loss_of_pairs(logits, batch, preference), []
        if measured is not None:
            measured.append(numbers)
    (loss + sum(LATER_WEIGHT * one for one in later)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    for gradient in gradients:
        gradient *= clipping(norm, config)
    return loss.item(), norm


def clipping(norm: float, config: RunConfig) -> float:
    """What clipping multiplies a gradient of this norm by."""
    return min(1.0, config.optimizer.gradient_clip_norm / (norm + 1e-6))


@torch.no_grad()
def layer_norms(model: Decoder, before: dict[str, Tensor], *, clipping: float) -> dict[str, list[Any]]:
    """Norms of each layer after an update: of the weights before it, of the gradient before clipping, of the update."""
    squares: dict[str, list[float]] = {}
    for name, parameter in model.canonical_parameters():
        layer = re.match(r"model\.(layers|prediction)\.\d+|model\.(embed_tokens|norm)|lm_head", name)
        assert layer is not None
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.double() / clipping
        update = parameter.double() - before[name].double()
        found = [float(values.double().square().sum()) for values in (before[name], gradient, update)]
        squares[layer[0]] = [one + other for one, other in zip(squares.get(layer[0], [0.0] * 3), found, strict=True)]
    weights, gradients, updates = ([math.sqrt(values[kind]) for values in squares.values()] for kind in range(3))
    return {"names": list(squares), "weight_norms": weights, "grad_norms": gradients, "update_norms": updates}


def loss_of_pairs(logits_BTV: Tensor, batch: MicroBatch, config: PreferenceConfig) -> tuple[Tensor, dict[str, float]]:
    """DPO's mean loss over pairs, answer by answer, and what is measured beside it."""
    assert batch.documents_BT is not None
    assert batch.references_BA is not None
    logprobs_BTV = logits_BTV.double().log_softmax(-1)
    losses, accurate, margins, chosen_rewards, rejected_rewards = [], [], [], [], []
    for row, references in enumerate(batch.references_BA.tolist()):
        answers = []
        for answer, reference in enumerate(references):
            if math.isnan(reference):
                continue
            mine_T = (batch.documents_BT[row] == answer) & (batch.labels_BT[row] != IGNORED_LABEL)
            picked = logprobs_BTV[row, mine_T].gather(-1, batch.labels_BT[row, mine_T][:, None])
            answers.append((picked.sum(), config.beta * (picked.sum() - reference), int(mine_T.sum())))
        for (logprob, chosen, num_targets), (_, rejected, _) in zip(answers[::2], answers[1::2], strict=True):
            right, wrong = torch.sigmoid(chosen - rejected), torch.sigmoid(rejected - chosen)
            loss = -(1 - config.label_smoothing) * right.log() - config.label_smoothing * wrong.log()
            losses.append(loss - config.sft_weight * logprob / num_targets)
            accurate.append(float(chosen > rejected))
            margins.append((chosen - rejected).item())
            chosen_rewards.append(chosen.item())
            rejected_rewards.append(rejected.item())
    names = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    means = [sum(values) / len(values) for values in (accurate, margins, chosen_rewards, rejected_rewards)]
    return torch.stack(losses).mean(), dict(zip(names, means, strict=True))
