"""Measure a model by hand: a checkpoint, a Hugging Face directory, or a partner's model, with the same suite.

    python -m eval.run checkpoint=DIR suite=NAME [key=value …]      on our engine: a checkpoint, or a run's newest one
    python -m eval.run checkpoint=hf:DIR suite=NAME [key=value …]   a Hugging Face directory's weights on our engine
    python -m eval.run partner=hf:DIR suite=NAME …                  a Hugging Face directory, run by transformers
    python -m eval.run partner=endpoint:FILE.yaml suite=NAME …      an OpenAI-compatible HTTP endpoint
    deepspeed --module eval.run …     torchrun --nproc_per_node N -m eval.run …     srun python -m eval.run …

    offload_folder=DIR max_cpu_memory=8GiB max_memory_per_gpu=70GiB    where accelerate puts a partner's weights
    run=RUN_DIR       whose held-out documents are measured, where the model is not one of that run
    output=FILE.json  the report, and FILE.html for people; default eval/by_hand/ of the run, else the current folder
    key=value         as for launch.submit: parallel=zero3, eval.suites.NAME.benchmarks.cissp.items=20, …

Suites: conf/eval, docs/evaluation_tasks.md. `python -m eval.compare OURS.json PARTNERS.json` compares two reports.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from eval.harness import EngineModel, EvalReport, Summary, evaluate, measure, write_report
from eval.measured_models import Asked, Measured, engine_config, open_partner, subject_of
from training.checkpoint.catalog import verify
from training.checkpoint.hugging_face import HuggingFaceSource
from training.checkpoint.load import CheckpointReader
from training.checkpoint.ranks import do_together
from training.data.batch import MicroBatch
from training.engine import process_group
from training.engine.base import Engine, Sampling, SequenceScores
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup
from training.errors import AutarkyError, ExitCode
from training.fault_tolerance.last_words import as_autarky_error
from training.models.inference import KeyValueCache
from training.parallel.layout import Layout
from training.rank_environment import complete
from training.reporting.evaluation_page import write_evaluation_page


class Undisturbed:
    """What an evaluation sees of an engine (`eval.lm.InferenceEngine`) where no run has to be told anything."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def layout(self) -> Layout:
        """The engine's."""
        return self._engine.layout

    def score(self, batch: MicroBatch, cache: KeyValueCache | None = None) -> SequenceScores:
        """Score sequences; see `Engine.score`."""
        return self._engine.score(batch, cache)

    def next_tokens(
        self,
        input_ids_BT: torch.Tensor,
        num_tokens_B: torch.Tensor,
        cache: KeyValueCache,
        sampling: Sampling | None = None,
    ) -> torch.Tensor:
        """Continue sequences by one token; see `Engine.next_tokens`."""
        return self._engine.next_tokens(input_ids_BT, num_tokens_B, cache, sampling)

    def keep_alive(self) -> None:
        """Do nothing: whoever started this ends it."""


def main(argv: Sequence[str]) -> ExitCode:
    """Measure; returns the exit code."""
    rank = 0
    try:
        os.environ |= complete(os.environ)
        rank = int(os.environ.get("RANK", "0"))
        asked = Asked.parse(argv)
        if asked is None:
            print(__doc__)  # noqa: T201
            return ExitCode.DONE if {"-h", "--help"} & set(argv) else ExitCode.BAD_CONFIG
        if asked.partner is not None:
            _measure_partner(asked)
        else:
            _measure_on_engine(asked)
    except Exception as caught:
        # A failed task's own words, if it has some for people.
        error = caught.__cause__ if isinstance(caught.__cause__, AutarkyError) else as_autarky_error(caught)
        if not isinstance(error, AutarkyError):
            raise
        print(f"[rank {rank}] {error}" if "RANK" in os.environ else error, file=sys.stderr, flush=True)  # noqa: T201
        return error.exit_code
    return ExitCode.DONE


def _measure_on_engine(asked: Asked) -> None:
    """Measure a checkpoint or a Hugging Face directory on our engine; collective over the processes of the job."""
    processes = process_group.start(3600)
    measured = engine_config(asked)
    torch.set_num_threads(measured.config.cluster.threads_per_process)
    if measured.own_data is not None:  # every rank hashes its share of the files

        def verify_share() -> None:
            verify(measured.source, part=processes.rank, num_parts=processes.world_size)

        do_together(processes, verify_share)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's chatter
        engine = _engine(measured, processes)
    subject, tokenizer = subject_of(asked, measured)
    model = EngineModel(
        engine=Undisturbed(engine),
        tokenizer=tokenizer,
        max_length=measured.config.model.max_sequence_length,
        shares_tokens=measured.own_data is not None,
        price_per_hour=measured.config.cluster.accelerator.price_per_hour,
    )
    found = evaluate(
        model,
        processes,
        subject,
        measured.suite,
        suite_name=asked.suite,
        weights=measured.weights,
        path=measured.output,
        silent_seconds=measured.config.eval.silent_seconds,
    )
    if processes.rank == 0:
        _tell(found, asked.suite, measured)
    engine.close()
    processes.agree(True)
    process_group.stop()


def _engine(measured: Measured, processes: ProcessGroup) -> Engine:
    config, source = measured.config, measured.source
    engine = build_engine(config, next(iter(config.stages)), processes, initial_weights=False)
    if measured.own_data is None:
        engine.load_weights(lambda: HuggingFaceSource(source, config.model))
    else:
        engine.load_weights(lambda: CheckpointReader(source))
    return engine


def _measure_partner(asked: Asked) -> None:
    """Measure a model that others run; one process."""
    partner = open_partner(asked)
    try:
        report: EvalReport = measure(
            partner.tokens,
            partner.lm,
            partner.subject,
            partner.measured.suite,
            suite_name=asked.suite,
            weights=partner.measured.weights,
        )
    finally:
        partner.close()
    report = replace(report, throughput=partner.costs())
    write_report(report, partner.measured.output)
    found = Summary(metrics=report.metrics, samples=[], seconds=report.seconds, throughput=report.throughput)
    _tell(found, asked.suite, partner.measured)


def _tell(found: Summary, suite_name: str, measured: Measured) -> None:
    """Print the numbers, and write the page beside the report."""
    page = write_evaluation_page(
        measured.output, suite=suite_name, weights=measured.weights, metrics=found.metrics, seconds=found.seconds
    )
    numbers = found.metrics | found.throughput
    width = max(map(len, numbers), default=0)
    for name, value in numbers.items():
        print(f"{name:{width}}  {value:.6g}")  # noqa: T201
    print(f"{measured.weights}: {found.seconds:.0f} s; report: {measured.output}, for people: {page}")  # noqa: T201


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # as training.train ends
