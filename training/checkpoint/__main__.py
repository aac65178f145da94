"""Look at checkpoints by hand.

python -m training.checkpoint inspect CHECKPOINT     what is in it
python -m training.checkpoint verify  CHECKPOINT     is it whole (every byte is hashed)
"""

import sys
from math import prod
from pathlib import Path

from training.checkpoint.catalog import verify
from training.checkpoint.manifest import Manifest, read_manifest
from training.errors import AutarkyError, ExitCode


def main(argv: list[str]) -> ExitCode:
    """Run one of the two verbs; returns the exit code."""
    verbs = {"inspect": read_manifest, "verify": verify}
    if len(argv) != 2 or argv[0] not in verbs:
        print(__doc__)
        return ExitCode.BAD_CONFIG
    try:
        manifest = verbs[argv[0]](Path(argv[1]))
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(describe(manifest)))
    if argv[0] == "verify":
        print(f"whole: {len(manifest.files)} files, {manifest.num_bytes:,} bytes, every hash as written")
    return ExitCode.DONE


def describe(manifest: Manifest) -> list[str]:
    """Return lines for people: progress, layout, and each parameter with its shape."""
    progress = manifest.progress
    weights = {name: pieces for name, pieces in manifest.tensors().items() if name.startswith("weight/")}
    lines = [
        f"step {progress.step:,} (step {progress.stage_step:,} of training stage {progress.training_stage})",
        f"{progress.tokens:,} tokens, {progress.optimizer_updates:,} optimizer updates",
        f"config {progress.config_hash}, data {progress.data_fingerprint[:16]}",
        f"written by: {manifest.layout}",
        f"{sum(prod(pieces[0].shape) for pieces in weights.values()):,} parameters, each with two AdamW moments:",
    ]
    for name, pieces in weights.items():
        shape = " x ".join(map(str, pieces[0].shape))
        lines.append(f"  {name.removeprefix('weight/')}  [{shape}]  in {len(pieces)} slices")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
