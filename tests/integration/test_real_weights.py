"""Open weights in and out, on a real model and with real limits of memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from tests.unit.checkpoint.hugging_face_directories import assert_same_bits, weights_of
from training.checkpoint.export_weights import export_weights
from training.checkpoint.hugging_face import read_model_config
from training.checkpoint.tensor_file import TensorFileWriter, TensorHeader
from training.config.schema import ModelConfig, Precision
from training.models.hugging_face import differences, to_config_json
from training.models.hugging_face_families import LLAMA
from training.models.shapes import parameter_shapes
from training.models.sizes import num_parameters

REPOSITORY = Path(__file__).parents[2]
MEBIBYTE = 2**20
LARGEST_BYTES = 4 * 49_152 * 576
"""Of SmolLM2's parameters in fp32: the embedding."""

PROGRAM = """
import sys
from training.checkpoint.__main__ import main
code = main(sys.argv[1:]) if sys.argv[1:] else 0
# Not getrusage: its maximum counts the parent's memory between fork and exec.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_bytes(*arguments: object) -> int:
    """Peak memory of one command in a process of its own; without arguments, of one that only imports the same."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def test_the_config_of_smollm2_is_that_of_its_weights(smollm2: Path) -> None:
    ours = ModelConfig(**yaml.safe_load((REPOSITORY / "conf" / "model" / "smollm2_135m.yaml").read_text()))
    assert differences(ours, to_config_json(read_model_config(smollm2), LLAMA)) == []
    assert num_parameters(ours) == 134_515_008


@pytest.fixture(scope="module")
def baseline_bytes() -> int:
    return peak_bytes()


@pytest.fixture(scope="module")
def imported(smollm2: Path, baseline_bytes: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of SmolLM2, made in bounded memory."""
    checkpoints = tmp_path_factory.mktemp("imported")
    grown = peak_bytes("import", f"hf:{smollm2}", checkpoints) - baseline_bytes
    print(f"import: {grown // MEBIBYTE} MiB over the baseline")
    assert grown <= 2 * LARGEST_BYTES
    return checkpoints / "step-00000000"


def test_smollm2_goes_in_and_out_bit_by_bit_in_bounded_memory(
    smollm2: Path, imported: Path, baseline_bytes: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    grown = peak_bytes("export", imported, out, "--tokenizer", smollm2, "--no-check-logits") - baseline_bytes
    print(f"export: {grown // MEBIBYTE} MiB over the baseline")
    assert grown <= 2 * LARGEST_BYTES < sum(value.nbytes for value in weights_of(smollm2).values()) / 2
    assert_same_bits(weights_of(out), weights_of(smollm2))
    text = "def add(a, b):\n    return a + b"
    tokenizers = [AutoTokenizer.from_pretrained(directory) for directory in (smollm2, out)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"] != []
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert len({tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers}) == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_exported_smollm2_computes_in_transformers_what_our_decoder_computes(
    imported: Path, tmp_path: Path, dtype: str
) -> None:
    lines = export_weights(imported, tmp_path / "out", precision=Precision(dtype), tokenizer=None, with_logits=True)
    assert [line for line in lines if line.startswith("logits: within ") and line.endswith(" of transformers")]


def test_memory_does_not_grow_with_the_model(baseline_bytes: int, tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=65_536,
        hidden_size=256,
        num_layers=22,
        num_heads=4,
        num_kv_heads=4,
        ffn_size=8192,
        max_sequence_length=64,
        tied_embeddings=True,
    )
    shapes = parameter_shapes(config)
    headers = [TensorHeader(key=name, dtype="BF16", shape=shape) for name, shape in shapes.items()]
    directory = tmp_path / "hf"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(to_config_json(config, LLAMA)))
    random = np.random.default_rng(0)
    with TensorFileWriter(directory / "model.safetensors", headers, {"format": "pt"}) as writer:
        for header in headers:
            # finite bf16 numbers
            writer.write(random.integers(0, 0x7F80, header.num_bytes // 2, dtype=np.uint16).data)

    largest_bytes = max(2 * header.num_bytes for header in headers)
    assert largest_bytes == 64 * MEBIBYTE
    assert 2 * sum(header.num_bytes for header in headers) >= 600 * MEBIBYTE
    checkpoint, out = tmp_path / "in" / "step-00000000", tmp_path / "out"
    for command in (
        ["import", f"hf:{directory}", checkpoint.parent],
        ["export", checkpoint, out, "--dtype", "bf16", "--no-check-logits"],
    ):
        grown = peak_bytes(*command) - baseline_bytes
        print(command[0], grown // MEBIBYTE, "MiB over the baseline")
        assert grown <= 2 * largest_bytes
    assert (out / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
