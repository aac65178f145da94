"""Small configs and batches for the distributed tests, built without Hydra."""

import math
from dataclasses import fields

import torch
from torch import Tensor

from training.config.batch_sizes import BatchRampStep
from training.config.data_schema import DataConfig
from training.config.eval_schema import EvalConfig
from training.config.model_schema import ExpertsConfig, PredictionConfig
from training.config.optimizer_schema import OptimizerKind, ParameterGroup
from training.config.reporting_schema import ReportingConfig
from training.config.schema import (
    AcceleratorConfig,
    CheckpointConfig,
    ClusterConfig,
    DeepSpeedSection,
    FaultToleranceConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PipelineEngineKind,
    PipelineSchedule,
    Precision,
    Recompute,
    Regather,
    RunConfig,
    RunSection,
    ScheduleConfig,
    StageConfig,
)
from training.config.stage_schema import PreferenceConfig, StageKind
from training.data.batch import IGNORED_LABEL, MicroBatch

STAGE = "only"
EXPERTS = ExpertsConfig(
    num_experts=4,
    experts_per_token=2,
    expert_ffn_size=56,
    num_shared_experts=1,
    num_dense_layers=1,
    bias_update_rate=0.02,
    balance_loss=0.02,
    z_loss=0.01,
)
"""A few experts with every kind of balancing at once, strong enough to be seen in the gradient."""
PREFERENCE = PreferenceConfig(beta=0.5, label_smoothing=0.1, sft_weight=0.2)
VOCAB = 128
LENGTH = 24
GLOBAL_BATCH = 16
RAMP = [BatchRampStep(until_tokens=3 * 8 * LENGTH, global_batch_sequences=8)]
"""Three half batches first."""
GROUPS = {
    "ends": ParameterGroup(parameters=["model.embed_tokens.*", "lm_head.*"], lr_ratio=0.5, weight_decay=0.0),
    "queries": ParameterGroup(parameters=["*.q_proj.weight", "*.input_layernorm.weight"], lr_ratio=2.0),
}


def small_config(
    *,
    world_size: int,
    pipeline: int = 1,
    zero_stage: int = 1,
    tied: bool = False,
    micro_batch: int = 2,
    recompute: Recompute = Recompute.none,
    precision: Precision = Precision.fp32,
    schedule: PipelineSchedule = PipelineSchedule.one_forward_one_backward,
    chunks_per_rank: int = 1,
    regather: Regather = Regather.auto,
    pipeline_engine: PipelineEngineKind = PipelineEngineKind.autarky,
    dropout: float = 0.0,
    narrow: bool = False,
    sequence: int = 1,
    expert: int = 1,
    experts: ExpertsConfig | None = None,
    ramped: bool = False,
    grouped: bool = False,
    loss_chunk_tokens: int | None = None,
    documents: bool = False,
    prediction: bool = False,
    muon: bool = False,
    pairs: bool = False,
) -> RunConfig:
    """A run of one training stage; a narrow model's parameters cannot be cut into 4 equal parts without padding."""
    return RunConfig(
        run=RunSection(name="test", seed=3),
        precision=precision,
        model=ModelConfig(
            vocab_size=VOCAB,
            # Wide enough that most matrices pass ZeRO-3's persistence threshold, so that they really are gathered.
            hidden_size=102 if narrow else 104,
            num_layers=4,
            num_heads=1 if narrow else 4,
            num_kv_heads=1 if narrow else 2,
            ffn_size=208,
            max_sequence_length=64,
            tied_embeddings=tied,
            init_std=0.03,
            dropout=dropout,
            experts=experts,
            prediction=PredictionConfig(num_blocks=2) if prediction else None,
        ),
        parallel=ParallelConfig(
            pipeline=pipeline,
            sequence=sequence,
            expert=expert,
            zero_stage=zero_stage,
            recompute=recompute,
            schedule=schedule,
            chunks_per_rank=chunks_per_rank,
            regather=regather,
            pipeline_engine=pipeline_engine,
            loss_chunk_tokens=loss_chunk_tokens,
        ),
        data=DataConfig(sources={}),
        optimizer=OptimizerConfig(
            lr=1e-2,
            gradient_clip_norm=0.5,
            groups=GROUPS if grouped else {},
            kind=OptimizerKind.muon if muon else OptimizerKind.adamw,
        ),
        schedule=ScheduleConfig(),
        stages={
            STAGE: StageConfig(
                mixture={},
                tokens=10**6,
                sequence_length=LENGTH,
                kind=StageKind.preference if pairs else StageKind.pretrain,
                preference=PREFERENCE if pairs else None,
                document_mask=documents or pairs,
                global_batch_sequences=GLOBAL_BATCH,
                batch_ramp=RAMP if ramped else [],
                micro_batch_sequences=micro_batch,
            )
        },
        eval=EvalConfig(suites={}),
        checkpoint=CheckpointConfig(every_steps=1),
        fault_tolerance=FaultToleranceConfig(collective_timeout_seconds=60),
        reporting=ReportingConfig(),
        cluster=ClusterConfig(num_nodes=1, processes_per_node=world_size, accelerator=AcceleratorConfig(name="CPU")),
        deepspeed=DeepSpeedSection(),
    )


def global_batch(
    step: int, sequences: int = GLOBAL_BATCH, *, documents: bool = False, pairs: bool = False
) -> MicroBatch:
    """A learnable batch; its sequences, the first of GLOBAL_BATCH, have very different numbers of valid targets.

    And of documents, or of pairs of answers, if asked.
    """
    if pairs:
        return batch_of_pairs(step)
    generator = torch.Generator().manual_seed(1000 + step)
    ids_BT = torch.randint(0, VOCAB, (GLOBAL_BATCH, LENGTH), generator=generator)
    labels_BT = (ids_BT * 7 + 3) % VOCAB
    valid_B = torch.randint(1, LENGTH + 1, (GLOBAL_BATCH,), generator=generator)
    labels_BT = labels_BT.masked_fill(torch.arange(LENGTH) >= valid_B[:, None], IGNORED_LABEL)
    sample_ids_B = torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
    begins_BT = torch.rand(ids_BT.shape, generator=generator) < 0.15
    return MicroBatch(
        input_ids_BT=ids_BT[:sequences],
        labels_BT=labels_BT[:sequences],
        sample_ids_B=sample_ids_B[:sequences],
        documents_BT=begins_BT.cumsum(-1)[:sequences] if documents else None,
    )


def batch_of_pairs(step: int) -> MicroBatch:
    """One to three pairs a sequence: of chosen answers the targets follow one rule, of rejected ones another."""
    generator = torch.Generator().manual_seed(2000 + step)
    ids_BT = torch.randint(0, VOCAB, (GLOBAL_BATCH, LENGTH), generator=generator)
    labels_BT = torch.full_like(ids_BT, IGNORED_LABEL)
    documents_BT = torch.zeros_like(ids_BT)
    references_BA = torch.full((GLOBAL_BATCH, 6), torch.nan, dtype=torch.float64)
    for row in range(GLOBAL_BATCH):
        num_answers = 2 * (row % 3 + 1)
        length = (LENGTH - 1) // num_answers
        documents_BT[row] = (torch.arange(LENGTH) // length).clamp(max=num_answers)
        for answer in range(num_answers):
            first, end = answer * length, (answer + 1) * length
            targets = slice(first + 1 + row % 2, end)
            factor = 7 if answer % 2 == 0 else 5
            labels_BT[row, targets] = (ids_BT[row, targets] * factor + 3) % VOCAB
            noise = torch.rand((), generator=generator, dtype=torch.float64)
            references_BA[row, answer] = -(targets.stop - targets.start) * math.log(VOCAB) + noise
    return MicroBatch(
        input_ids_BT=ids_BT,
        labels_BT=labels_BT,
        sample_ids_B=torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH,
        documents_BT=documents_BT,
        references_BA=references_BA,
    )


def micro_batches(
    step: int,
    *,
    replica: int,
    num_replicas: int,
    micro_batch: int,
    sequences: int = GLOBAL_BATCH,
    documents: bool = False,
    pairs: bool = False,
) -> list[MicroBatch]:
    """This replica's share of the global batch, in accumulation order."""
    whole = global_batch(step, sequences, documents=documents, pairs=pairs)
    width = micro_batch * num_replicas
    tensors = {field.name: getattr(whole, field.name) for field in fields(whole)}
    given: dict[str, Tensor] = {name: all_B for name, all_B in tensors.items() if all_B is not None}
    return [
        MicroBatch(**{name: all_B[start:][:micro_batch] for name, all_B in given.items()})
        for start in range(replica * micro_batch, sequences, width)
    ]
