"""Whether the settings of checkpoints fit each other and the run."""

from pathlib import Path

from training.config.nearest_numbers import closest
from training.config.schema import RunConfig
from training.errors import ConfigError


def check_checkpoints(config: RunConfig) -> None:
    """Check that permanent checkpoints are among those that are saved, and fast ones lie apart from the runs.

    Raises:
        ConfigError: they are not.
    """
    _check_permanent(config)
    fast_root, root = config.checkpoint.fast_root, Path(config.run.root)
    if fast_root is not None and root in (Path(fast_root), *Path(fast_root).parents):
        raise ConfigError(
            "checkpoint.fast_root",
            fast_root,
            f"lies in run.root={root}, where every folder is a run directory",
            "give a folder outside run.root, or checkpoint.fast_root=null, which saves into the run directory",
        )


def _check_permanent(config: RunConfig) -> None:
    permanent, every = config.checkpoint.permanent_every_steps, config.checkpoint.every_steps
    if permanent is None or permanent % every == 0:
        return
    below = permanent // every * every
    works = closest(permanent, [steps for steps in (below, below + every) if steps])
    raise ConfigError(
        "checkpoint.permanent_every_steps",
        permanent,
        f"is no multiple of checkpoint.every_steps={every}: most of these steps are never saved",
        f"checkpoint.permanent_every_steps={works} works",
    )
