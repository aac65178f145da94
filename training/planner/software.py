"""What a training program keeps in memory, overlaps and fuses. No torch.

Which numbers are fitted on the calibration rows is the list in `planner/fit.py`. Of the others the docstring or comment
names the source, or says that they are assumed: no published row tells them apart from their neighbours.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionKernel:
    """How attention is computed."""

    is_fused: bool
    """Whether scores stay on the chip and the masked half is skipped."""
    share_of_peak: float
    """Fused: FLOP/s of forward with long sequences over the bf16 peak, on Hopper and later. Not fused: of its matrix
    products, over the best product's."""
    ampere_share_of_peak: float = 0.5
    """The same on A100, fused; where it is not fitted, by FlashAttention-2 (arXiv:2307.08691), figure 5."""
    backward_share: float = 0.75
    """Fused: speed of backward over forward's; about that of figures 5 and 6 there."""
    keys_half: float = 1350.0
    """Sequence length at which half of that speed is reached: short ones waste masked tiles."""
    score_bytes: tuple[float, float] = (0.0, 0.0)
    """Not fused: memory traffic of each score in forward and in backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """One program and its usual settings."""

    attention: str
    """One of KERNELS."""
    traffic_factor: float = 1.0
    """Memory traffic of norms, activations, residuals and rotary embedding over that of one fused kernel for each."""
    loss_bytes_per_logit: float = 20.0
    """Memory traffic of the loss, forward and backward, for each token and entry of the vocabulary."""
    host_seconds_per_block: float = 1.5e-3
    """Time of the host (Python, dispatch, launch) for forward and backward of one block of one micro-batch: no block
    takes less. Fitted for nanotron; else assumed, some 150 kernels at 5 to 10 µs."""
    host_seconds_per_expert_block: float = 2e-3
    """The same, more where the block has experts: routing, permutation, exchange. Assumed."""
    issue_seconds_per_member: float = 0.0
    """Time of the host for one collective, for each member of its group."""
    tensor_overlap: float = 0.0
    """Share of tensor-parallel communication hidden behind computation."""
    context_overlap: float = 0.0
    """Share of attention's time behind which the exchange of context parallelism may hide; assumed."""
    balances_context: bool = True
    """Whether each context-parallel rank has a piece of the sequence's start and one of its end, so that the causal
    half is shared alike; else the rank with the end computes nearly twice the mean."""
    expert_overlap: float = 0.0
    """Share of expert exchange hidden behind computation."""
    data_overlap: float = 0.9
    """Share of a pass behind which communication of replicas may hide; assumed, but fitted for nanotron: the first and
    last layers have nothing beside them."""
    message_bytes: float = 400e6
    """Of what replicas exchange at the end of a step, what goes in one message under ZeRO: smaller ones follow each
    other so closely that they hide each other's latency."""
    whole_message_bytes: float = 100e6
    """The same without ZeRO: buckets of whole gradients, as backward fills them."""
    gathers_beside_forward: bool = True
    """Whether ZeRO-1 and ZeRO-2 gather updated weights while the next forward begins, rather than before it."""
    pipeline_blocks: bool = False
    """Whether a rank waits for its pipeline transfers instead of computing on."""
    step_seconds: float = 0.01
    """Of each step, whatever the size: data, logging, the norm of all gradients. Assumed, but fitted for nanotron."""
    selective_gemm_share: float = 0.0
    """Share of matrix products that selective recompute repeats: every other one in torchtitan (selective_ac_option
    op), none in ours and Megatron's."""
    accumulates_whole: bool = True
    """Whether a rank adds up whole gradients and reduces them once a step, where ZeRO's stage does not forbid it; else
    it reduces, and below ZeRO-3 gathers, for every micro-batch."""
    is_deepspeed: bool = False
    """Whether replicas exchange as DeepSpeed's do (planner/replica_exchange.py)."""
    whole_buckets: bool = False
    """Whether chunks of a pipeline collect gradients in DeepSpeed's own bucket rather than one of a layer's size."""
    accumulate_bytes: float = 8.0
    """Memory traffic of adding one parameter's whole gradient, for each micro-batch."""
    reduce_bytes: float = 4.0
    """Of one gradient on its way between replicas."""
    gather_bytes: float = 2.0
    """Of one weight on its way between replicas."""
    deduplicates_exchange: bool = False
    """Whether a token goes once to each node that has an expert of it, rather than once to each expert."""
    update_bytes: float = 40.0
    """Memory traffic of the optimizer for each parameter of a rank's share: gradient for norm and clipping, gradient,
    master weight and two moments read, written back, the weight written."""
    weight_bytes: float = 2.0
    """Kept of each weight besides the master weight; 0 where products use casts of the master weights."""
    gradient_bytes: float = 4.0
    """Of one accumulated gradient."""
    state_bytes: float = 12.0
    """Master weight and both moments, for each parameter."""
    update_whole_bytes: tuple[float, float] = (0.0, 0.0)
    """Of each parameter of a rank, what the update needs besides: without ZeRO, and with it."""
    update_owned_bytes: float = 0.0
    """The same for each parameter whose state the rank owns, with ZeRO."""
    kept_rotations: int = 1
    """Copies of queries and keys kept for backward: 2 where rotation is not part of attention's operator."""
    kept_activations: int = 1
    """Tensors of the feed-forward's width kept besides the inputs of the activation function."""
    logit_bytes: float = 10.0
    """Memory of one logit through loss and backward: the logit and, in fp32, itself and its gradient; 4 more where the
    softmax is kept besides."""
    reserved_factor: float = 1.10
    """Memory that torch's caching allocator reserves over the most that tensors take. 1.15 is the sweep's median, from
    its `mem_reserved_gb`; 1.10 is assumed."""
    context_bytes: float = 4e9
    """CUDA context, communicators' buffers and libraries' work spaces, beyond the allocator's; assumed."""
    cut: str = "blocks"
    """How pipeline stages are cut: `blocks` alike in number; `cost` by nanotron's greedy rule; `balance` by ours."""


KERNELS: dict[str, AttentionKernel] = {
    # FlashAttention 1 and its Triton port, as in llm-foundry in 2023.
    "flash_1": AttentionKernel(is_fused=True, share_of_peak=0.213, ampere_share_of_peak=0.386),
    # FlashAttention 2, also torch's scaled_dot_product_attention.
    "flash_2": AttentionKernel(is_fused=True, share_of_peak=0.44, ampere_share_of_peak=0.55),
    # cuDNN's, by TransformerEngine.
    "cudnn": AttentionKernel(is_fused=True, share_of_peak=0.74, ampere_share_of_peak=0.55),
    # Megatron's fused scale-mask-softmax between two fp16 matrix products. Forward: the product writes 2 bytes, softmax
    # reads and writes 2, dropout reads 2, writes 2 and a mask of 1, the product reads 2. Backward: products write 2 and
    # read 2 and 2, dropout reads 2 and 1 and writes 2, softmax reads 2 and 2 and writes 2.
    # The products are small, one for each head: 0.7 is assumed.
    "unfused": AttentionKernel(is_fused=False, share_of_peak=0.7, score_bytes=(13.0, 17.0)),
}
"""How attention is computed, by name."""

# PyTorch without a compiler: operators one by one, and a loss that casts, normalises and differentiates whole logits.
_EAGER_TRAFFIC = 4.43
_EAGER_LOSS_BYTES = 41.2

# TransformerEngine and Megatron-Core, with the settings of NVIDIA's performance recipes: communication of tensor
# parallelism in pieces beside the products, gradients accumulated and reduced in bf16 (grad_reduce_in_fp32=False).
_MEGATRON = Software(
    attention="cudnn",
    traffic_factor=1.85,
    loss_bytes_per_logit=9.4,
    host_seconds_per_block=0.8e-3,
    tensor_overlap=0.57,
    context_overlap=0.9,
    gradient_bytes=2.0,
    reduce_bytes=2.0,
    accumulate_bytes=4.0,
)
# Nothing was fitted on it: what today's Megatron fuses and what an eager loss moves, and nothing overlapped.
_MEGATRON_2021 = Software(
    attention="unfused",
    traffic_factor=_MEGATRON.traffic_factor,
    loss_bytes_per_logit=_EAGER_LOSS_BYTES,
    data_overlap=0.0,
    gathers_beside_forward=False,
    pipeline_blocks=True,
)
_NANOTRON = Software(
    attention="flash_2",
    traffic_factor=3.72,
    loss_bytes_per_logit=50.0,
    host_seconds_per_block=4.21e-3,
    data_overlap=0.24,
    message_bytes=193e6,
    whole_message_bytes=220e6,
    gathers_beside_forward=False,
    step_seconds=0.039,
    accumulate_bytes=10.0,
    pipeline_blocks=True,
    cut="cost",
    # bf16 gradients beside the fp32 ones while the update runs; with ZeRO-1 bf16 copies of owned and gathered weights.
    update_whole_bytes=(2.0, 4.0),
    update_owned_bytes=2.0,
    kept_rotations=2,
    kept_activations=2,
    logit_bytes=14.0,
    reserved_factor=1.15,
)
_TORCHTITAN = Software(
    attention="flash_2",
    traffic_factor=2.35,
    loss_bytes_per_logit=_EAGER_LOSS_BYTES,
    selective_gemm_share=0.5,
    balances_context=False,
    accumulates_whole=False,
    weight_bytes=0.0,
    kept_rotations=2,
    logit_bytes=14.0,
)

# PyTorch without a compiler, as torchtitan without one, and DeepSpeed's ZeRO (training/models/zero_memory.py).
_AUTARKY = Software(
    attention="flash_2",
    traffic_factor=_EAGER_TRAFFIC,
    loss_bytes_per_logit=_EAGER_LOSS_BYTES,
    accumulate_bytes=10.0,
    # training/config/deepspeed_config.py: overlap_comm is off, gradients go in fp32.
    data_overlap=0.0,
    is_deepspeed=True,
    kept_activations=2,  # training/models/activation_memory.py: gate, silu(gate), up and their product
    gathers_beside_forward=False,
    cut="balance",
)
OURS = ("autarky", "autarky_deepspeed_pipeline")
"""Names of what our engines are, of those in SOFTWARE."""

SOFTWARE: dict[str, Software] = {
    "autarky": _AUTARKY,
    # The same with DeepSpeed's PipelineEngine, which collects gradients in a bucket of DeepSpeed's size.
    "autarky_deepspeed_pipeline": replace(_AUTARKY, whole_buckets=True),
    "megatron": _MEGATRON,
    "megatron_hybrid_ep": replace(_MEGATRON, deduplicates_exchange=True),
    "megatron_hybrid_ep_overlap": replace(_MEGATRON, deduplicates_exchange=True, expert_overlap=0.49),
    "megatron_2021": _MEGATRON_2021,
    # The same with fp16 gradients, of which DeepSpeed casts the owned ones to fp32 for the update (BLOOM).
    "deepspeed_megatron": replace(
        _MEGATRON_2021, gradient_bytes=2.0, reduce_bytes=2.0, accumulate_bytes=6.0, update_owned_bytes=4.0
    ),
    "nanotron": _NANOTRON,
    # The sweep's second campaign: collectives take long to issue, as its own measurements of the network show.
    "nanotron_pipelined": replace(_NANOTRON, issue_seconds_per_member=0.229e-3, message_bytes=1.21e9),
    "torchtitan_eager": replace(_TORCHTITAN, traffic_factor=_EAGER_TRAFFIC),
    "torchtitan_compile": _TORCHTITAN,
    # Nothing was fitted on it: communication in pieces beside the products, as Megatron's.
    "torchtitan_async_tensor": replace(_TORCHTITAN, tensor_overlap=_MEGATRON.tensor_overlap),
    "llm_foundry": Software(
        attention="flash_1",
        traffic_factor=0.95,
        loss_bytes_per_logit=27.0,
        accumulates_whole=False,
        weight_bytes=0.0,
    ),
}
"""Programs, by the name that a job has for them."""
