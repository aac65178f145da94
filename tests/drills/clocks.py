"""Wall clocks that jump, for processes of ours: LD_PRELOAD of shifted_clock.c."""

import shutil
import struct
import subprocess
from pathlib import Path

DAY = 86400.0
CAN_SHIFT = shutil.which("cc") is not None
"""Whether the piece of C can be built."""
_SOURCE = Path(__file__).parent / "shifted_clock.c"
_DOUBLE_BYTES = 8


def build_shim(folder: Path) -> Path:
    """Return the library, built into a folder."""
    library = folder / "shifted_clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


class Clock:
    """The wall clock of the processes that are started with `environment`; with several ranks, one for each."""

    def __init__(self, file: Path, shim: Path, shift_seconds: float = 0.0, *, num_ranks: int = 1) -> None:
        self._file = file
        self._shim = shim
        self._num_ranks = num_ranks
        file.write_bytes(bytes(_DOUBLE_BYTES * num_ranks))
        self.shift(shift_seconds)

    def shift(self, seconds: float, *, rank: int | None = None) -> None:
        """Let the clock be so much ahead, that of all ranks or of one."""
        with self._file.open("r+b", buffering=0) as file:  # in place: the processes have it mapped
            for each in range(self._num_ranks) if rank is None else [rank]:
                file.seek(each * _DOUBLE_BYTES)
                file.write(struct.pack("d", seconds))

    @property
    def environment(self) -> dict[str, str]:
        """What its processes need."""
        return {"LD_PRELOAD": str(self._shim), "CLOCK_SHIFT_FILE": str(self._file)}
