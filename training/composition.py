"""Composition root: the one file that wires a run together, on every rank. Started by `training/train.py`."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from eval.evidence import decide_from_reports
from eval.harness import EngineModel, Subject, Summary, evaluate, with_more_items
from eval.lm import InferenceEngine
from eval.sandbox.check import check_sandbox
from eval.text_tokenizers import RunTokenizer
from training.checkpoint.commit import POINTS
from training.checkpoint.hugging_face import HuggingFaceSource
from training.checkpoint.load import CheckpointReader, WeightSource
from training.checkpoint.ranks import do_together
from training.checkpoint.saver import Saver
from training.config.arguments import parse_arguments
from training.config.benchmarks import BENCHMARKS, BenchmarkKind
from training.config.initial_weights import WeightsFormat, split_initial_weights
from training.config.load import load_frozen
from training.config.schema import FaultToleranceConfig, Precision, RunConfig
from training.config.typed import to_plain
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.data.shards import PreparedData
from training.durable_files import write_durably
from training.engine import process_group
from training.engine.base import Engine
from training.engine.build import build_engine
from training.engine.collectives import CollectiveLog
from training.engine.matmul_rate import measured_matmul_rate
from training.engine.process_group import Ballot, ProcessGroup
from training.errors import AutarkyError, ExitCode, PeerLost, StorageError
from training.fault_tolerance.corruption import CorruptionChecks, compute_reproducibly
from training.fault_tolerance.heartbeat import Heartbeat, Section
from training.fault_tolerance.injected import fault_at_point, make_heartbeat
from training.fault_tolerance.last_words import as_autarky_error, earlier_hang, leave
from training.fault_tolerance.poisoned import poisoned
from training.fault_tolerance.signals import StopRequest
from training.fault_tolerance.watchdog import Watchdog
from training.find_run import find_run, is_run_directory
from training.lease import Lease
from training.models.sizes import num_active_parameters, num_parameters
from training.process_identity import host_name, launched_seconds
from training.reporting.hosts import ranks_by_host
from training.reporting.metrics import FILE_NAME as METRICS_NAME
from training.reporting.metrics import last_step
from training.reporting.process_log import ProcessLog
from training.reporting.records import IncidentRecord, StartRecord
from training.reporting.report.page import write_report as write_html
from training.reporting.reporter import Reporter
from training.stages import transitions
from training.stages.checkpointing import Checkpointing
from training.stages.evaluating import Occasion
from training.stages.interruption import Interruption
from training.stages.ledger import Ledger, RunState, commit
from training.stages.runner import Parts, Runner, open_ledger


def run_rank(argv: Sequence[str], stop_request: StopRequest) -> ExitCode:
    """Run one rank to its end; returns the exit code of the process."""
    rank = int(os.environ.get("RANK", "0"))
    run_directory: Path | None = None
    lease: Lease | None = None
    watchdog: Watchdog | None = None
    log: ProcessLog | None = None
    try:
        arguments = parse_arguments(argv)
        frozen = Path(arguments.positional[0])
        limits = load_frozen(frozen).fault_tolerance if is_run_directory(frozen) else FaultToleranceConfig()
        ballot = Ballot(lambda: stop_request.is_told)
        processes = process_group.start(limits.collective_timeout_seconds, ballot)
        stop_request.has_started()
        watchdog = _start_watchdog(processes)
        run_directory, config, lease = find_run(arguments, processes)
        log = _log_to(_log_path(run_directory, rank))
        watchdog.use(config, run_directory)
        interruption = Interruption(request=stop_request, processes=processes)
        _train(config, run_directory, processes, lease, interruption, watchdog.heartbeat)
        processes.agree(True)  # whoever left before would be taken for dead, should another one hang at the end
        watchdog.close()
        process_group.stop()
    except Exception as caught:  # the outermost frame: every error becomes an exit code and a file
        if watchdog is not None:
            watchdog.close()
        code, text = leave(as_autarky_error(caught), run_directory=run_directory, rank=rank)
        print(f"[rank {rank}] {text}", file=sys.stderr, flush=True)  # noqa: T201
        return code
    finally:
        if lease is not None:
            _release(lease)
        if log is not None:
            log.close()
    return ExitCode.DONE


def _release(lease: Lease) -> None:
    """Let the next start take the run directory at once; if that cannot be written, it waits for this process's end."""
    try:
        lease.release()
    except StorageError as error:  # must not take the place of the exit code
        print(f"[rank 0] {error}", file=sys.stderr, flush=True)  # noqa: T201


def _start_watchdog(processes: ProcessGroup) -> Watchdog:
    """Return what watches this rank from now on; it makes connections of its own to the store of the rendezvous."""
    collectives = CollectiveLog()
    collectives.watch()
    watchdog = Watchdog(
        make_heartbeat(os.environ, collectives, rank=processes.rank),
        processes.cpu_group.get_group_store(),
        rank=processes.rank,
        world_size=processes.world_size,
        device=processes.device.type,
    )
    watchdog.start()
    return watchdog


def _train(
    config: RunConfig,
    run_directory: Path,
    processes: ProcessGroup,
    lease: Lease | None,
    interruption: Interruption,
    heartbeat: Heartbeat,
) -> None:
    """Do the run: data, ledger, reporter, runner; the report is written however it ends."""
    is_first = processes.rank == 0
    torch.set_num_threads(config.cluster.threads_per_process)
    interruption.check()
    heartbeat.launched_before(time.time() - launched_seconds() - heartbeat.age_seconds)
    heartbeat.section(Section.prepare)
    data = _prepared_data(config, run_directory, processes, interruption)
    do_together(processes, lambda: _check_sandbox(config) if processes.rank == 0 else None)
    interruption.check()
    ledger = open_ledger(config, run_directory, processes)
    reporter = _open_reporter(config, run_directory, ledger.attempt) if is_first else Reporter.silent()
    corruption = CorruptionChecks(config.fault_tolerance.corruption, processes)
    compute_reproducibly(config.fault_tolerance.corruption, processes.device)
    checkpoints = Checkpointing(
        config,
        run_directory,
        heartbeat=heartbeat,
        saver=_saver(config, processes, lease, reporter),
        processes=processes,
        reporter=reporter,
        attempt=ledger.attempt,
        check_state=corruption.before_save,
    )
    parts = Parts(
        processes=processes,
        reporter=reporter,
        build_engine=lambda name, draw: poisoned(
            _build_engine(config, name, processes, run_directory, draw=draw), os.environ, rank=processes.rank
        ),
        load_initial_weights=_initial_weights(config),
        checkpoints=checkpoints,
        open_loader=lambda name, left_out: _open_loader(config, processes, data, name, left_out),
        data_fingerprint=data.fingerprint,
        evaluate=lambda engine, occasion: _evaluate(config, engine, processes, data, occasion),
        decide=lambda gate, report, baselines, look: decide_from_reports(gate, report, baselines, look=look),
        start=_start(config, run_directory, processes, ledger, data),
        interruption=interruption,
        heartbeat=heartbeat,
        corruption=corruption,
    )
    runner = Runner(config, run_directory, parts, ledger)  # its first record is this attempt's start
    if is_first:
        _record_earlier_hang(reporter, run_directory, ledger)
    try:
        _run_and_report(runner, reporter, run_directory, heartbeat, is_first=is_first)
    except AutarkyError as error:
        if error.on_every_rank:
            # The first rank to end with an error takes the others down: none may end before the report is written.
            processes.agree(True)
        raise


def _run_and_report(
    runner: Runner, reporter: Reporter, run_directory: Path, heartbeat: Heartbeat, *, is_first: bool
) -> None:
    try:
        runner.run()
    except Exception:
        if is_first and runner.ledger.state is RunState.running:
            commit(transitions.failed(runner.ledger), run_directory)
        raise
    finally:
        heartbeat.section(Section.end)
        reporter.close()
        if is_first:
            write_html(run_directory)


def _prepared_data(
    config: RunConfig, run_directory: Path, processes: ProcessGroup, interruption: Interruption
) -> PreparedData:
    """Return the prepared data on every rank, the others' after rank 0's has prepared what was missing."""
    request, command = interruption.request, f"python -m training.data prepare {run_directory}"

    def leave_if_told() -> None:
        if request.is_told:
            raise request.stopped()

    made: PreparedData | None = None
    failure: AutarkyError | None = None
    if processes.rank == 0:
        try:
            made = ensure(config.data, prepare_command=command, between_batches=leave_if_told)
        except AutarkyError as error:
            failure = error
    if not processes.agree(failure is None):
        interruption.check()
        raise failure or PeerLost("rank 0 could not open the prepared data; its message says why")
    return made or ensure(config.data, prepare_command=command)


def _open_loader(
    config: RunConfig, processes: ProcessGroup, data: PreparedData, name: str, left_out: Mapping[str, int]
) -> StageLoader:
    """Return a training stage's data on every rank; tables of packs that are missing are made by rank 0."""
    loaders: list[StageLoader] = []

    def open_here() -> None:
        loaders.append(StageLoader(data, config, name, left_out=left_out))

    do_together(processes, lambda: open_here() if processes.rank == 0 else None)
    do_together(processes, lambda: open_here() if processes.rank != 0 else None)
    return loaders[0]


def _check_sandbox(config: RunConfig) -> None:
    """Check before the first step that the programs of benchmarks can be isolated where they will run: on rank 0."""
    used = {stage.eval_suite for stage in config.stages.values()}
    benchmarks = {name for suite in used if suite for name in config.eval.suites[suite].benchmarks}
    if any(BENCHMARKS[name].kind is BenchmarkKind.program for name in benchmarks):
        check_sandbox()


def _record_earlier_hang(reporter: Reporter, run_directory: Path, ledger: Ledger) -> None:
    """Let metrics.jsonl say how the start before this one ended, if it hung: it could not do so itself."""
    with earlier_hang(run_directory) as hang:
        if hang is not None:
            step, words = hang
            entry = transitions.current_stage(ledger) or ledger.stages[-1]
            attempt = max(0, ledger.attempt - 1)
            reporter.record(IncidentRecord(step=step, stage=entry.name, what="hang", message=words, attempt=attempt))


def _open_reporter(config: RunConfig, run_directory: Path, attempt: int) -> Reporter:
    return Reporter.open(
        run_directory,
        run_id=run_directory.name,
        stages=[(name, config.num_steps(name)) for name in config.stages],
        wandb_mode=config.reporting.wandb.mode,
        console_every_steps=config.reporting.console_every_steps,
        attempt=attempt,
        tensorboard=config.reporting.tensorboard,
    )


def _saver(config: RunConfig, processes: ProcessGroup, lease: Lease | None, reporter: Reporter) -> Saver:
    number = processes.broadcast_text(str(lease.number) if lease else None)
    return Saver(
        processes.with_own_group(config.checkpoint.commit_timeout_seconds),
        config=to_plain(config),
        attempt=int(number),
        check_lease=lease.check if lease else lambda: None,
        before_commit=reporter.before_commit,
        at_point=fault_at_point(os.environ, rank=processes.rank, points=POINTS),
        asynchronous=config.checkpoint.asynchronous,
    )


def _initial_weights(config: RunConfig) -> Callable[[Engine], None] | None:
    """Return what fills a new engine with the weights of `init_from`, None if they are drawn."""
    if config.init_from is None:
        return None
    source, directory = split_initial_weights(config.init_from)

    def open_source() -> WeightSource:
        if source is WeightsFormat.checkpoint:
            return CheckpointReader(directory)
        return HuggingFaceSource(directory, config.model)

    return lambda engine: engine.load_weights(open_source)


def _build_engine(
    config: RunConfig, training_stage: str, processes: ProcessGroup, run_directory: Path, *, draw: bool
) -> Engine:
    """Return the training stage's engine; its DeepSpeed dictionary is saved, DeepSpeed's chatter goes to the log."""
    with _log_path(run_directory, processes.rank).open("a") as log, contextlib.redirect_stdout(log):
        engine = build_engine(config, training_stage, processes, initial_weights=draw)
    if processes.rank == 0:
        path = run_directory / "deepspeed" / f"{training_stage}.json"
        write_durably(path, json.dumps(engine.deepspeed_config, indent=2) + "\n")
    return engine


def _evaluate(
    config: RunConfig, engine: InferenceEngine, processes: ProcessGroup, data: PreparedData, occasion: Occasion
) -> Summary:
    """Measure a suite, with as many items as the occasion asks for."""
    model = EngineModel(
        engine=engine,
        tokenizer=RunTokenizer.of(data),
        max_length=config.model.max_sequence_length,
        shares_tokens=True,
        price_per_hour=config.cluster.accelerator.price_per_hour,
    )
    return evaluate(
        model,
        processes,
        Subject(
            data=data,
            prepared_root=Path(config.data.prepared_root),
            training_data=data if config.eval.contamination else None,
        ),
        with_more_items(config.eval.suites[occasion.suite], occasion.look),
        suite_name=occasion.suite,
        weights=occasion.weights,
        path=occasion.path,
        reuses_report=True,
        silent_seconds=config.eval.silent_seconds,
    )


def _start(
    config: RunConfig, run_directory: Path, processes: ProcessGroup, ledger: Ledger, data: PreparedData
) -> StartRecord:
    """Return what is to be known of this start; collective."""
    peak, source = _peak_flops_per_second(config, processes)
    entry = transitions.current_stage(ledger) or ledger.stages[-1]
    return StartRecord(
        step=last_step(run_directory / METRICS_NAME) if processes.rank == 0 else 0,
        stage=entry.name,
        attempt=ledger.attempt,
        launched_seconds=launched_seconds(),
        world_size=processes.world_size,
        hosts=ranks_by_host(processes.gather_text(host_name())),
        peak_flops_per_second=peak,
        peak_source=source,
        price_per_hour=config.cluster.accelerator.price_per_hour,
        data_fingerprint=data.fingerprint,
        tokenizer_hash=data.manifest.tokenizer_fingerprint,
        num_parameters=num_parameters(config.model),
        num_active_parameters=num_active_parameters(config.model),
    )


def _peak_flops_per_second(config: RunConfig, processes: ProcessGroup) -> tuple[float, str]:
    """Return the peak that MFU refers to, and its source: the cluster's stated one, else what the ranks measure."""
    if config.cluster.accelerator.peak_flops_per_second:
        return config.cluster.accelerator.peak_flops_per_second, "cluster.accelerator.peak_flops_per_second"
    dtype = torch.bfloat16 if config.precision is Precision.bf16 else torch.float32
    processes.agree(True)  # all ranks measure at the same time: they share cores
    rate = measured_matmul_rate(processes.device, dtype)
    mean = processes.sum([rate])[0] / processes.world_size
    return mean, f"matrix products of {str(dtype).removeprefix('torch.')} measured at this start, mean of all ranks"


def _log_path(run_directory: Path, rank: int) -> Path:
    return run_directory / "logs" / f"rank-{rank:05d}.log"


def _log_to(path: Path) -> ProcessLog:
    """Send all logging and warnings of this rank, DeepSpeed's too, to its log file."""
    log = ProcessLog(path)
    deepspeed_logger = logging.getLogger("DeepSpeed")
    deepspeed_logger.handlers.clear()
    deepspeed_logger.propagate = True
    return log
