"""Say in under two seconds whether a run can start, without torch and without changing a file.

    python -m launch.check [group=choice …] [key=value …] [--cfg job]

Exit code 0 with a summary on stdout; 2 with what is wrong, why and what to do on stderr; or 7 if the items of a
benchmark that a suite uses are not prepared. `--cfg job` prints the
resolved config instead of the summary. The groups, keys and their meanings: conf/README.md.
"""

import sys
from collections.abc import Sequence

from training.config.arguments import parse_arguments
from training.config.benchmark_checks import check_prepared
from training.config.load import compose, config_hash, to_yaml
from training.config.schema import RunConfig
from training.errors import AutarkyError, ExitCode
from training.parallel.layout import Layout


def main(argv: Sequence[str]) -> int:
    """Print the summary or the error of a command line; return the exit code."""
    try:
        arguments = parse_arguments(argv)
        if arguments.help:
            print(__doc__)
            return ExitCode.DONE
        config = compose(arguments.positional)
        check_prepared(config)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(to_yaml(config) if arguments.show_config else summary(config))
    return ExitCode.DONE


def summary(config: RunConfig) -> str:
    """Return a few lines: the world, then steps, tokens, batch and layout of every training stage."""
    cluster = config.cluster
    lines = [
        f"{config.run.name}: {cluster.num_nodes} x {cluster.processes_per_node} processes on "
        f"{cluster.accelerator.name}, {config.precision}, config {config_hash(config)}"
    ]
    width = max(map(len, config.stages))
    for name, stage in config.stages.items():
        layout = config.layout_of(name)
        steps, batch = config.num_steps(name), stage.global_batch_sequences
        *ramp, _ = config.batch_sizes(name).lengths(steps)
        ramped = "".join(f"{number:,} steps of {sequences}, then " for number, sequences in ramp)
        described = Layout(
            world_size=config.world_size, num_pipeline_stages=layout.pipeline, zero_stage=layout.zero_stage
        ).describe()
        lines.append(
            f"  {name:{width}}  {steps:,} steps, {config.num_tokens(name):,} tokens; {described}; "
            f"batch {ramped}{batch} = {config.num_replicas(name)} replicas x {config.accumulation_steps(name)} "
            f"accumulated x {stage.micro_batch_sequences} sequences"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
