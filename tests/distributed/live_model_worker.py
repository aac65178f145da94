"""One rank: lm_eval's tasks on SmolLM2 in live engines of several layouts; rank 0 writes what every item came to.

python -m tests.distributed.live_model_worker HF_DIR TASKS_DIR OUTPUT.json LAYOUT:BATCH_SEQUENCES…
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.conductor import TokenModel, conduct
from eval.live_model import LiveModel
from eval.lm import EngineLM
from eval.run import Undisturbed
from eval.text_tokenizers import HuggingFaceTokenizer
from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from tests.distributed.live_model_tasks import MAX_LENGTH, run_tasks
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.config.schema import PipelineEngineKind
from training.engine.build import build_engine
from training.engine.process_group import start

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero3": {"pipeline": 1, "zero_stage": 3},
    "pipeline": {"pipeline": 2, "zero_stage": 1, "pipeline_engine": PipelineEngineKind.deepspeed},
    "pipeline_zero3": {"pipeline": 2, "zero_stage": 3},
}


def main(weights: Path, tasks: Path, output: Path, cells: list[str]) -> None:
    processes = start(300)
    config = replace(
        small_config(world_size=processes.world_size, micro_batch=4, pipeline=1, zero_stage=1),
        model=read_model_config(weights),
    )
    tokenizer = HuggingFaceTokenizer.load(weights)
    found = {}
    for cell in cells:
        layout, batch_sequences = cell.split(":")
        cut = small_config(world_size=processes.world_size, micro_batch=4, **LAYOUTS[layout])
        engine = build_engine(replace(cut, model=config.model), STAGE, processes, initial_weights=False)
        engine.load_weights(lambda: HuggingFaceSource(weights, config.model))
        lm = EngineLM(
            engine=Undisturbed(engine),
            speller=tokenizer,
            eos_id=tokenizer.eos_id,
            batch_sequences=int(batch_sequences),
        )

        def work(model: TokenModel) -> dict[str, Any]:
            live = LiveModel(model, tokenizer, prefix_id=tokenizer.eos_id, max_length=MAX_LENGTH)
            return run_tasks(live, tasks)

        found[cell] = conduct(lm, processes, work, silent_seconds=120)
        engine.close()
    if processes.rank == 0:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    leave()
