"""The ways in which a committed checkpoint can come to harm. Each returns the files of which a message may speak."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

SEAL = ',\n "sha256": "'

Damage = Callable[[Path, Path, random.Random], set[Path]]
"""(checkpoint, an older one, draw) -> the damaged files, of which the message has to name one."""


def flipped_bit(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = _any_file(checkpoint, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return {path}


def truncated(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = _any_file(checkpoint, draw)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    return {path}


def lengthened(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = _any_file(checkpoint, draw)
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 64)))
    return {path}


def missing(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = _any_file(checkpoint, draw)
    path.unlink()
    return {path}


def zero_length(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = _any_file(checkpoint, draw)
    path.write_bytes(b"")
    return {path}


def zeroed_block(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    """What some file systems leave of a page that was not flushed: the size is right, the bytes are zeros."""
    path = _any_file(checkpoint, draw)
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.randint(1, 4096))
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    return {path}


def swapped_files(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    """Two ranks' files under each other's names."""
    one, other = draw.sample(_rank_files(checkpoint), 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return {one, other}


def stale_shard(checkpoint: Path, older: Path, draw: random.Random) -> set[Path]:
    """The same rank's file of an older step."""
    path = draw.choice([path for path in _rank_files(checkpoint) if (older / path.name).is_file()])
    shutil.copyfile(older / path.name, path)
    return {path}


def torn_manifest(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    path = checkpoint / "manifest.json"
    text = path.read_text()
    path.write_text(text[: draw.randrange(len(text))])
    return {path}


def manifest_of_another_step(checkpoint: Path, older: Path, _draw: random.Random) -> set[Path]:
    shutil.copyfile(older / "manifest.json", checkpoint / "manifest.json")
    return {checkpoint / "manifest.json"}


def exchanged_row(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    """One column exchanged between two slice rows, and the manifest's own hash made to fit again."""

    def exchange(rows: list[list[object]]) -> None:
        one, other = draw.sample(range(len(rows)), 2)
        column = draw.randrange(5)
        rows[one][column], rows[other][column] = rows[other][column], rows[one][column]

    return _resealed(checkpoint, exchange)


def changed_digest(checkpoint: Path, _older: Path, draw: random.Random) -> set[Path]:
    """A slice's digest changed, and the manifest's own hash made to fit again."""

    def change(rows: list[list[object]]) -> None:
        rows[draw.randrange(len(rows))][4] = f"{draw.getrandbits(64):016x}"

    return _resealed(checkpoint, change)


DAMAGES: tuple[Damage, ...] = (
    flipped_bit,
    truncated,
    lengthened,
    missing,
    zero_length,
    zeroed_block,
    swapped_files,
    stale_shard,
    torn_manifest,
    manifest_of_another_step,
    exchanged_row,
    changed_digest,
)


def fingerprint(checkpoint: Path) -> dict[str, bytes]:
    """Return what must differ for a damage to be one."""
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def reseal(text: str) -> str:
    """Return a manifest's text with the hash at its end made to fit what stands above it."""
    body = text.rpartition(SEAL)[0]
    return f'{body}{SEAL}{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def _resealed(checkpoint: Path, change: Callable[[list[list[object]]], None]) -> set[Path]:
    path = checkpoint / "manifest.json"
    text = path.read_text()
    rows = json.loads(text)["slices"]
    change(rows)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.write_text(
        reseal(f'{text.rpartition(chr(10) + " " + chr(34) + "slices")[0]}\n "slices": [\n{lines}\n ]{SEAL}')
    )
    return {path, *_rank_files(checkpoint)}


def _any_file(checkpoint: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(checkpoint.iterdir()))


def _rank_files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("rank-*.safetensors"))
