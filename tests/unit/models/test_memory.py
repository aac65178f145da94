import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.configs import model
from tests.unit.models.live_bytes import LiveBytes
from training.config.load import compose
from training.config.model_schema import ExpertsConfig, LatentAttentionConfig, RouterScore
from training.config.schema import ModelConfig, PipelineSchedule, Precision, Recompute, Regather, RunConfig
from training.errors import ConfigError
from training.models.activation_memory import ActivationMemory
from training.models.cut import cut
from training.models.dropout import dropout_of
from training.models.layers import DecoderBlock, OutputProjection
from training.models.learning import LearningPass, learning, summed_losses
from training.models.loss import summed_cross_entropy
from training.models.memory import choose_regather, device_memory_bytes, rank_memory
from training.models.rank_memory import RankMemory
from training.models.rope import rotary_tables
from training.models.routing_log import RoutingLog, routing_into
from training.models.sizes import layer_costs, num_parameters

GIB = 2**30
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}
BATCH = 2
SHAPES = {
    "wide, grouped queries": (
        model(hidden_size=128, num_heads=8, num_kv_heads=2, ffn_size=352, max_sequence_length=256),
        192,
    ),
    "narrow, one head per query": (
        model(hidden_size=96, num_heads=6, num_kv_heads=6, ffn_size=160, max_sequence_length=256),
        128,
    ),
    "dropout": (model(hidden_size=96, num_heads=6, num_kv_heads=2, ffn_size=160, dropout=0.1), 64),
}
LATENT = LatentAttentionConfig(kv_rank=24, query_rank=40, head_size=16, rope_head_size=8, value_head_size=16)
EXPERTS = ExpertsConfig(num_experts=8, experts_per_token=2, expert_ffn_size=88)
ATTENTIONS = {
    "wide heads with norms": model(hidden_size=96, num_heads=6, num_kv_heads=2, head_size=32, qk_norm=True),
    "latent, narrow values": model(hidden_size=96, num_heads=6, num_kv_heads=6, latent_attention=LATENT),
    "latent, wide values, direct queries": model(
        hidden_size=96,
        num_heads=6,
        num_kv_heads=6,
        latent_attention=replace(LATENT, query_rank=None, value_head_size=24),
    ),
}
SHAPES |= {name: (config, 64) for name, config in ATTENTIONS.items()}
ROUTED = {
    "plain": EXPERTS,
    "shared, all losses": replace(EXPERTS, num_shared_experts=2, balance_loss=0.01, z_loss=0.01),
    "sigmoid, scores as weights": replace(EXPERTS, score=RouterScore.sigmoid, normalize_weights=False),
}
ROUTED_TOKENS = 192
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def blocks(config: ModelConfig, recompute: Recompute, precision: Precision, device: str, number: int) -> list[Any]:
    torch.manual_seed(0)
    names = [f"model.layers.{index}" for index in range(number)]
    has_experts = config.experts is not None
    layers = [DecoderBlock(config, recompute, name, has_experts=has_experts) for name in names]
    for layer in layers:
        for parameter in layer.parameters():
            if parameter.dim() == 3:  # experts, which draw nothing by themselves
                torch.nn.init.normal_(parameter, std=0.1)
            elif parameter.dim() == 2 and has_experts:
                torch.nn.init.normal_(parameter, std=0.02)
    return [layer.to(device, DTYPES[precision]) for layer in layers]


def forward(layers: list[Any], hidden: Tensor) -> Tensor:
    with dropout_of(torch.arange(BATCH), seed=0):
        for layer in layers:
            hidden = layer(hidden)
    return hidden


def plan(config: ModelConfig, precision: Precision, device: str, length: int) -> ActivationMemory:
    return ActivationMemory(model=config, precision=precision, device=device, num_tokens=BATCH * length)


def kept_bytes(config: ModelConfig, recompute: Recompute, precision: Precision, device: str, length: int) -> int:
    """What one block really keeps: everything still alive after its forward but its own output."""
    layers = blocks(config, recompute, precision, device, 1)
    leaf = torch.randn(BATCH, length, config.hidden_size, device=device, dtype=DTYPES[precision], requires_grad=True)
    tables = rotary_tables(config, length, leaf.device)  # made once for all blocks
    with LiveBytes(ignored=[leaf, *tables, *layers[0].parameters()]) as live:
        # The block's input is alive only as long as the block itself keeps it.
        output = forward(layers, leaf * 1)
        return live.now - output.untyped_storage().nbytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_keeps_what_the_formula_says(
    shape: str, recompute: Recompute, precision: Precision, device: str
) -> None:
    config, length = SHAPES[shape]
    expected = plan(config, precision, device, length).block_bytes(recompute)
    assert kept_bytes(config, recompute, precision, device, length) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("routed", ROUTED)
def test_a_block_of_experts_keeps_what_the_formula_says(
    routed: str, recompute: Recompute, precision: Precision
) -> None:
    # Without drops as many rows pass the experts of one rank whatever the router does.
    config = model(hidden_size=96, num_heads=6, num_kv_heads=2, experts=ROUTED[routed])
    expected = plan(config, precision, "cpu", ROUTED_TOKENS).block_bytes(recompute, has_experts=True)
    log = RoutingLog({"model.layers.0": 0}, num_experts=8, experts_per_token=2)
    with routing_into(log):
        kept = kept_bytes(config, recompute, precision, "cpu", ROUTED_TOKENS)
    assert kept == pytest.approx(expected, rel=0.01)


class FusedNorm(torch.autograd.Function):
    """Saves what torch's kernel for GPUs does (torch/csrc/autograd/generated/Functions.h, FusedRmsNormBackward0)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rstd = (hidden.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()
        ctx.save_for_backward(hidden, weight, rstd)
        return (hidden.float() * rstd).to(hidden.dtype) * weight


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu_a_block_keeps_less_for_its_norms(
    shape: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused_norm(hidden: Tensor, _shape: tuple[int], weight: Tensor, epsilon: float) -> Tensor:
        result = FusedNorm.apply(hidden, weight, epsilon)
        assert isinstance(result, Tensor)
        return result

    monkeypatch.setattr(F, "rms_norm", fused_norm)
    config, length = SHAPES[shape]
    expected = plan(config, precision, "cuda", length).block_bytes(Recompute.none)
    assert kept_bytes(config, Recompute.none, precision, "cpu", length) == pytest.approx(expected, rel=0.005)
    assert expected < plan(config, precision, "cpu", length).block_bytes(Recompute.none)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "dropout"])
def test_several_micro_batches_in_flight_reach_the_planned_peak(
    shape: str, recompute: Recompute, precision: Precision
) -> None:
    config, length = SHAPES[shape]
    # Attention's backward rotates in fp32; as in any real model, the feed-forward layer is wide enough to need more.
    config = replace(config, ffn_size=max(352, config.ffn_size)) if shape in ATTENTIONS else config
    memory = plan(config, precision, "cpu", length)
    kept, highest = peak(config, recompute, precision, length, in_flight=3, num_blocks=2)
    planned = 3 * (2 * memory.block_bytes(recompute) + memory.hidden_bytes)  # the outputs too
    planned += memory.block_backward_bytes(recompute)
    assert kept < highest
    assert 0.92 * planned < highest < 1.02 * planned


def peak(
    config: ModelConfig, recompute: Recompute, precision: Precision, length: int, *, in_flight: int, num_blocks: int
) -> tuple[int, int]:
    """What several micro-batches keep before the first backward, and the most that their backwards reach."""
    layers = blocks(config, recompute, precision, "cpu", num_blocks)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    for parameter in parameters:  # as ZeRO does; one gradient may be alive at the peak
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    shape_BTD = (BATCH, length, config.hidden_size)
    inputs = [torch.randn(shape_BTD, dtype=DTYPES[precision], requires_grad=True) for _ in range(in_flight)]
    gradient = torch.ones(shape_BTD, dtype=DTYPES[precision])
    tables = rotary_tables(config, length, gradient.device)
    with LiveBytes(ignored=[gradient, *tables, *parameters]) as live:
        outputs = [forward(layers, leaf * 1) for leaf in inputs]
        kept = live.now
        for output in outputs:
            output.backward(gradient)
    return kept, live.highest


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", Recompute)
@pytest.mark.parametrize("routed", ROUTED)
def test_blocks_of_experts_reach_the_planned_peak(routed: str, recompute: Recompute, precision: Precision) -> None:
    config = model(hidden_size=96, num_heads=6, num_kv_heads=2, experts=ROUTED[routed], max_sequence_length=256)
    memory = plan(config, precision, "cpu", ROUTED_TOKENS)
    with routing_into(RoutingLog({f"model.layers.{i}": i for i in range(2)}, num_experts=8, experts_per_token=2)):
        kept, highest = peak(config, recompute, precision, ROUTED_TOKENS, in_flight=3, num_blocks=2)
    planned = 3 * (2 * memory.block_bytes(recompute, has_experts=True) + memory.hidden_bytes)
    planned += memory.block_backward_bytes(recompute, has_experts=True)
    assert kept < highest
    gradient_bytes = 8 * 88 * 96 * DTYPES[precision].itemsize  # of one matrix of all experts, which is not counted
    assert 0.9 * planned < highest < 1.03 * planned + gradient_bytes


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("vocab_size", "length"), [(4000, 96), (1024, 256)])
def test_logits_and_loss_reach_the_planned_peak(precision: Precision, vocab_size: int, length: int) -> None:
    config = model(vocab_size=vocab_size)
    head = OutputProjection(config)
    torch.nn.init.normal_(head.weight)
    head = head.to(DTYPES[precision])
    hidden = torch.randn(BATCH, length, config.hidden_size, dtype=DTYPES[precision], requires_grad=True)
    labels = torch.randint(0, vocab_size, (BATCH, length))
    with LiveBytes(ignored=[hidden, labels, head.weight]) as live:
        logits = head(hidden)
        summed_cross_entropy(logits, labels).backward()
    assert live.highest == pytest.approx(plan(config, precision, "cpu", length).loss_bytes, rel=0.01)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(
    ("vocab_size", "hidden_size", "length", "at_once_tokens"),
    [
        (4000, 48, 128, 40),  # logits weigh most
        (400, 192, 64, 16),  # the gradients once more, scaled
        (17_000, 192, 16, 4),  # products of bf16, made for some rows at a time
        (4000, 48, 128, 256),  # few enough to have them whole
    ],
)
def test_a_loss_in_chunks_reaches_the_planned_peak(
    vocab_size: int, hidden_size: int, length: int, at_once_tokens: int, precision: Precision
) -> None:
    config = model(vocab_size=vocab_size, hidden_size=hidden_size)
    head = OutputProjection(config)
    torch.nn.init.normal_(head.weight)
    head = head.to(DTYPES[precision])
    hidden = torch.randn(BATCH, length, hidden_size, dtype=DTYPES[precision], requires_grad=True)
    labels = torch.randint(0, vocab_size, (BATCH, length))
    with LiveBytes(ignored=[hidden, labels, head.weight]) as live:
        this = LearningPass(labels_BT=labels, loss_chunk_tokens=at_once_tokens)
        with learning(this):
            output = head(hidden)
        summed_losses(output, this)[0].backward()
    planned = replace(plan(config, precision, "cpu", length), logits_at_once_tokens=at_once_tokens)
    assert live.highest == pytest.approx(planned.loss_bytes, rel=0.02)


def llama3_405b(**changes: str) -> RunConfig:
    """Sixteen pipeline stages of one node each."""
    values = {
        "cluster.num_nodes": "16",
        "parallel.pipeline": "16",
        "parallel.recompute": "full",
        "precision": "bf16",
        "stages.pretrain.sequence_length": "8192",
        "stages.pretrain.micro_batch_sequences": "1",
        "stages.pretrain.global_batch_sequences": "512",
        "stages.pretrain.tokens": "1_000_000_000",
    }
    overrides = [f"{key}={value}" for key, value in (values | changes).items()]
    return compose(["model=llama3_405b", "cluster=azure_nd_h100_v5", "parallel=pipeline_zero3", *overrides])


def plan_of(config: RunConfig, pipeline_stage: int, regather: Regather = Regather.per_step) -> RankMemory:
    return rank_memory(
        config, "pretrain", pipeline_stage=pipeline_stage, regather=regather, parts=cut(config, "pretrain")
    )


def test_llama3_405b_takes_what_a_hand_computation_says() -> None:
    # A pipeline stage in the middle holds 8 of 126 blocks. A block has 2·16384² + 2·16384·1024 + 3·16384·53248
    # = 3.188e9 parameters, so the stage has 25.5e9 and each of its 8 replicas a shard of 3.19e9. Bytes per parameter
    # of the shard: 2 (bf16) + 4 (gradient) + 12 (master weight, moments) = 18, which makes 57.4 GB.
    # Gathered: 25.5e9 · 2 bytes, and one block more on its way = 51.0 + 6.4 GB.
    # Recompute keeps one [8192, 16384] bf16 input a block = 0.27 GB, times 8 blocks, times 15 micro-batches = 32.2 GB.
    # One block's second forward: gate, silu, up and product (4 · 53248), q, result, two norms in and out (6 · 16384),
    # k and v (2 · 1024), without the input (16384); gradients 2 · 53248 + 2 · 16384: 435_000 elements, times 8192
    # tokens, times 2 bytes = 7.1 GB.
    middle = plan_of(llama3_405b(), 1)
    assert middle.weights_bytes == pytest.approx(6.38e9, rel=0.01)
    assert middle.gradients_bytes == pytest.approx(12.75e9, rel=0.01)
    assert middle.optimizer_bytes == pytest.approx(38.3e9, rel=0.01)
    assert middle.resident_bytes == pytest.approx(57.4e9, rel=0.01)
    assert middle.gathered_bytes == pytest.approx(57.4e9, rel=0.01)
    assert plan_of(llama3_405b(), 1, Regather.per_microbatch).gathered_bytes == pytest.approx(2 * 6.38e9, rel=0.01)
    assert middle.activations_bytes == pytest.approx(32.2e9, rel=0.01)
    assert middle.block_bytes == pytest.approx(7.1e9, rel=0.02)
    assert middle.logits_bytes == 0
    # The last one has one micro-batch in flight, and logits of 4096 tokens at a time. Highest is the gradient of the
    # projection, 128256 · 16384 in fp32 = 8.41 GB, and once more scaled, in bf16 = 4.20 GB; that of hidden states too,
    # twice 8192 · 16384 · 2 bytes = 0.54 GB.
    last = plan_of(llama3_405b(), 15)
    assert last.activations_bytes < middle.activations_bytes / 10
    assert last.logits_bytes == pytest.approx(13.15e9, rel=0.01)
    # All 8192 · 128256 at once take 2 + 12 bytes each.
    at_once = plan_of(llama3_405b(**{"parallel.loss_chunk_tokens": "8192"}), 15)
    assert at_once.logits_bytes == pytest.approx(14.7e9, rel=0.01)


def test_a_replica_more_shards_what_zero3_holds_and_nothing_else() -> None:
    one, two = plan_of(llama3_405b(), 3), plan_of(llama3_405b(**{"cluster.num_nodes": "32"}), 3)
    assert one.resident_bytes == pytest.approx(2 * two.resident_bytes, rel=1e-6)
    assert one.activations_bytes == two.activations_bytes
    assert one.gathered_bytes == two.gathered_bytes


def test_two_ranks_that_share_sequences_need_about_half_the_memory_for_them() -> None:
    layout = {"parallel.recompute": "none", "stages.pretrain.sequence_length": "131072"}
    layout["parallel.loss_chunk_tokens"] = "131072"  # logits whole, which is what is halved
    one, two = (
        plan_of(
            llama3_405b(**layout, **{"cluster.num_nodes": str(16 * ranks), "parallel.sequence": str(ranks)}),
            15,
            Regather.per_microbatch,
        )
        for ranks in (1, 2)
    )
    for part in ("activations_bytes", "block_bytes", "logits_bytes"):
        assert getattr(two, part) == pytest.approx(getattr(one, part) / 2, rel=0.1)
    assert two.total_bytes == pytest.approx(one.total_bytes / 2, rel=0.1)


def test_interleaving_keeps_more_micro_batches_of_smaller_chunks() -> None:
    plain = llama3_405b(**{"parallel.pipeline": "8", "cluster.num_nodes": "8"})
    layout = replace(plain.parallel, schedule=PipelineSchedule.interleaved, chunks_per_rank=2)
    interleaved = replace(plain, parallel=layout)
    # 1F1B: 8 of 16 blocks each; interleaved (arXiv:2104.04473, 2.2): 8 + 2·7 + 1 = 23 of 8 blocks each.
    assert plan_of(interleaved, 0).activations_bytes / plan_of(plain, 0).activations_bytes == pytest.approx(
        23 / 16, rel=0.07
    )
    assert plan_of(interleaved, 0).weights_bytes == pytest.approx(plan_of(plain, 0).weights_bytes, rel=0.07)


def test_a_tied_head_on_another_pipeline_stage_is_a_copy_of_the_embedding() -> None:
    tied, untied = (
        llama3_405b(**{"parallel.zero_stage": "1", "model.tied_embeddings": flag}) for flag in ("true", "false")
    )
    parts = cut(untied, "pretrain")
    for config in (tied, untied):
        for place in (0, 15):
            whole = rank_memory(config, "pretrain", pipeline_stage=place, regather=Regather.per_step, parts=parts)
            owned = sum(layer.num_parameters for layer in [layer_costs(untied.model, 1)[i] for i in parts[place]])
            assert whole.weights_bytes == 2 * owned
    alone = compose(["parallel=zero1"])
    assert alone.model.tied_embeddings
    assert plan_of(alone, 0).weights_bytes == 4 * num_parameters(alone.model)


def test_auto_keeps_weights_gathered_if_the_fullest_pipeline_stage_stays_within_nine_tenths() -> None:
    config = llama3_405b()
    parts = cut(config, "pretrain")
    fullest = {
        how: max(plan_of(config, place, how).total_bytes for place in range(16))
        for how in (Regather.per_step, Regather.per_microbatch)
    }
    room = fullest[Regather.per_step] / 0.9
    for memory_bytes, expected in ((room * 1.001, Regather.per_step), (room * 0.999, Regather.per_microbatch)):
        chosen, reason = choose_regather(config, "pretrain", parts=parts, memory_bytes=memory_bytes)
        assert chosen is expected
        assert reason.startswith(f"{expected}: the fullest pipeline stage ")
        assert f"{fullest[Regather.per_step] / GIB:.1f} GiB of {memory_bytes / GIB:.1f} GiB" in reason
        assert "hardly fit" not in reason
    chosen, reason = choose_regather(config, "pretrain", parts=parts, memory_bytes=80e9)
    assert chosen is Regather.per_microbatch
    assert f"{fullest[Regather.per_microbatch] / GIB:.1f} GiB without; even that is more than 90 %" in reason


@pytest.mark.parametrize("explicit", [Regather.per_step, Regather.per_microbatch])
def test_a_choice_by_hand_stands(explicit: Regather) -> None:
    config = llama3_405b(**{"parallel.regather": explicit})
    chosen, reason = choose_regather(config, "pretrain", parts=cut(config, "pretrain"), memory_bytes=1.0)
    assert (chosen, reason) == (explicit, f"{explicit}: parallel.regather says so")


def test_where_nothing_is_gathered_the_reason_says_so() -> None:
    config = llama3_405b(**{"parallel.zero_stage": "2"})
    _, reason = choose_regather(config, "pretrain", parts=cut(config, "pretrain"), memory_bytes=1.0)
    assert "ZeRO-2 keeps weights whole" in reason
    assert plan_of(config, 0, Regather.per_step) == plan_of(config, 0, Regather.per_microbatch)
    config = compose(["parallel=zero3"])
    chosen, reason = choose_regather(config, "pretrain", parts=cut(config, "pretrain"), memory_bytes=1.0)
    assert chosen is Regather.per_microbatch
    assert "DeepSpeed's own way" in reason


BASE = compose([])
LAYOUTS = st.fixed_dictionaries(
    {
        "pipeline": st.sampled_from([2, 4]),
        "zero_stage": st.sampled_from([1, 2, 3]),
        "recompute": st.sampled_from(Recompute),
        "chunks_per_rank": st.sampled_from([1, 2]),
    }
)


@given(layout=LAYOUTS, precision=st.sampled_from(list(DTYPES)), tied=st.booleans(), num_replicas=st.integers(1, 9))
def test_regathering_and_recompute_never_need_more(
    layout: dict[str, Any], precision: Precision, tied: bool, num_replicas: int
) -> None:
    name = "interleaved" if layout["chunks_per_rank"] > 1 else "1f1b"
    parallel = replace(BASE.parallel, schedule=PipelineSchedule(name), **layout)
    pretrain = replace(
        BASE.stages["pretrain"], micro_batch_sequences=1, global_batch_sequences=2 * parallel.pipeline * num_replicas
    )
    config = replace(
        BASE,
        precision=precision,
        model=replace(BASE.model, num_layers=11, tied_embeddings=tied),
        parallel=parallel,
        stages={"pretrain": pretrain},
        cluster=replace(BASE.cluster, num_nodes=num_replicas, processes_per_node=parallel.pipeline),
    )
    lightest = replace(config, parallel=replace(parallel, recompute=Recompute.full))
    for place in range(parallel.pipeline):
        per_step, lean = (plan_of(config, place, how) for how in (Regather.per_step, Regather.per_microbatch))
        assert lean.total_bytes <= per_step.total_bytes
        assert lean.resident_bytes == per_step.resident_bytes
        assert plan_of(lightest, place).activations_bytes <= per_step.activations_bytes
        assert all(isinstance(count, int) for count in (lean.total_bytes, per_step.total_bytes))
        assert f"{lean.total_bytes / GIB:.1f} GiB" in lean.describe()


def test_the_memory_of_a_device_is_the_configs_or_this_machines() -> None:
    config = llama3_405b()
    assert device_memory_bytes(config, config.parallel) == 80e9
    local = compose(["cluster.processes_per_node=2"])
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert device_memory_bytes(local, local.parallel) == physical / 2


def test_memory_that_nobody_named_is_asked_for_only_where_it_decides() -> None:
    unnamed = llama3_405b(**{"cluster.accelerator.memory_bytes": "null"})
    with pytest.raises(ConfigError, match=r"memory_bytes=null: .*auto depends(.|\n)*memory_bytes=80e9") as refusal:
        device_memory_bytes(unnamed, unnamed.parallel)
    assert refusal.value.key == "cluster.accelerator.memory_bytes"
    assert "parallel.regather=per_microbatch" in refusal.value.remedy
    by_hand = replace(unnamed.parallel, regather=Regather.per_microbatch)
    assert device_memory_bytes(unnamed, by_hand) == float("inf")


@pytest.mark.parametrize("given_bytes", ["0", "-1"])
def test_memory_must_be_positive(given_bytes: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.accelerator\.memory_bytes"):
        compose([f"cluster.accelerator.memory_bytes={given_bytes}"])
