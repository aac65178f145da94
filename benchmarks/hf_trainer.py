"""Contestant: the same model shape, weights and batches in the Hugging Face Trainer over DeepSpeed ZeRO-3.

Set up as its documentation shows: everything "auto" in the DeepSpeed dictionary, torch AdamW, nothing logged or saved.
"""

import tempfile
from typing import Any

import deepspeed.comm  # noqa: F401 - must be loaded before its op can be skipped
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.turns import Steps
from training.config.schema import ModelConfig, RunConfig
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.engine.deepspeed_private import skip_shared_memory_op
from training.models.decoder import Decoder, decoder_layers

_NUM_STEPS = 100_000
"""More than any measurement takes."""

_DEEPSPEED = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 3},
    "steps_per_print": 2**31,
}


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for as long as `steps` lets it."""
    skip_shared_memory_op()
    stage, optimizer = config.stages[training_stage], config.optimizer
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            use_cpu=True,
            deepspeed=_DEEPSPEED,
            max_steps=_NUM_STEPS,
            per_device_train_batch_size=stage.micro_batch_sequences,
            gradient_accumulation_steps=config.accumulation_steps(training_stage),
            max_grad_norm=optimizer.gradient_clip_norm,
            optim="adamw_torch",
            learning_rate=optimizer.lr,
            lr_scheduler_type="constant",
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.epsilon,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        losses: list[Tensor] = []
        model = llama(config.model, seed=config.run.seed)
        model.register_forward_hook(lambda _module, _inputs, output: losses.append(output.loss.detach().clone()))
        data = _Samples(
            StageLoader(ensure(config.data), config, training_stage), _NUM_STEPS * stage.global_batch_sequences
        )
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[_Tell(steps, losses)]).train()


def llama(config: ModelConfig, *, seed: int) -> LlamaForCausalLM:
    """Return transformers' Llama of the same shape, with the same initial weights."""
    assert config.rope_scaling is None, "the measured models have plain rotary positions"
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_sequence_length,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied_embeddings,
            use_cache=False,
        )
    )
    weights = dict(Decoder(decoder_layers(config, seed=seed)).canonical_parameters())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert missing == (["lm_head.weight"] if config.tied_embeddings else []), missing
    return model


class _Samples(Dataset[dict[str, Tensor]]):
    """The training stage's sequences by index; `shift_labels` makes Llama's loss predict the same targets as ours."""

    def __init__(self, loader: StageLoader, num_samples: int) -> None:
        self._loader = loader
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._loader.sample(index).row
        labels = torch.from_numpy(row.labels_T)
        return {"input_ids": torch.from_numpy(row.input_ids_T), "labels": labels, "shift_labels": labels}


class _Tell(TrainerCallback):
    """Tells `steps` of the Trainer's steps; the model's loss is already this rank's share of the global mean."""

    def __init__(self, steps: Steps, losses: list[Tensor]) -> None:
        self._steps = steps
        self._losses = losses

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self._steps.open()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        share = torch.stack(self._losses).sum().item()
        self._losses.clear()
        self._steps.after_step(share)
