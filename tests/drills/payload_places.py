"""Good files of every kind that a command reads, made once and copied for each payload."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tests.unit.checkpoint.simulated_ranks import saved
from tests.unit.reporting.example_run import write_example_run
from training.checkpoint.manifest import File, read_manifest
from training.checkpoint.tensor_file import TensorFileWriter, TensorHeader
from training.config.load import compose, freeze
from training.config.schema import RunConfig
from training.data.manifest import FileEntry, Manifest
from training.data.prepare import prepare
from training.lease import Lease
from training.stages.ledger import Ledger, commit

RUN_ID = "planted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the files of one payload lie."""

    root: Path

    @property
    def marker(self) -> Path:
        """Exists once code of the payload has run."""
        return self.root / "marker"

    @property
    def checkpoints(self) -> Path:
        """A folder with checkpoints of steps 2 and 4."""
        return self.root / "checkpoints"

    @property
    def newest(self) -> Path:
        """The checkpoint of step 4."""
        return self.checkpoints / "step-00000004"

    @property
    def run(self) -> Path:
        """A run directory."""
        return self.root / "runs" / RUN_ID

    @property
    def prepared(self) -> Path:
        """The folder of the prepared data."""
        return next((self.root / "prepared").iterdir())

    @property
    def hugging_face(self) -> Path:
        """A Hugging Face directory."""
        return self.root / "hugging_face"

    @property
    def overrides(self) -> list[str]:
        """Of a start that finds the run and the data."""
        return [
            "experiment=smoke",
            f"run.root={self.root / 'runs'}",
            f"run.id={RUN_ID}",
            f"data.prepared_root={self.root / 'prepared'}",
        ]

    def config(self) -> RunConfig:
        """Return the config of such a start."""
        return compose(self.overrides)

    def copied(self, root: Path, needs: str) -> "Places":
        """Return a copy of one of the places: checkpoints, runs, prepared or hugging_face."""
        shutil.copytree(self.root / needs, root / needs)
        return Places(root=root)


def make_places(root: Path) -> Places:
    """Return all places, with good files in them."""
    places = Places(root=root)
    for step in (2, 4):
        saved(places.checkpoints, step=step, seed=step)
    config = places.config()
    prepare(config.data)
    places.run.parent.mkdir(parents=True)
    write_example_run(places.run)
    freeze(config, places.run)
    commit(Ledger.open(places.run.parent, list(config.stages)), places.run)
    saved(places.run / "checkpoints", step=2)
    (places.run / "overrides.yaml").write_text(json.dumps(places.overrides))
    Lease.take(places.run).release()
    _write_hugging_face(places.hugging_face)
    return places


def adopt_tensor_file(checkpoint: Path, name: str) -> None:
    """Make a checkpoint's manifest say that the file of this name is as it was written."""
    manifest, path = read_manifest(checkpoint), checkpoint / name
    if not path.is_file() or path.is_symlink():
        return
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    files = tuple(
        File(name=name, num_bytes=path.stat().st_size, sha256=sha256) if file.name == name else file
        for file in manifest.files
    )
    (checkpoint / "manifest.json").write_text(replace(manifest, files=files).to_json())


def adopt_prepared_file(folder: Path, name: str) -> None:
    """Make the manifest of prepared data say that the file of this name is as it was written."""
    manifest, path = Manifest.from_json((folder / "manifest.json").read_text()), folder / name
    if not path.is_file() or not os.path.isfile(os.path.realpath(path)):
        return
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    entry = FileEntry(num_bytes=path.stat().st_size, sha256=sha256)
    changed = replace(manifest, files=manifest.files | {name: entry})
    if name == "tokenizer/tokenizer.json":
        changed = replace(changed, tokenizer_fingerprint=sha256)
    (folder / "manifest.json").write_text(changed.to_json())


def _write_hugging_face(folder: Path) -> None:
    """Write the smallest Llama."""
    folder.mkdir(parents=True)
    hidden, ffn, vocab = 8, 16, 32
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        **{f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"},
        f"{layer}.mlp.gate_proj.weight": (ffn, hidden),
        f"{layer}.mlp.up_proj.weight": (ffn, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, ffn),
        f"{layer}.input_layernorm.weight": (hidden,),
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    headers = [TensorHeader(key=key, dtype="F32", shape=shape) for key, shape in shapes.items()]
    with TensorFileWriter(folder / "model.safetensors", headers, {"format": "pt"}) as writer:
        for header in headers:
            writer.write(torch.ones(header.shape).numpy().data.cast("B"))
