"""One rank: evaluates a finished run's last checkpoint under several layouts and writes what it found (rank 0).

python -m tests.integration.evaluation_worker RUN_DIR OUTPUT.json LAYOUT…
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from eval.harness import EngineModel, Subject, evaluate
from eval.run import Undisturbed
from eval.text_tokenizers import RunTokenizer
from tests.distributed.ending import leave
from tests.integration.reading import last_checkpoint
from training.config.load import load_frozen
from training.config.schema import ParallelConfig, PipelineEngineKind
from training.data.prepare import ensure
from training.engine.build import build_engine
from training.engine.process_group import start

LAYOUTS = {
    "single": ParallelConfig(zero_stage=0),
    "zero3": ParallelConfig(zero_stage=3),
    "pipeline": ParallelConfig(pipeline=2, zero_stage=1, pipeline_engine=PipelineEngineKind.deepspeed),
    "pipeline_zero3": ParallelConfig(pipeline=2, zero_stage=3),
}


def main(run_directory: Path, output: Path, layouts: list[str]) -> None:
    processes = start(120)
    frozen = load_frozen(run_directory)
    data = ensure(frozen.data)
    subject = Subject(data=data, prepared_root=Path(frozen.data.prepared_root), training_data=data)
    found = {}
    for name in layouts:
        stage = replace(frozen.stages["pretrain"], parallel=LAYOUTS[name])
        cluster = replace(frozen.cluster, processes_per_node=processes.world_size)
        config = replace(frozen, stages={"pretrain": stage}, cluster=cluster)
        engine = build_engine(config, "pretrain", processes)
        engine.load(last_checkpoint(run_directory))
        report = output.with_name(f"{name}.json")
        model = EngineModel(
            engine=Undisturbed(engine),
            tokenizer=RunTokenizer(data.tokenizer),
            max_length=frozen.model.max_sequence_length,
            shares_tokens=True,
        )
        evaluate(
            model,
            processes,
            subject,
            config.eval.suites["quick"],
            suite_name="quick",
            path=report,
            silent_seconds=60,
        )
        found[name] = json.loads(report.read_text()) if processes.rank == 0 else None
        engine.close()
    if processes.rank == 0:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    leave()
