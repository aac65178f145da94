"""Contents that harm who trusts them: pickles that would touch a marker file, texts that grow when they are read."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

Plant = Callable[[Path, Path], None]
"""(path to put it at, marker that exists afterwards if code of it ran)"""


class Bomb:
    """Unpickling it touches the marker."""

    def __init__(self, marker: Path) -> None:
        self._command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


def plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def torch_zip(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(marker)}, buffer)
    return buffer.getvalue()


def torch_legacy(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(marker)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def numpy_objects(marker: Path) -> bytes:
    buffer = io.BytesIO()
    objects = np.empty(2, dtype=object)
    objects[:] = [Bomb(marker), 1]
    np.save(buffer, objects, allow_pickle=True)
    return buffer.getvalue()


def zip_bomb(_marker: Path) -> bytes:
    return _zipped_zeros()


@cache
def _zipped_zeros() -> bytes:
    """A numpy archive of one array of 3 GB of zeros."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("weight.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (3 * 2**28,)})
        for _ in range(48):
            member.write(bytes(2**26))
    return buffer.getvalue()


def brackets(number: int) -> bytes:
    return b"[" * number


def header(text: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + data


def billion_laughs() -> bytes:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return ("\n".join(lines) + "\nrun: *a11\ndeepspeed: {extra: {x: *a11}}\n").encode()


def pipe(path: Path, _marker: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path, _marker: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def link_to(target: str) -> Plant:
    def plant(path: Path, _marker: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return plant


def written(content: Callable[[Path], bytes] | bytes) -> Plant:
    def plant(path: Path, marker: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content(marker))

    return plant


TENSOR_FILES: dict[str, Plant] = {
    "a pickle": written(plain_pickle),
    "a torch.save zip": written(torch_zip),
    "a torch.save of before 1.6": written(torch_legacy),
    "a numpy array of objects": written(numpy_objects),
    "a zip bomb": written(zip_bomb),
    "a header of 2^63 bytes": written((2**63).to_bytes(8, "little") + b"{}"),
    "200 MB of brackets": written(header(brackets(200_000_000))),
    "90 MB of brackets": written(header(brackets(90_000_000))),
    "a huge shape": written(
        header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', b"0000")
    ),
    "a million huge dims": written(
        header(b'{"a":{"dtype":"F32","shape":[' + b",".join([b"9" * 18] * 1_000_000) + b'],"data_offsets":[0,4]}}')
    ),
    "a number of a million digits": written(
        header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,4]}}')
    ),
    "a pipe": pipe,
    "a folder": folder,
    "a link to /dev/zero": link_to("/dev/zero"),
    "a link to outside": link_to("/etc/hostname"),
}
"""In the place of rank-00000.safetensors."""

JSON_FILES: dict[str, Plant] = {
    "a pickle": written(plain_pickle),
    "a torch.save zip": written(torch_zip),
    "deep nesting": written(b'{"a":' * 100_000),
    "10 MB of brackets": written(brackets(10_000_000)),
    "nesting within Python's limit": written(b'{"a":' * 900 + b"1" + b"}" * 900),
    "not UTF-8": written(b'{"a": "\xff\xfe\x00"}'),
    "a number of a million digits": written(b'{"version": ' + b"9" * 1_000_000 + b"}"),
    "a million names, the last one twice": written(
        b"{" + b"".join(b'"k%d":0,' % n for n in range(1_000_000)) + b'"k999999":1}'
    ),
    "a list": written(b"[[], {}]"),
    "a text": written(b'"text"'),
    "nothing": written(b""),
    "a pipe": pipe,
    "a link to /dev/zero": link_to("/dev/zero"),
}
"""In the place of any JSON file."""

YAML_FILES: dict[str, Plant] = {
    "python/object/apply": written(lambda m: f"run: !!python/object/apply:os.system ['touch {m}']\n".encode()),
    "python/object/new": written(
        lambda m: f"!!python/object/new:subprocess.Popen\nargs: [['touch', '{m}']]\n".encode()
    ),
    "python/name": written(b"run: !!python/name:os.system\n"),
    "billion laughs": written(billion_laughs()),
    "deep flow nesting": written(brackets(100_000)),
    "deep block nesting": written(b"".join(b" " * n + b"a:\n" for n in range(1200))),
    "not UTF-8": written(b"run: \xff\xfe\n"),
    "a number of a million digits": written(b"run: {seed: " + b"9" * 1_000_000 + b"}\n"),
    "a date that is none": written(b"run: 2001-99-99\n"),
    "a broken tag": written(b"run: !!timestamp x\nseed: !!int ''\nb: !!bool x\n"),
    "a pickle": written(plain_pickle),
    "100 MB": written(b"a: b\n" * 20_000_000),
    "a pipe": pipe,
    "a link to /dev/zero": link_to("/dev/zero"),
}
"""In the place of any YAML file."""
