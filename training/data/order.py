"""The order of samples: global sample index -> (source, unit), a pure function with a seek of constant cost.

Two layers. `Mixture` says which source a sample comes from and which draw of that source it is; `UnitOrder` says which
unit (window or pack) of a source its n-th draw is. Both can be asked the other way round. All keys are blake2b hashes
of (seed, what is ordered), so nothing depends on the layout, on a process or on what was drawn before.
"""

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from training.errors import ConfigError

BLOCK_SAMPLES = 1000
"""Samples over which the shares of a mixture are made exact."""

_NUM_ROUNDS = 6
"""Rounds of the Feistel network; four already give a pseudo-random permutation (Luby and Rackoff, 1988)."""


class Permutation:
    """A keyed bijection of 0 … size-1, computed per element without a table.

    A Feistel network permutes the next power of four; values outside go round again until they are inside
    (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3).
    """

    def __init__(self, size: int, *key: int | str) -> None:
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._half_mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        digest = blake2b(json.dumps(key).encode(), digest_size=8 * _NUM_ROUNDS).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the images of positions in 0 … size-1, as int64."""
        return self._walk(positions, self._network)

    def inverse(self, images: np.ndarray) -> np.ndarray:
        """Return the positions whose images are given, as int64."""
        return self._walk(images, self._network_backwards)

    def _walk(self, positions: np.ndarray, network: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        values = network(positions.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._half_mask
        for round_key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & self._half_mask)
        return (left << self._half_bits) | right

    def _network_backwards(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._half_mask
        for round_key in self._round_keys[::-1]:
            left, right = right ^ (_mix(left ^ round_key) & self._half_mask), left
        return (left << self._half_bits) | right


class Mixture:
    """Which source each sample comes from, in blocks of 1000 samples.

    Over any number of whole blocks the share of every source is off by less than one sample; within a block the
    sources are shuffled.

    Args:
        weights: source name -> weight; the order of the names does not matter.
        config_key: dotted path of the weights, for messages.
        seed: the run's seed.
        first_sample: global index of the sample that has index 0 here.

    Raises:
        ConfigError: no weight is positive, or a source's share is too small for a block.
    """

    def __init__(self, weights: Mapping[str, float], *, config_key: str, seed: int, first_sample: int) -> None:
        self.sources = sorted(weights)
        total = sum(Fraction(weight) for weight in weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError(
                config_key, dict(weights), "no share follows from it", "give each source a weight above 0"
            )
        self._shares = [Fraction(weights[source]) / total for source in self.sources]
        for source, share in zip(self.sources, self._shares, strict=True):
            if 0 < share < Fraction(1, BLOCK_SAMPLES):
                raise ConfigError(
                    f"{config_key}.{source}",
                    weights[source],
                    f"its share of {float(share):.2g} is less than one sample in {BLOCK_SAMPLES}",
                    f"a weight of {float(total / BLOCK_SAMPLES):.3g} or more, or leave the source out",
                )
        self._key = (seed, "mixture", first_sample)
        self._block = lru_cache(maxsize=8)(self._compute_block)

    def draws(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for sample indices, the place of their source in `sources` and which draw of that source they are."""
        source_indices, draw_indices = np.empty_like(samples), np.empty_like(samples)
        blocks = samples // BLOCK_SAMPLES
        for block in np.unique(blocks):
            here = blocks == block
            block_sources, block_draws = self._block(int(block))
            source_indices[here] = block_sources[samples[here] % BLOCK_SAMPLES]
            draw_indices[here] = block_draws[samples[here] % BLOCK_SAMPLES]
        return source_indices, draw_indices

    def counts(self, num_samples: int) -> dict[str, int]:
        """Return how many of the first `num_samples` samples come from each source."""
        block, rest = divmod(num_samples, BLOCK_SAMPLES)
        in_block = np.bincount(self._block(block)[0][:rest], minlength=len(self.sources))
        before = self._quotas(block)
        return {s: before[i] + int(in_block[i]) for i, s in enumerate(self.sources)}

    def sample_of(self, source: str, draw: int) -> int:
        """Return the index of the sample that is a draw of a source whose share is above 0."""
        place = self.sources.index(source)
        share = self._shares[place]
        block = int(draw / share) // BLOCK_SAMPLES  # quotas are off by less than one sample: at most one block away
        while self._quotas(block)[place] > draw:
            block -= 1
        while self._quotas(block + 1)[place] <= draw:
            block += 1
        sources, draws = self._block(block)
        return block * BLOCK_SAMPLES + int(np.flatnonzero((sources == place) & (draws == draw))[0])

    def _quotas(self, num_blocks: int) -> list[int]:
        """Return each source's samples in the first blocks: shares rounded to integers by largest remainder."""
        exact = [share * num_blocks * BLOCK_SAMPLES for share in self._shares]
        quotas = [int(value) for value in exact]
        missing = num_blocks * BLOCK_SAMPLES - sum(quotas)
        by_remainder = sorted(range(len(exact)), key=lambda i: (quotas[i] - exact[i], i))
        for i in by_remainder[:missing]:
            quotas[i] += 1
        return quotas

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return source and draw index of each of a block's samples."""
        before, after = self._quotas(block), self._quotas(block + 1)
        in_order = np.repeat(np.arange(len(before)), np.subtract(after, before))
        sources = in_order[Permutation(BLOCK_SAMPLES, *self._key, block)(np.arange(BLOCK_SAMPLES))]
        draws = np.empty(BLOCK_SAMPLES, dtype=np.int64)
        for i, first_draw in enumerate(before):
            here = sources == i
            draws[here] = first_draw + np.arange(np.count_nonzero(here))
        return sources, draws


class UnitOrder:
    """Which unit of a source each draw is: every unit once per epoch, each epoch in another order."""

    def __init__(self, num_units: int, *key: int | str) -> None:
        self.num_units = num_units
        self._permutation = lru_cache(maxsize=64)(lambda epoch: Permutation(num_units, *key, epoch))

    def units(self, draws: np.ndarray) -> np.ndarray:
        """Return the units of draw indices."""
        units = np.empty_like(draws)
        epochs = draws // self.num_units
        for epoch in np.unique(epochs):
            here = epochs == epoch
            units[here] = self._permutation(int(epoch))(draws[here] % self.num_units)
        return units

    def draws_of(self, unit: int, num_draws: int) -> list[int]:
        """Return which of the first `num_draws` draws are a unit."""
        epochs = range(-(-num_draws // self.num_units))
        draws = (e * self.num_units + int(self._permutation(e).inverse(np.array([unit]))[0]) for e in epochs)
        return [draw for draw in draws if draw < num_draws]


def _mix(values: np.ndarray) -> np.ndarray:
    """Return 64-bit values whose every bit depends on every input bit (splitmix64's finaliser, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
