"""A Hugging Face directory as a source of weights: any range of any parameter, under our names, for any layout.

The constructor looks at everything that can be known without reading the weights; what it lets pass is the model that
was asked for, whole and nothing else. No code of the directory runs and nothing is unpickled.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np

from training.checkpoint.load import CHUNK_ELEMENTS, Wanted
from training.checkpoint.manifest import WEIGHT
from training.checkpoint.strict_json import read_json
from training.checkpoint.tensor_file import ELEMENT_BYTES, TensorFileReader
from training.checkpoint.tensor_stream import bits, stream, widen
from training.config.schema import ModelConfig
from training.errors import ConfigError, CorruptCheckpoint
from training.models.hugging_face import differences, family_of, from_config_json, further_blocks
from training.models.shapes import parameter_shapes

CONFIG_NAME = "config.json"
ONE_FILE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_BLOCK = re.compile(r"model\.layers\.([0-9]{1,9})\.")
_SHOWN = 3
_WIDENED_ELEMENTS = 2**20
"""Elements of 16 bits that are held at a time."""


class HuggingFaceSource:
    """Weights of a directory with config.json and *.safetensors (one file, or an index of many).

    Args:
        directory: the directory; links out of it are followed, since hub caches are made of them.
        model: what the weights have to fit.

    Raises:
        ConfigError: config.json describes a model that we do not compute, or another one than `model`.
        CorruptCheckpoint: keys are missing, left over or of another shape, or a file is not as it must be.
    """

    def __init__(self, directory: Path, model: ModelConfig) -> None:
        self.bytes_read = 0
        """Bytes of weights that `read_into` took from files so far."""
        self.notes: list[str] = []
        """What was found and left out, for people."""
        config = read_json(directory / CONFIG_NAME)
        self._family = family_of(config)
        if different := differences(model, config):
            raise ConfigError(
                "model", directory, "; ".join(different), "give the model that the weights are of, or other weights"
            )
        self._directory = directory
        self._files = _files_by_key(directory)
        experts = model.experts.num_experts if model.experts is not None else 0
        num_sparse = model.num_layers - model.experts.num_dense_layers if model.experts is not None else 0
        if model.num_layers + experts * num_sparse > len(self._files):  # before anything is made for each of them
            self.close()
            of_experts = f" and {experts:,} experts in each of {num_sparse:,}" if experts else ""
            raise CorruptCheckpoint(
                f"{directory}: {CONFIG_NAME} speaks of {model.num_layers:,} layers{of_experts}, the files hold "
                f"{len(self._files):,} tensors"
            )
        self.shapes = parameter_shapes(model)
        """Canonical name -> shape of every parameter, in running order."""
        self._headers = {key: file.tensors[key] for key, file in self._files.items()}
        self._further_blocks = further_blocks(config, model)
        self._parts = {name: self._family.parts_of(name, shape) for name, shape in self.shapes.items()}
        """Canonical name -> key and shape of the tensors that hold its values, one after the other, all of one size."""
        try:
            self._check(model)
        except BaseException:
            self.close()
            raise

    @property
    def dtypes(self) -> list[str]:
        """The dtypes that the weights are stored in, by safetensors' names."""
        return sorted({self._headers[key].dtype for parts in self._parts.values() for key, _ in parts})

    def dtypes_of(self, name: str) -> set[str]:
        """Return the dtypes that the tensors of one parameter are stored in."""
        return {self._headers[key].dtype for key, _ in self._parts[name]}

    def read_into(self, tensor: str, start: int, destination: memoryview) -> None:
        """Fill a float32 destination with elements of "weight/<canonical name>"; 16 bits are widened exactly.

        Only the bytes of the range are read.

        Raises:
            CorruptCheckpoint: the file has become shorter, or its storage fails.
        """
        parts = self._parts[tensor.removeprefix(f"{WEIGHT}/")]
        part_elements = prod(parts[0][1])
        values = np.frombuffer(destination, dtype=np.float32)
        while len(values):
            place, first = divmod(start, part_elements)
            key, _ = parts[place]
            here = values[: part_elements - first]
            self._read_key(key, first, here.data)
            self.bytes_read += len(here) * ELEMENT_BYTES[self._headers[key].dtype]
            start, values = start + len(here), values[len(here) :]

    def read_all(self, wanted: Iterable[Wanted]) -> None:
        """Pass on every element of many ranges, once."""
        buffer = np.empty(CHUNK_ELEMENTS, dtype=np.float32)
        for want in wanted:
            stop = want.start + want.numel
            for first in range(want.start, stop, CHUNK_ELEMENTS):
                values = buffer[: stop - first]
                self.read_into(want.tensor, first, values.data)
                want.take(first, values)

    def digests(self) -> Mapping[str, int]:
        """Return no digest: such directories carry none."""
        return {}

    def close(self) -> None:
        """Close the files."""
        for file in set(self._files.values()):
            file.close()

    def _read_key(self, key: str, start: int, destination: memoryview) -> None:
        file, dtype = self._files[key], self._headers[key].dtype
        if dtype == "F32":
            file.read_into(key, start, destination)
            return
        values = np.frombuffer(destination, dtype=np.float32)
        for first in range(0, len(values), _WIDENED_ELEMENTS):
            part = values[first : first + _WIDENED_ELEMENTS]
            narrow = np.empty(len(part), dtype=np.uint16)
            file.read_into(key, start + first, narrow.data)
            if dtype == "F16":
                part[:] = narrow.view(np.float16)
            else:
                widen(narrow, part)

    def _check(self, model: ModelConfig) -> None:
        tied = {}
        if model.tied_embeddings:
            tied = {copy: key for copy, key in self._family.tied.items() if copy in self._files}
        self._check_keys(tied)
        self._check_shapes()
        for copy, key in tied.items():
            self._check_tied(copy, key)

    def _check_keys(self, tied: dict[str, str]) -> None:
        expected = {key for parts in self._parts.values() for key, _ in parts}
        if missing := sorted(expected.difference(self._files)):
            raise CorruptCheckpoint(f"{self._directory}: {_listed(missing)} of the model are in no file")
        extra = sorted(set(self._files) - expected - set(tied))
        if further := [key for key in extra if _block_of(key) in self._further_blocks]:
            extra = [key for key in extra if _block_of(key) not in self._further_blocks]
            self.notes.append(f"left out: {_listed(further)}; blocks that predict tokens after the next one")
        if unused := [key for key in extra if not self._family.is_buffer(key)]:
            raise CorruptCheckpoint(
                f"{self._directory}: the model has no place for {_listed(unused)}\n"
                "  -> weights that are left out would change what the model computes; is it another model's directory?"
            )
        if extra:
            self.notes.append(f"left out: {_listed(extra)}; config.json says the same")

    def _check_shapes(self) -> None:
        wrong = [
            f"{key} has shape {found}, the model's is {shape}"
            for key, shape in (part for parts in self._parts.values() for part in parts)
            if (found := self._headers[key].shape) != shape
        ]
        if wrong:
            raise CorruptCheckpoint(f"{self._directory}: {'; '.join(wrong[:_SHOWN])} ({len(wrong)} in all)")

    def _check_tied(self, copy: str, key: str) -> None:
        """Refuse a repeated weight that differs: with tied embeddings it has no place of its own."""
        shape = self._headers[key].shape
        same = self._headers[copy].shape == shape and all(
            np.array_equal(bits(one), bits(other))
            for (_, one), (_, other) in zip(
                stream(self._read_key, copy, shape), stream(self._read_key, key, shape), strict=True
            )
        )
        if not same:
            raise CorruptCheckpoint(
                f"{self._directory}: config.json ties {copy} to {key}, but the two differ\n"
                "  -> one of them was trained by itself; set tie_word_embeddings to false to keep both"
            )
        self.notes.append(f"left out: {copy}, bitwise equal to {key}")


def read_model_config(directory: Path) -> ModelConfig:
    """Return our description of the model in a Hugging Face directory.

    Raises:
        ConfigError: it is none that our decoder computes.
        CorruptCheckpoint: config.json cannot be read.
    """
    return from_config_json(read_json(directory / CONFIG_NAME))


def _open(path: Path) -> TensorFileReader:
    if not path.is_file():  # links are followed; a pipe would be waited for, for ever
        raise CorruptCheckpoint(f"{path}: there is no such file")
    return TensorFileReader(path)


def _files_by_key(directory: Path) -> dict[str, TensorFileReader]:
    """Return the file of each key."""
    has_one, has_index = (directory / ONE_FILE_NAME).exists(), (directory / INDEX_NAME).exists()
    if has_one and has_index:
        raise CorruptCheckpoint(
            f"{directory} holds both {ONE_FILE_NAME} and {INDEX_NAME}\n  -> remove the one that is not meant"
        )
    if has_one:
        file = _open(directory / ONE_FILE_NAME)
        return dict.fromkeys(file.tensors, file)
    if has_index:
        return _indexed(directory)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    found = f"holds {_listed(pickled)}; only safetensors are read" if pickled else "holds no weights"
    raise CorruptCheckpoint(
        f"{directory} {found}\n  -> give a directory with {ONE_FILE_NAME} or {INDEX_NAME}; "
        "pickled weights can run code, so convert them where that does no harm"
    )


def _indexed(directory: Path) -> dict[str, TensorFileReader]:
    index = read_json(directory / INDEX_NAME).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CorruptCheckpoint(f"{directory / INDEX_NAME} has no weight_map of keys to file names")
    for name in index.values():
        if not _FILE_NAME.fullmatch(name):  # a path could lead anywhere
            raise CorruptCheckpoint(f"{directory / INDEX_NAME}: {name!r} is not a plain file name of safetensors")
    by_name = {name: _open(directory / name) for name in sorted(set(index.values()))}
    for name, file in by_name.items():
        for key in file.tensors:
            if index.get(key) != name:
                raise CorruptCheckpoint(
                    f"{directory / name} holds {key}, which {INDEX_NAME} places in {index.get(key)}"
                )
    for key, name in index.items():
        if key not in by_name[name].tensors:
            raise CorruptCheckpoint(f"{directory / name} does not hold {key}, which {INDEX_NAME} places there")
    return {key: by_name[name] for key, name in index.items()}


def _block_of(key: str) -> int | None:
    """Return the number of the block that a key of the files belongs to; None for what is in no block."""
    match = _BLOCK.match(key)
    return int(match[1]) if match else None


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
