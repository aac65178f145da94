"""A model in a local Hugging Face directory, as lm_eval's own HFLM: spread over devices, memory and disk if need be."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from lm_eval.models.huggingface import HFLM

from training.errors import ConfigError

_CONFIG = "config.json"
_WEIGHTS = "*.safetensors"


def hugging_face_model(
    directory: Path,
    *,
    prefix_token_id: int,
    batch_size: int = 1,
    max_length: int | None = None,
    dtype: str = "auto",
    max_memory_per_gpu: str | None = None,
    max_cpu_memory: str | None = None,
    offload_folder: Path | None = None,
) -> HFLM:
    """Return the model; nothing is fetched, no code of the directory runs, and no weights are unpickled.

    With any of the last three it is placed by accelerate (device_map=auto): on the GPUs as far as they go, then in
    memory, then in files from which each layer is read when its turn comes. So it may be larger than all of them; it is
    only slower.

    Args:
        directory: config.json, tokenizer and *.safetensors, as `save_pretrained` writes them.
        prefix_token_id: token before every text that has no context. It is no default, because it changes bits per
            byte: both models of a comparison need the same kind of one.
        batch_size: sequences per forward.
        max_length: most tokens of context and continuation together; None: as the directory says.
        dtype: of the weights; auto: as the directory says.
        max_memory_per_gpu: such as 70GiB; None: what is free.
        max_cpu_memory: likewise, of this machine.
        offload_folder: for what fits into neither.

    Raises:
        ConfigError: the directory holds no such model, or it cannot be placed.
    """
    check_directory(directory)
    is_spread = not (max_memory_per_gpu is None and max_cpu_memory is None and offload_folder is None)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if offload_folder is not None:
        try:
            offload_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("offload_folder", offload_folder, str(error), "name a folder on a large disk") from error
    # lm_eval's registration hides the parameters from type checkers.
    make = cast(Callable[..., HFLM], HFLM)
    try:
        return make(
            pretrained=str(directory),
            device=str(accelerator or "cpu"),
            dtype=dtype,
            batch_size=batch_size,
            max_length=max_length,
            prefix_token_id=prefix_token_id,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            parallelize=is_spread,
            max_memory_per_gpu=max_memory_per_gpu,
            max_cpu_memory=max_cpu_memory,
            offload_folder=offload_folder,
        )
    except ValueError as error:  # transformers' and accelerate's refusals
        remedy = "name an offload_folder or allow more memory if it does not fit; else mend what is named"
        raise ConfigError("directory", directory, str(error), remedy) from error


def check_directory(directory: Path) -> None:
    """Check that a directory holds a model that may be opened.

    Raises:
        ConfigError: it does not.
    """
    if not (directory / _CONFIG).is_file():
        reason = f"there is no {_CONFIG} in it: it is no Hugging Face directory (a model hub's name is none either)"
        raise ConfigError("directory", directory, reason, "copy the model to this machine and give its directory")
    if (directory / "adapter_config.json").exists():
        reason = "it holds an adapter, which transformers would put onto another model by itself"
        raise ConfigError("directory", directory, reason, "merge the adapter into its model and give that directory")
    if not any(directory.glob(_WEIGHTS)):
        found = sorted(path.name for path in directory.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        reason = f"it holds no {_WEIGHTS}" + (f", only {', '.join(found)}, which can run code" if found else "")
        remedy = "write it with save_pretrained, where the model comes from, and give the new directory"
        raise ConfigError("directory", directory, reason, remedy)
