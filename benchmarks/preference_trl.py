"""Contestant: TRL's DPOTrainer on the same pairs in the same steps, its reference model beside the trained one.

Set up as its documentation shows; the batches of its sampler are the pairs of our packs, the optimizer has our
settings. Nothing is recomputed in backward passes, nothing logged or saved.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.hf_trainer import llama
from benchmarks.preference_pairs import read_pairs, records_of
from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.chat import ChatTemplate
from training.data.loader import StageLoader
from training.data.prepare import ensure


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for as long as `steps` lets it."""
    train_dpo(config, training_stage, steps, is_precomputed=False)


def train_dpo(config: RunConfig, training_stage: str, steps: Steps, *, is_precomputed: bool) -> None:
    """Train, with the reference's log-probabilities computed in each step or all of them before."""
    torch.set_num_threads(config.cluster.threads_per_process)
    stage, optimizer = config.stages[training_stage], config.optimizer
    settings = stage.preference_settings
    assert settings is not None
    assert not settings.label_smoothing
    assert not settings.sft_weight
    rows, batches, tokenizer = _pairs(config, training_stage)
    with tempfile.TemporaryDirectory() as output:
        arguments = DPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            beta=settings.beta,
            max_length=stage.sequence_length,
            precompute_ref_log_probs=is_precomputed,
            precompute_ref_batch_size=stage.micro_batch_sequences,
            max_steps=len(batches),
            max_grad_norm=optimizer.gradient_clip_norm,
            optim="adamw_torch",
            learning_rate=optimizer.lr,
            lr_scheduler_type="constant",
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.epsilon,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = _Trainer(
            batches,
            model=llama(config.model, seed=config.run.seed),
            ref_model=None if is_precomputed else llama(config.model, seed=config.run.seed),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.add_callback(_Tell(steps, trainer))
        trainer.train()


def _pairs(
    config: RunConfig, training_stage: str
) -> tuple[list[dict[str, str]], list[list[int]], PreTrainedTokenizerFast]:
    """Return the pairs as texts, the places of each step's pairs in them, and the tokenizer.

    The texts are what the chat template writes, so that TRL finds the same tokens and the same targets as we do: those
    of the answer with the token that ends it.
    """
    prepared = ensure(config.data)
    loader = StageLoader(prepared, config, training_stage)
    directory = prepared.tokenizer.directory
    template, end = ChatTemplate.load(directory), ChatTemplate.load(directory).end_of_turn
    assert end is not None
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), eos_token=end)
    (source,) = loader.order.sources
    path = config.data.sources[source].path
    assert path is not None
    by_id = read_pairs(Path(path))
    stream = loader.order.units(0).stream
    rows: dict[str, dict[str, str]] = {}
    batches = []
    for step in range(config.num_steps(training_stage)):
        ids = [stream.id_of(record) for record in records_of(loader, step)[::2]]
        for pair_id in ids:
            pair = by_id[pair_id]
            prompt = template.render(pair["prompt"], add_generation_prompt=True)
            answers = {
                name: template.render([*pair["prompt"], *pair[name]]).rstrip().removeprefix(prompt)
                for name in ("chosen", "rejected")
            }
            rows.setdefault(pair_id, {"prompt": prompt, **answers})
        batches.append(ids)
    places = {pair_id: place for place, pair_id in enumerate(rows)}
    return list(rows.values()), [[places[pair_id] for pair_id in ids] for ids in batches], tokenizer


class _Trainer(DPOTrainer):
    """Takes the batches it is told to, and notes the losses and the seconds of the reference."""

    def __init__(self, batches: list[list[int]], **settings: Any) -> None:
        self._batches = batches
        self.losses: list[float] = []
        self.reference_seconds = 0.0
        super().__init__(**settings)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return TRL's own batches, but for which pairs are in each."""
        self._set_signature_columns_if_needed()
        data = self._remove_unused_columns(self.train_dataset, description="training")
        return DataLoader(
            data,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
        )

    def training_step(self, *args: Any, **settings: Any) -> torch.Tensor:
        """Do a step, and note its loss."""
        loss = super().training_step(*args, **settings)
        self.losses.append(loss.item())
        return loss

    def _precompute_ref_logps(self, *args: Any, **settings: Any) -> Dataset:
        begun = time.perf_counter()
        data = super()._precompute_ref_logps(*args, **settings)
        self.reference_seconds = time.perf_counter() - begun
        return data


class _Tell(TrainerCallback):
    """Tells `steps` of the trainer's steps."""

    def __init__(self, steps: Steps, trainer: _Trainer) -> None:
        self._steps = steps
        self._trainer = trainer

    def on_train_begin(self, *_args: Any, **_settings: Any) -> None:
        self._steps.open(reference_seconds=self._trainer.reference_seconds)

    def on_step_end(self, *_args: Any, **_settings: Any) -> None:
        self._steps.after_step(self._trainer.losses[-1])
