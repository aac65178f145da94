"""Saving, resuming, changing the layout: each contestant in processes of its own, one after the other, in rounds."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_crew import convert_to_universal, run_task
from benchmarks.checkpoint_disk import disk_rate
from benchmarks.checkpoint_rank import SAVED, SPARE
from training.config.load import compose
from training.config.schema import ModelConfig
from training.models.sizes import num_parameters

NUM_RANKS = 2
NUM_RANKS_AFTER = 1
"""Of the other layout: ZeRO-3 over one rank."""
BYTES_PER_PARAMETER = 12
"""fp32 weight and two moments."""
_COPIES = 5
"""Most checkpoints that lie on the disk at once: the universal format's slices beside a whole one, and reserve."""

_TRAINING = (
    "stages=single",
    "parallel=zero3",
    "stages.pretrain.sequence_length=32",
    "stages.pretrain.global_batch_sequences=2",
    "stages.pretrain.micro_batch_sequences=1",
)
_LARGE = (
    "model.vocab_size=16384",
    "model.hidden_size=1024",
    "model.ffn_size=4096",
    "model.num_layers=17",
    "model.num_heads=16",
    "model.num_kv_heads=8",
    "model.tied_embeddings=false",
)
"""301M parameters, in the proportions of Llama 3.2 1B."""
_SMALL = ("model.tied_embeddings=false",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """One contestant."""

    module: str
    """benchmarks.checkpoint_<module>."""
    variant: str
    resumes: bool = True
    """False for another way to write what an entrant before it reads."""
    converts: bool = False
    """Whether another layout needs DeepSpeed's converter and the variant "universal"."""


OURS = "Autarky"
DEEPSPEED = "DeepSpeed save_checkpoint"
ENTRANTS = {
    OURS: Entrant(module="autarky", variant="only"),
    DEEPSPEED: Entrant(module="deepspeed", variant="native", converts=True),
    "torch dcp.save": Entrant(module="dcp", variant="sync"),
    "torch dcp.async_save, thread": Entrant(module="dcp", variant="thread", resumes=False),
    "torch dcp.async_save, process": Entrant(module="dcp", variant="process", resumes=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Save:
    """What the saves of one run cost; seconds are those of the slowest rank."""

    disk_rate: float
    """The disk's own, in bytes per second, measured just before."""
    first_stall: float
    """Of the first save of a process, which also makes what later ones use again: memory, a writing process."""
    quiet_write_seconds: float
    """Of the second save: from its start to its end, by the contestant's own idea of it, no training meanwhile."""
    quiet_durable_seconds: float
    """The same, until every file is on disk."""
    num_bytes: int
    stall: float
    """Of the third save: until training may go on, and what later steps stood still for it."""
    seconds_until_written: float
    """From its start to its end, while training goes on; steps are seconds long, and it ends with one."""
    extra_seconds: float
    """From its start to the end of the steps that were watched, over the undisturbed time of as many steps."""
    num_steps_after: int
    step_seconds: list[float]
    """Of undisturbed steps."""
    losses: list[float]
    """Of the steps right after the save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """From a saved checkpoint to the first step."""

    convert_seconds: float
    """Zero where nothing has to be converted."""
    start_seconds: float
    """From the start of the process until its engine is built."""
    load_seconds: float
    step_seconds: float
    """The first step's."""
    loss_difference: float
    """Largest relative difference of a loss from that of the run that was not interrupted."""

    @property
    def total_seconds(self) -> float:
        """From the checkpoint to the first step, converter included."""
        return self.convert_seconds + self.start_seconds + self.load_seconds + self.step_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointContest:
    """All rounds of all entrants, by title."""

    model: ModelConfig
    tokens_per_step: int
    saves: dict[str, list[Save]]
    resumptions: dict[str, list[Resumption]]
    """Under the layout that saved."""
    reshardings: dict[str, list[Resumption]]
    """Under the other one."""


def compete_in_checkpoints(
    root: Path, *, num_rounds: int, is_small: bool, say: Callable[[str], None]
) -> CheckpointContest:
    """Return what every entrant did. Checkpoints are written below `root`, an existing folder, and removed.

    Raises:
        RuntimeError: there is not enough space, or an entrant failed.
    """
    shared = [*_TRAINING, *(_SMALL if is_small else _LARGE)]
    config = compose([*shared, f"cluster.processes_per_node={NUM_RANKS}"])
    num_bytes = BYTES_PER_PARAMETER * num_parameters(config.model)
    free = shutil.disk_usage(root).free
    if free < _COPIES * num_bytes:
        raise RuntimeError(f"{root}: {free / 1e9:.0f} GB free, {_COPIES * num_bytes / 1e9:.0f} GB needed")
    contest = CheckpointContest(
        model=config.model,
        tokens_per_step=config.stages["pretrain"].global_batch_sequences * config.stages["pretrain"].sequence_length,
        saves={title: [] for title in ENTRANTS},
        resumptions={title: [] for title, entrant in ENTRANTS.items() if entrant.resumes},
        reshardings={title: [] for title, entrant in ENTRANTS.items() if entrant.resumes},
    )
    for turn in range(num_rounds):
        for number, (title, entrant) in enumerate(ENTRANTS.items()):
            say(f"checkpoints, round {turn + 1} of {num_rounds}: {title}")
            directory = root / f"round-{turn}-{number}"
            directory.mkdir()
            try:
                rate = disk_rate(directory / "disk", num_processes=NUM_RANKS, num_bytes=num_bytes)
                _one_round(title, entrant, directory, shared, contest, rate)
            finally:
                shutil.rmtree(directory)
    return contest


def _one_round(
    title: str, entrant: Entrant, directory: Path, shared: list[str], contest: CheckpointContest, rate: float
) -> None:
    overrides = [*shared, f"cluster.processes_per_node={NUM_RANKS}"]
    _, answers = run_task(entrant.module, entrant.variant, "save", directory, overrides, num_ranks=NUM_RANKS)
    shutil.rmtree(directory / SPARE)
    save = _save_of(answers, directory / SAVED, disk_rate=rate)
    contest.saves[title].append(save)
    if not entrant.resumes:
        return
    (directory / "next-step").write_text(str(answers[0]["next_step"]))
    _forget_pages(directory)
    contest.resumptions[title].append(
        _resume(entrant.module, entrant.variant, directory, overrides, save, num_ranks=NUM_RANKS)
    )
    _forget_pages(directory)
    convert_seconds = convert_to_universal(directory / SAVED, num_workers=NUM_RANKS) if entrant.converts else 0.0
    overrides = [*shared, f"cluster.processes_per_node={NUM_RANKS_AFTER}"]
    contest.reshardings[title].append(
        _resume(
            entrant.module,
            "universal" if entrant.converts else entrant.variant,
            directory,
            overrides,
            save,
            num_ranks=NUM_RANKS_AFTER,
            convert_seconds=convert_seconds,
        )
    )


def _save_of(answers: list[dict[str, Any]], saved: Path, *, disk_rate: float) -> Save:
    slowest = ("first_stall", "quiet_write_seconds", "quiet_durable_seconds", "stall", "seconds_until_written")
    return Save(
        **{name: max(answer[name] for answer in answers) for name in (*slowest, "extra_seconds")},
        disk_rate=disk_rate,
        num_bytes=sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
        num_steps_after=answers[0]["num_steps_after"],
        step_seconds=answers[0]["step_seconds"],
        losses=answers[0]["losses"],
    )


def _resume(
    module: str,
    variant: str,
    directory: Path,
    overrides: list[str],
    save: Save,
    *,
    num_ranks: int,
    convert_seconds: float = 0.0,
) -> Resumption:
    started, answers = run_task(module, variant, "resume", directory, overrides, num_ranks=num_ranks)
    built, loaded, stepped = (max(answer[name] for answer in answers) for name in ("built", "loaded", "stepped"))
    return Resumption(
        convert_seconds=convert_seconds,
        start_seconds=built - started,
        load_seconds=loaded - built,
        step_seconds=stepped - loaded,
        loss_difference=max(
            abs(resumed / before - 1) for resumed, before in zip(answers[0]["losses"], save.losses, strict=True)
        ),
    )


def _forget_pages(directory: Path) -> None:
    """Drop files from the page cache, so that whoever reads them next reads them from the disk."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
