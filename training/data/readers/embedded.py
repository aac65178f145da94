"""The King James Version, which lies beside this code."""

import lzma
from collections.abc import Iterator
from pathlib import Path

from training.data.readers.rows import Row

KJV_FILE = Path(__file__).parents[1] / "corpora" / "kjv.txt.xz"


def kjv_chapters() -> Iterator[Row]:
    """Yield one document per chapter: its verses as lines, without the numbers."""
    chapter, verses = "", []
    for line in lzma.decompress(KJV_FILE.read_bytes()).decode("utf-8").splitlines():
        if line.startswith("  "):
            verses.append(line.lstrip(" 0123456789"))
        elif line:
            if verses:
                yield Row(f"kjv/{chapter}", "\n".join(verses) + "\n")
            chapter, verses = line, []
    yield Row(f"kjv/{chapter}", "\n".join(verses) + "\n")
