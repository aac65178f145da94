"""One rank: starts engines from Hugging Face weights under several layouts; rank 0 writes logits and greedy tokens.

python -m tests.distributed.open_weights_worker HF_DIR PROMPT.json OUTPUT.safetensors
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.data.batch import MicroBatch
from training.engine.base import Engine
from training.engine.build import build_engine
from training.engine.process_group import start
from training.engine.stateful import StatefulEngine
from training.models.inference import KeyValueCache

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero3": {"pipeline": 1, "zero_stage": 3},
    "pipeline_zero3": {"pipeline": 2, "zero_stage": 3},
}
GREEDY_TOKENS = 12


def main(weights: Path, prompt: list[int], output: Path) -> None:
    processes = start(300)
    model = read_model_config(weights)
    found: dict[str, Tensor] = {}
    for name, options in LAYOUTS.items():
        config = small_config(world_size=processes.world_size, micro_batch=4, **options)
        config = replace(config, model=model)
        engine = build_engine(config, STAGE, processes, initial_weights=False)
        engine.load_weights(lambda: HuggingFaceSource(weights, model))
        found[f"{name}/tokens"] = greedy(engine, prompt)
        with logits_of_last_layer(engine) as seen:
            engine.score(MicroBatch(input_ids_BT=torch.tensor([prompt]), labels_BT=torch.tensor([prompt])))
        logits = torch.zeros(len(prompt), model.vocab_size)
        if seen:
            logits = seen[0].float().contiguous()
        if engine.layout.num_pipeline_stages > 1:
            dist.broadcast(logits, src=engine.layout.pipeline_group(0)[-1])
        found[f"{name}/logits"] = logits
        engine.close()
    if processes.rank == 0:
        save_file(found, output)


def greedy(engine: Engine, prompt: list[int]) -> Tensor:
    """The most likely tokens after some, one by one, over a cache of keys and values."""
    cache = KeyValueCache(1, len(prompt) + GREEDY_TOKENS)
    new = [engine.next_tokens(torch.tensor([prompt]), torch.tensor([len(prompt)]), cache)]
    while len(new) < GREEDY_TOKENS:
        new.append(engine.next_tokens(new[-1][:, None], torch.ones(1, dtype=torch.int64), cache))
    return torch.cat(new)


@contextmanager
def logits_of_last_layer(engine: Engine) -> Iterator[list[Tensor]]:
    """Inside, what this rank's output projection returns is kept; nothing on ranks that have none."""
    seen: list[Tensor] = []
    assert isinstance(engine, StatefulEngine)
    modules = [part.module for part in engine._engines if "lm_head" in part.module.names or _is_tied_end(part.module)]
    if not modules:
        yield seen
        return
    last: nn.Module = modules[-1].sequence[-1]

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].is_floating_point():  # a tied embedding is called with token ids too
            seen.append(output.detach().clone())

    handle = last.register_forward_hook(keep)
    yield seen
    handle.remove()


def _is_tied_end(module: Any) -> bool:
    return module.names[-1] == "model.embed_tokens"


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
    leave()
