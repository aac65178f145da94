"""Look at checkpoints by hand; take weights in, give weights out.

python -m training.checkpoint inspect CHECKPOINT|RUN_DIR      what is in it
python -m training.checkpoint verify  CHECKPOINT|RUN_DIR      is it whole (every byte is hashed)
python -m training.checkpoint import  hf:DIR OUT_DIR          Hugging Face weights -> OUT_DIR/step-00000000
python -m training.checkpoint export  CHECKPOINT OUT_DIR      its weights -> a Hugging Face directory
    [--dtype fp32|bf16] [--tokenizer DIR] [--no-check-logits]
"""

import argparse
import sys
import time
from math import prod
from pathlib import Path

from training.checkpoint.catalog import committed, verify
from training.checkpoint.export_weights import export_weights
from training.checkpoint.import_weights import import_weights
from training.checkpoint.logits_check import has_transformers
from training.checkpoint.manifest import Manifest, read_manifest
from training.config.schema import Precision
from training.errors import AutarkyError, ExitCode


def main(argv: list[str]) -> ExitCode:
    """Run one of the verbs; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        lines = options.run(options)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.checkpoint", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, run, text in (
        ("inspect", _inspect, "what is in it"),
        ("verify", _verify, "is it whole (every byte is hashed)"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("checkpoint", type=Path)
        verb.set_defaults(run=run)
    verb = verbs.add_parser("import", help="Hugging Face weights -> OUT_DIR/step-00000000")
    verb.add_argument("source", help="hf:DIR")
    verb.add_argument("out_dir", type=Path, help="folder of checkpoints")
    verb.set_defaults(run=_import)
    verb = verbs.add_parser("export", help="weights of a checkpoint -> a Hugging Face directory")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("out_dir", type=Path, help="must not exist, or be empty")
    verb.add_argument("--dtype", choices=[Precision.fp32.value, Precision.bf16.value], default=Precision.fp32.value)
    verb.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer to put beside it")
    verb.add_argument(
        "--check-logits",
        action=argparse.BooleanOptionalAction,
        default=has_transformers(),
        help="run the result in transformers and compare (holds the whole model in memory); on where it is installed",
    )
    verb.set_defaults(run=_export)
    return parser


def _inspect(options: argparse.Namespace) -> list[str]:
    return [line for path in _checkpoints(options.checkpoint) for line in [f"{path}:", *describe(read_manifest(path))]]


def _verify(options: argparse.Namespace) -> list[str]:
    lines = []
    for path in _checkpoints(options.checkpoint):
        begun = time.perf_counter()
        manifest = verify(path)
        seconds = time.perf_counter() - begun
        size = f"{len(manifest.files)} files, {manifest.num_bytes:,} bytes"
        lines.append(f"{path} is whole: {size}, every hash as written, in {seconds:.1f} s")
    return lines


def _checkpoints(path: Path) -> list[Path]:
    """Return the checkpoint at a path, or those of the folder or run directory that it is, the newest first."""
    return committed(path, path / "checkpoints") or [path]


def _import(options: argparse.Namespace) -> list[str]:
    checkpoint, manifest = import_weights(options.source, options.out_dir)
    return [f"{name}: {text}" for name, text in manifest.notes.items()] + [
        f"{checkpoint}: {len(manifest.slices)} tensors, {manifest.num_bytes:,} bytes in fp32, read back as written"
    ]


def _export(options: argparse.Namespace) -> list[str]:
    done = export_weights(
        options.checkpoint,
        options.out_dir,
        precision=Precision(options.dtype),
        tokenizer=options.tokenizer,
        with_logits=options.check_logits,
    )
    return [*done, f"exported to {options.out_dir}"]


def describe(manifest: Manifest) -> list[str]:
    """Return lines for people: progress, layout, and each parameter with its shape."""
    progress = manifest.progress
    weights = {name: pieces for name, pieces in manifest.tensors().items() if name.startswith("weight/")}
    state = "each with the optimizer's state" if manifest.has_moments else "no optimizer state"
    trained = [
        f"step {progress.step:,} (step {progress.stage_step:,} of training stage {progress.training_stage})",
        f"{progress.tokens:,} tokens, {progress.optimizer_updates:,} optimizer updates, learning rate {progress.lr:g}",
        f"config {progress.config_hash}, data {progress.data_fingerprint[:16]}",
        f"written by: {manifest.layout}, start {manifest.attempt} of the run",
    ]
    lines = [
        *(trained if progress.training_stage else ["weights that were never trained here"]),
        *(f"{name}: {text}" for name, text in manifest.notes.items()),
        f"{sum(prod(pieces[0].shape) for pieces in weights.values()):,} parameters, {state}:",
    ]
    for name, pieces in weights.items():
        shape = " x ".join(map(str, pieces[0].shape))
        lines.append(f"  {name.removeprefix('weight/')}  [{shape}]  in {len(pieces)} slices")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
