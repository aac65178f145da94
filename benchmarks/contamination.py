"""How fast training data is searched for the items of all benchmarks: one thread, the texts that are always at hand.

python -m benchmarks.contamination [PREPARED_ROOT]

The benchmarks must be prepared there (default: prepared).
"""

import sys
import tempfile
import time
from pathlib import Path

from eval.contamination import training_texts
from training.config.benchmarks import BENCHMARKS
from training.config.data_schema import DataConfig, SourceConfig, SourceKind
from training.data.benchmark_passages import benchmark_passages
from training.data.prepare import prepare
from training.data.text_overlap import OverlapSearch

_ROUNDS = 3


def main(root: Path) -> None:
    """Print the rate of every round."""
    groups = {name: benchmark_passages(root, name) for name in BENCHMARKS}
    with tempfile.TemporaryDirectory() as folder:
        sources = {kind.value: SourceConfig(kind=kind) for kind in (SourceKind.kjv, SourceKind.python_stdlib)}
        data = prepare(DataConfig(sources=sources, tokenizer_vocab_size=8192, prepared_root=folder))
        num_bytes = sum(entry.train.num_bytes for entry in data.manifest.sources.values())
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            search = OverlapSearch(groups)
            built = time.perf_counter()
            for texts in training_texts(data):
                search.look_in(texts)
            searched = time.perf_counter()
            print(
                f"{sum(map(len, groups.values()))} items hashed in {built - started:.2f} s; {num_bytes / 1e6:.1f} MB "
                f"searched in {searched - built:.2f} s, {num_bytes / 1e6 / (searched - built):.1f} MB/s"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "prepared"))
