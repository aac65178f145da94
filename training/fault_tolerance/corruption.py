"""Cheap checks for memory and processors that change numbers without an error; what they find names rank and host.

copies    before a checkpoint is written: every copy of a weight is what its owner's fp32 weight rounds to
at rest   weights and optimizer state are, when the update needs them, what the update before left
twice     a step computed again gives the same bits (training/engine/repeated_step.py)

Digests are sums over bits (training/checkpoint/digest.py): one changed bit is found for certain. Whether a check sees
a fault is a matter of when it happens: what is changed while nobody compares, and is then used, becomes the truth.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from training.checkpoint.digest import MODULUS
from training.checkpoint.tensor_digest import tensor_digest
from training.config.fault_tolerance_schema import CorruptionConfig
from training.engine.base import Engine, WeightCopies
from training.engine.process_group import ProcessGroup
from training.errors import SilentCorruption
from training.process_identity import host_name

_REMEDY = "\n  -> nothing of this step is saved; take that node out and test it, then resume=auto"


class CorruptionChecks:
    """The checks that a run has asked for; every rank has one and calls it alike."""

    def __init__(self, config: CorruptionConfig, processes: ProcessGroup) -> None:
        self._config = config
        self._processes = processes
        self._at_rest: dict[str, int] = {}
        """Digests after an update, until the next one has compared them."""

    def is_computed_twice(self, step: int) -> bool:
        """Return whether a step of the run (from 1) is to be computed twice."""
        return _is_time(self._config.rerun_every_steps, step)

    @property
    def watches_rest(self) -> bool:
        """Whether `before_update` has something to compare; alike on every rank."""
        return bool(self._at_rest)

    def after_update(self, engine: Engine, step: int) -> None:
        """Remember the state after a step, if it is time."""
        self._at_rest = _state_digests(engine) if _is_time(self._config.at_rest_every_steps, step) else {}

    def before_update(self, engine: Engine) -> None:
        """Compare the state with what `after_update` remembered; collective if there is something.

        Raises:
            SilentCorruption: on every rank, naming those whose memory changed.
        """
        if not self._at_rest:
            return
        now = _state_digests(engine)
        changed = [name for name, digest in self._at_rest.items() if now[name] != digest]
        self._at_rest = {}
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        told = self._tell(f"{', '.join(changed[:3])}{more}" if changed else "")
        if found := {rank: words for rank, (_, words) in enumerate(told) if words}:
            raise _error("memory changed between two updates", found, told)

    def before_save(self, engine: Engine) -> None:
        """Compare all copies of the weights with the fp32 weights that they are copies of, if asked for; collective.

        Raises:
            SilentCorruption: on every rank, naming the odd ones.
        """
        if not self._config.check_replicas:
            return
        layout = engine.layout
        dense = [layout.shard_group(pipeline_stage) for pipeline_stage in range(layout.num_pipeline_stages)]
        for copies, groups in zip(engine.weight_copies(), (dense, layout.expert_shard_groups()), strict=False):
            differing = _differing_owners(copies, self._processes)
            told = self._tell(",".join(map(str, sorted(differing))))
            if not told:
                continue
            by_rank = [{int(owner) for owner in words.split(",") if words} for _, words in told]
            found = {
                rank: what
                for ranks in groups
                for rank, what in blamed_of_group(by_rank, ranks, zero_stage=layout.zero_stage).items()
            }
            raise _error("weights that must be equal are not", found, told)

    def _tell(self, words: str) -> list[tuple[str, str]]:
        """Return (host, words) of every rank, or [] on all if none has words."""
        if self._processes.agree(not words):
            return []
        texts = self._processes.gather_text(json.dumps([host_name(), words]))
        return [(host, text) for host, text in map(json.loads, texts)]


def _error(what: str, found: Mapping[int, str], told: Sequence[tuple[str, str]]) -> SilentCorruption:
    """Return the error about ranks at fault: rank -> what is wrong with it, and (host, …) of every rank."""
    hosts = {rank: told[rank][0] for rank in found}
    named = "; ".join(f"rank {rank} on {hosts[rank]}: {words}" for rank, words in found.items())
    return SilentCorruption(f"{what}: {named}{_REMEDY}", blamed=hosts)


def blamed_of_group(differing: Sequence[Collection[int]], ranks: Sequence[int], *, zero_stage: int) -> dict[int, str]:
    """Return rank -> what is wrong with it, of ranks that share the same weights.

    An owner has two witnesses of its own, the fp32 weights and the copy it runs with: if no copy anywhere agrees with
    the fp32 weights, these have changed. So the odd rank is known even of two. Without ZeRO there are only copies:
    the odd one of three or more is known, of two it is one or the other.

    Args:
        differing: of every rank of the job: the places in its group of those whose weights it holds copies of that
            differ from theirs.
        ranks: one group: what ZeRO shards weights over.
        zero_stage: of the layout.
    """
    found: dict[int, str] = {}
    for owner in sorted({owner for rank in ranks for owner in differing[rank]}):
        holders = ranks if zero_stage in (1, 2) else [ranks[owner]] if zero_stage == 3 else ranks[1:]
        wrong = [rank for rank in ranks if owner in differing[rank]]
        if len(wrong) < len(holders):
            found |= {rank: f"its copy of the weights of rank {ranks[owner]} differs" for rank in wrong}
        elif zero_stage == 3:
            found[ranks[owner]] = "its fp32 weights and the copy that it runs with differ"
        elif zero_stage > 0 or len(holders) > 1:
            found[ranks[owner]] = "its own weights differ from the copies that all replicas run with"
        else:
            what = "its state and the other replica's differ; without ZeRO there is no telling which is right"
            found |= dict.fromkeys(ranks, what)
    return found


def _differing_owners(copies: WeightCopies, processes: ProcessGroup) -> set[int]:
    """Return the places, among this rank's group, of those whose fp32 weights are not what it holds copies of."""
    rank, ranks = processes.rank, copies.ranks
    me = ranks.index(rank)
    # One number of every owner, all in one sum: this is the only traffic of the check.
    truths = [0] * processes.world_size
    if me in copies.by_owner:
        pairs = zip(copies.kept, copies.by_owner[me], strict=True)
        truths[rank] = _sum(tensor_digest(kept.detach().to(copy.dtype)) for kept, copy in pairs)
    truths = processes.sum_integers(truths)
    return {
        owner
        for owner, parts in copies.by_owner.items()
        if _sum(tensor_digest(part) for part in parts) != truths[ranks[owner]]
    }


def _state_digests(engine: Engine) -> dict[str, int]:
    """Return digests of everything an update reads or leaves on this rank, by names for people."""
    found = {
        f"{piece.tensor} from element {piece.start}": tensor_digest(piece.live) for piece in engine.snapshot.pieces
    }
    for copies in engine.weight_copies():
        for owner, parts in copies.by_owner.items():
            name = f"the copy of rank {copies.ranks[owner]}'s weights"
            found[name] = _sum([found.get(name, 0), *map(tensor_digest, parts)])
    return found


def _sum(digests: Iterable[int]) -> int:
    """Return a digest of digests in order; a changed one changes it."""
    return sum(digest * (2 * number + 1) for number, digest in enumerate(digests)) % MODULUS


def _is_time(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def compute_reproducibly(config: CorruptionConfig, device: torch.device) -> None:
    """Switch PyTorch's deterministic kernels on if steps are computed twice on a device that is no CPU.

    cuBLAS also wants CUBLAS_WORKSPACE_CONFIG before its first product; PyTorch says so if it is missing.
    """
    if config.rerun_every_steps is not None and device.type != "cpu":
        torch.use_deterministic_algorithms(True)
