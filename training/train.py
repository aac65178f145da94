"""One rank of a run: the entry, started once per rank by any launcher.

    deepspeed --module training.train ARGS          torchrun --nproc_per_node N -m training.train ARGS
    accelerate launch -m training.train ARGS        python -m training.train ARGS          (one process)
    srun python -m training.train ARGS              mpirun -x MASTER_ADDR -x MASTER_PORT python -m training.train ARGS

ARGS is a run directory made by `launch.submit` (plus `resume=…` and `resume.allow=[…]` if wanted), or the same
overrides as launch.submit. All spellings of --local_rank are accepted.
"""

import os
import sys
from collections.abc import Sequence

from training.config.arguments import parse_arguments
from training.durable_files import refuse_world_writable
from training.errors import AutarkyError, ExitCode
from training.fault_tolerance.lifeline import tie_to_launcher
from training.fault_tolerance.signals import StopRequest
from training.rank_environment import complete


def main(argv: Sequence[str]) -> ExitCode:
    """Run one rank to its end; returns the exit code of the process."""
    stop_request = StopRequest.listen()  # before any thread, each of which inherits the block
    tie_to_launcher(stop_request)
    refuse_world_writable()
    try:
        os.environ |= complete(os.environ)
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries would tear the console's own
        arguments = parse_arguments(argv)
    except AutarkyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    if arguments.help or not arguments.positional:
        print(__doc__)  # noqa: T201
        return ExitCode.DONE if arguments.help else ExitCode.BAD_CONFIG
    # Imported only now: torch and DeepSpeed take seconds, in which no signal may be lost.
    from training.composition import run_rank

    return run_rank(argv, stop_request)


if __name__ == "__main__":
    # A failing rank must not wait in a destructor for peers that wait for it.
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
