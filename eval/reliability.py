"""pass^k: how sure it is that a task is solved every time. Pure."""

from collections.abc import Collection
from math import comb


def pass_hat(solved: Collection[int], num_tries: int, k: int) -> float:
    """Return the share of tasks that are solved in all of k tries, drawn from those that were made.

    The mean over tasks of C(c, k) / C(n, k), for c of n tries solved: an unbiased estimate, and for k = n simply the
    share of tasks that were solved every time. Source: tau-bench, arXiv:2406.12045, section 3. pass^1 is pass@1.

    Args:
        solved: number of tries that solved it, for each task.
        num_tries: tries that were made of each task.
        k: between 1 and num_tries.
    """
    return sum(comb(count, k) for count in solved) / comb(num_tries, k) / len(solved)


def scores_of_tries(solved: int, num_tries: int) -> dict[str, float]:
    """Return one task's pass_at_1, the share of tries that solved it, and pass_hat_<k> for each k up to all of them."""
    return {"pass_at_1": solved / num_tries} | {
        f"pass_hat_{k}": pass_hat([solved], num_tries, k) for k in range(2, num_tries + 1)
    }
