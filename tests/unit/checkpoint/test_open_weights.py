import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.checkpoint.hugging_face_directories import (
    assert_same_bits,
    change_json,
    change_weights,
    weights_of,
    write_model,
)
from tests.unit.models.configs import ALL_KINDS, deepseek, model
from training.checkpoint.__main__ import main
from training.checkpoint.export_weights import export_weights
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.checkpoint.import_weights import import_weights
from training.checkpoint.logits_check import TOLERANCE, check_logits
from training.checkpoint.manifest import read_manifest
from training.checkpoint.tensor_file import TensorHeader
from training.checkpoint.tensor_stream import in_files, narrowed, widen
from training.config.schema import ModelConfig, Precision
from training.data.tokenizer import Tokenizer, train_tokenizer
from training.errors import ConfigError, CorruptCheckpoint, ExitCode, StorageError

REPOSITORY = Path(__file__).parents[3]
MODEL = model()
INDEX = "model.safetensors.index.json"


def export(checkpoint: Path, directory: Path, **changes: Any) -> list[str]:
    options: dict[str, Any] = {"precision": Precision.fp32, "tokenizer": None, "with_logits": False}
    return export_weights(checkpoint, directory, **(options | changes))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return import_weights(f"hf:{write_model(tmp_path / 'hf', MODEL)}", tmp_path / "checkpoints")[0]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_in_and_out_again_is_the_same_bits_and_the_same_logits(tmp_path: Path, kind: str, dtype: str) -> None:
    original = write_model(tmp_path / "hf", ALL_KINDS[kind], dtype=dtype)
    precision = "fp32" if dtype == "F32" else "bf16"
    assert main(["import", f"hf:{original}", str(tmp_path / "in")]) == ExitCode.DONE
    checkpoint = tmp_path / "in" / "step-00000000"
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--dtype", precision, "--check-logits"]) == 0
    assert_same_bits(weights_of(tmp_path / "out"), weights_of(original))
    # transformers takes both directories for the same model
    ids = torch.arange(20).unsqueeze(0)
    logits = []
    for directory in (original, tmp_path / "out"):
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        assert loaded.dtype == (torch.float32 if dtype == "F32" else torch.bfloat16)
        logits.append(loaded(ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_our_own_weights_are_in_transformers_what_they_are_here(tmp_path: Path, kind: str) -> None:
    # from transformers' files through ours to a decoder of ours, whose logits check_logits compares with transformers'
    config = ALL_KINDS[kind]
    original = write_model(tmp_path / "hf", config, shard_size="30KB")
    assert read_model_config(original) == replace(config, init_std=0.02)
    with closing(HuggingFaceSource(original, config)) as source:
        assert check_logits(original, config, source.read_into) <= TOLERANCE


def test_the_experts_of_a_stack_may_lie_in_several_files(tmp_path: Path) -> None:
    config = deepseek()
    checkpoint, _ = import_weights(f"hf:{write_model(tmp_path / 'hf', config)}", tmp_path / "in")
    lines = export(checkpoint, tmp_path / "out", max_file_bytes=20_000)
    written = weights_of(tmp_path / "out")
    assert f"in {len(written)} tensors and" in lines[0]
    assert_same_bits(written, weights_of(tmp_path / "hf"))
    experts = [key for key in written if ".experts." in key]
    assert len(experts) == 2 * 8 * 3
    index = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert len({index[key] for key in experts if key.startswith("model.layers.1.")}) > 1, "one stack in several files"


def test_a_router_bias_stays_float32_in_bf16(tmp_path: Path) -> None:
    checkpoint, _ = import_weights(f"hf:{write_model(tmp_path / 'hf', deepseek())}", tmp_path / "in")
    export(checkpoint, tmp_path / "out", precision=Precision.bf16, with_logits=True)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    original, written = weights_of(tmp_path / "hf"), weights_of(tmp_path / "out")
    assert torch.equal(written[bias], original[bias])
    assert {value.dtype for key, value in written.items() if "correction_bias" not in key} == {torch.bfloat16}


def test_blocks_that_predict_further_tokens_are_left_out_and_noted(tmp_path: Path) -> None:
    config = deepseek()
    directory = write_model(tmp_path / "hf", config)
    extra = {"model.layers.3.eh_proj.weight": torch.ones(2), "model.layers.3.mlp.gate.weight": torch.ones(2)}
    change_weights(directory, dict(extra))
    with pytest.raises(CorruptCheckpoint, match=r"no place for model\.layers\.3\.eh_proj\.weight"):
        import_weights(f"hf:{directory}", tmp_path / "refused")  # config.json says that there are none
    change_json(directory / "config.json", {"num_nextn_predict_layers": 1})
    checkpoint, manifest = import_weights(f"hf:{directory}", tmp_path / "in")
    assert "model.layers.3.eh_proj.weight" in manifest.notes["remarks"]
    assert "predict tokens after the next" in manifest.notes["remarks"]
    export(checkpoint, tmp_path / "out")
    written = weights_of(tmp_path / "out")
    assert_same_bits(written, {key: value for key, value in weights_of(directory).items() if key not in extra})
    change_weights(directory, {"model.layers.4.eh_proj.weight": torch.ones(2)})
    with pytest.raises(CorruptCheckpoint, match=r"no place for model\.layers\.4"):
        import_weights(f"hf:{directory}", tmp_path / "again")


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    config = ALL_KINDS["mixtral"]
    directory = write_model(tmp_path / "hf", config)
    change_weights(directory, {"model.layers.1.block_sparse_moe.experts.4.w2.weight": None})
    with pytest.raises(CorruptCheckpoint, match=r"experts\.4\.w2\.weight of the model are in no file"):
        HuggingFaceSource(directory, config)


def test_sizes_without_measure_are_refused_before_anything_is_made_for_them(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", deepseek())
    change_json(directory / "config.json", {"n_routed_experts": 4 * 10**12, "num_nextn_predict_layers": 10**12})
    with pytest.raises(CorruptCheckpoint, match=r"4,000,000,000,000 experts in each of 2, the files hold"):
        HuggingFaceSource(directory, read_model_config(directory))


def test_a_number_that_no_shape_can_have_is_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    change_json(directory / "config.json", {"hidden_size": 10**30})
    with pytest.raises(ConfigError, match=r"hidden_size=10+: is more than 9,007,199,254,740,992"):
        read_model_config(directory)


def test_a_model_that_no_family_computes_is_not_exported(tmp_path: Path) -> None:
    checkpoint, manifest = import_weights(f"hf:{write_model(tmp_path / 'hf', deepseek())}", tmp_path / "in")
    values = dict(manifest.config["model"])
    values["experts"] = values["experts"] | {"capacity_factor": 1.25}
    (checkpoint / "manifest.json").write_text(replace(manifest, config={"model": values}).to_json())
    with pytest.raises(ConfigError, match=r"capacity_factor=1\.25: no family .* the nearest is deepseek_v3"):
        export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_fp16_widens_exactly(tmp_path: Path) -> None:
    original = write_model(tmp_path / "hf", MODEL, dtype="F16")
    checkpoint, manifest = import_weights(f"hf:{original}", tmp_path / "in")
    assert manifest.notes["dtype"] == "F16"
    export(checkpoint, tmp_path / "out")
    assert_same_bits(weights_of(tmp_path / "out"), {key: value.float() for key, value in weights_of(original).items()})


def test_many_files_in_and_many_files_out(tmp_path: Path) -> None:
    original = write_model(tmp_path / "hf", MODEL, shard_size="30KB")
    assert len(list(original.glob("*.safetensors"))) > 2
    checkpoint, manifest = import_weights(f"hf:{original}", tmp_path / "in", max_file_bytes=40_000)
    assert len(manifest.files) > 2
    export(checkpoint, tmp_path / "out", max_file_bytes=40_000, with_logits=True)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert max((tmp_path / "out" / name).stat().st_size for name in files) < 42_000
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights_of(original).values())
    assert_same_bits(weights_of(tmp_path / "out"), weights_of(original))


def test_an_imported_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    assert checkpoint.name == "step-00000000"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step-00000000"]
    manifest = read_manifest(checkpoint)
    assert manifest.progress.step == manifest.progress.optimizer_updates == 0
    assert not manifest.has_moments
    assert ModelConfig(**manifest.config["model"]) == ModelConfig(**asdict(model(init_std=0.02)))
    assert manifest.notes["imported_from"].endswith("/hf")
    for file in manifest.files:
        assert (checkpoint / file.name).stat().st_size == file.num_bytes


def test_every_bf16_number_survives_both_ways_and_rounding_is_torchs() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    numbers = patterns[(patterns & 0x7FFF) <= 0x7F80]  # all but NaN
    wide = np.empty(len(numbers), dtype=np.float32)
    widen(numbers, wide)
    assert torch.equal(torch.from_numpy(wide), torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16).float())
    assert np.array_equal(narrowed(wide), numbers)
    halfway = (wide.view(np.uint32) + 0x8000).view(np.float32)  # ties go to the even neighbour
    even = np.where(numbers & 1, numbers + 1, numbers)
    finite = np.abs(wide) < np.inf
    assert np.array_equal(narrowed(halfway)[finite], even[finite])


def test_files_are_filled_in_order_and_a_giant_stands_alone() -> None:
    headers = [TensorHeader(key=str(i), dtype="F32", shape=(n,)) for i, n in enumerate([1, 2, 100, 3, 1, 1])]
    assert [[h.shape[0] for h in group] for group in in_files(headers, 16)] == [[1, 2], [100], [3, 1], [1]]
    assert in_files([], 16) == []


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_one_flipped_bit_in_the_checkpoint_ends_the_export_without_a_trace(tmp_path: Path, checkpoint: Path) -> None:
    damage(checkpoint / "rank-00000.safetensors")
    with pytest.raises(CorruptCheckpoint, match=r"weight/lm_head\.weight has digest"):
        export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_logits_that_differ_or_are_no_numbers_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    export(checkpoint, tmp_path / "out")
    source = HuggingFaceSource(tmp_path / "out", MODEL)
    assert check_logits(tmp_path / "out", MODEL, source.read_into) <= TOLERANCE
    for spoilt in (0.01, float("nan")):

        def read_into(tensor: str, start: int, destination: memoryview, spoilt: float = spoilt) -> None:
            source.read_into(tensor, start, destination)
            if tensor == "weight/model.norm.weight":
                np.frombuffer(destination, dtype=np.float32)[:] += spoilt

        with pytest.raises(CorruptCheckpoint, match="logits differ"):
            check_logits(tmp_path / "out", MODEL, read_into)
    source.close()


def test_a_program_that_computes_another_model_is_noticed_before_anything_counts(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The weights' shapes do not tell the number of heads; a fault in our own decoder would show as this does.
    monkeypatch.setattr("training.models.attention.rotate", lambda x, cos, sin: x)
    with pytest.raises(CorruptCheckpoint, match="logits differ"):
        export(checkpoint, tmp_path / "out", with_logits=True)
    assert not list(tmp_path.glob("out*"))


def test_a_manifest_of_another_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    for change, text in (({"num_layers": 4}, "shape None"), ({"num_heads": "six"}, "describes no model")):
        changed = replace(manifest, config={"model": manifest.config["model"] | change})
        (checkpoint / "manifest.json").write_text(changed.to_json())
        with pytest.raises(CorruptCheckpoint, match=text):
            export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_nothing_is_ever_overwritten(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("thesis")
    with pytest.raises(StorageError, match="holds something already"):
        export(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "thesis"
    with pytest.raises(StorageError, match="holds something already"):
        import_weights(f"hf:{tmp_path / 'hf'}", checkpoint.parent)
    (tmp_path / "late.tmp").mkdir()
    (tmp_path / "late.tmp" / "half").write_text("of a killed export")
    with pytest.raises(StorageError, match="killed while it did"):
        export(checkpoint, tmp_path / "late")
    assert (tmp_path / "late.tmp" / "half").exists()
    (tmp_path / "empty").mkdir()
    export(checkpoint, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    change_json(directory / "config.json", {"hidden_act": "gelu"})
    assert main(["import", f"hf:{directory}", str(tmp_path / "in")]) == ExitCode.BAD_CONFIG
    assert "hidden_act=gelu" in capsys.readouterr().err
    assert main(["import", str(directory), str(tmp_path / "in")]) == ExitCode.BAD_CONFIG
    assert "hf:DIR" in capsys.readouterr().err
    assert not (tmp_path / "in").exists()


def test_it_works_where_neither_deepspeed_nor_transformers_is_installed(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    program = """
import sys
for name in ("deepspeed", "transformers", "accelerate"):
    sys.modules[name] = None  # importing it raises ImportError
from training.checkpoint.__main__ import main
original, checkpoints, out = sys.argv[1:]
assert main(["import", "hf:" + original, checkpoints]) == 0
assert main(["export", checkpoints + "/step-00000000", out]) == 0
sys.exit(main(["export", checkpoints + "/step-00000000", out + "2", "--check-logits"]))
"""
    arguments = [str(directory), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_CONFIG, done.stderr
    assert "not compared with transformers" in done.stdout
    assert "pip install transformers" in done.stderr
    assert_same_bits(weights_of(tmp_path / "out"), weights_of(directory))
    assert not list(tmp_path.glob("out2*"))


def test_the_prepared_datas_tokenizer_goes_along(tmp_path: Path, checkpoint: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    wide = import_weights(f"hf:{write_model(tmp_path / 'wide', model(vocab_size=300))}", tmp_path / "in")[0]
    train_tokenizer(prepared, ["In the beginning God created the heaven and the earth."] * 9, 290)
    ours = Tokenizer.load(prepared)
    export(wide, tmp_path / "out", tokenizer=prepared)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the heaven, and <b>more</b>"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.eos_id
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, ours.eos_id)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": ours.eos_id}
    with pytest.raises(ConfigError, match="the model's embedding has 96 rows"):
        export(checkpoint, tmp_path / "narrow", tokenizer=prepared)
    assert not list(tmp_path.glob("narrow*"))


def test_a_tokenizer_that_needs_code_or_is_none_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no readable"):
        export(checkpoint, tmp_path / "out", tokenizer=folder)
    tokenizers.Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    with pytest.raises(ConfigError, match="auto_map"):
        export(checkpoint, tmp_path / "out", tokenizer=folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "b"}}')
    export(checkpoint, tmp_path / "out", tokenizer=folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == 1
    assert not (tmp_path / "out" / "generation_config.json").exists()
