"""Which ranks run on which host, in few words."""

from collections.abc import Sequence


def ranks_by_host(hosts: Sequence[str]) -> dict[str, str]:
    """Return host -> its ranks, for example {"node-1": "0-7", "node-2": "8-14,16"}, in the order of first ranks.

    Args:
        hosts: of every rank, by rank.
    """
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    return {host: ",".join(_stretches(mine)) for host, mine in ranks.items()}


def _stretches(ranks: Sequence[int]) -> list[str]:
    found: list[tuple[int, int]] = []
    for rank in ranks:
        if found and found[-1][1] == rank - 1:
            found[-1] = (found[-1][0], rank)
        else:
            found.append((rank, rank))
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]
