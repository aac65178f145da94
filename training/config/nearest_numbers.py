"""Numbers that work, for the remedy of a refusal."""


def divisors(number: int) -> list[int]:
    """Return all divisors, smallest first."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def closest(wanted: int, allowed: list[int]) -> int:
    """Return the allowed number nearest to a wanted one; of two, the larger."""
    return min(allowed, key=lambda n: (abs(n - wanted), -n))


def listed(numbers: list[int]) -> str:
    """Return numbers for people, the first eight of them."""
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, …"
