"""Where the loss of a training stage is expected, and whether it has left that band. Pure; numpy alone.

The law is L(t) = a + b·t^-c of the training stage's tokens t, with b at least 0 (arXiv:2001.08361; with a floor a as in
arXiv:2203.15556). For each c of a grid, a and b follow from weighted least squares; weights of Tukey's bisquare leave
outliers out. All c that fit almost as well as the best one stay, so a band widens where the data does not say how the
curve bends, most of all far ahead.

It can fall or be flat, but not rise. A loss that falls faster than the law, as it does where a learning rate decays, is
below the band, which is never an alarm. Where loss may well rise or jump the law starts anew: it sees no warm-up
(steps before the highest learning rate), and nothing from before a change of the mixture.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.reporting.records import StepRecord

WINDOW_STEPS = 10_000
"""Steps that a fit looks back: what came before says little about the next ones, and a restart reads these again."""
_MOST_POINTS = 256
"""Medians of equally many steps each, from which the law is fitted."""
_EXPONENTS = np.geomspace(0.03, 2.0, 48)
_ROUNDS = 4
"""Of fitting and reweighting."""
_BISQUARE = 4.685
"""Deviations at which a point's weight is 0 (Holland and Welsch 1977)."""
_SIGMAS_PER_DEVIATION = 1.4826
"""Of a normal distribution: standard deviation over median absolute deviation."""
_SMALLEST_SIGMA = 1e-3
"""Share of the loss: rounding, and a law that is not quite right, are no divergence."""
_SIGMA_STEPS = 1_000
"""The latest ones, whose distance from the law is the noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """A loss that is expected at one number of tokens."""

    loss: float
    low: float
    high: float
    """Ends of the band: the laws that fit almost as well as the best one, and `sigmas` deviations of one step."""


class LossLaw:
    """The power laws that fit a stretch of steps.

    Args:
        tokens: of the training stage, after each step; above 0 and growing.
        losses: finite.
        sigmas: half width of the band, in standard deviations of a step's loss around the law.
    """

    def __init__(self, tokens: Sequence[float], losses: Sequence[float], *, sigmas: float) -> None:
        t, y = np.asarray(tokens, float), np.asarray(losses, float)
        self._last = float(t[-1])
        points_t, points_y = _medians(t / self._last), _medians(y)
        basis = points_t ** -_EXPONENTS[:, None]
        self._a, self._b, squares, weights = _fit(basis, points_y)
        best = int(squares.argmin())
        degrees = max(1, len(points_y) - 3)
        # The ratio test of an F distribution with 1 and n - 3 degrees of freedom, at `sigmas` of a normal one.
        self._plausible = squares <= squares[best] * (1 + sigmas**2 / degrees)
        self._best = best
        # Standard error of a and b together, at any number of tokens: that of a least-squares line.
        self._weight = float(weights.sum())
        self._mean = (basis @ weights) / self._weight
        self._spread = np.maximum(((basis - self._mean[:, None]) ** 2) @ weights, np.finfo(float).tiny)
        self._variance = squares / degrees
        self._sigmas = sigmas
        recent = slice(-_SIGMA_STEPS, None)
        deviations = np.abs(y[recent] - self._a[best] - self._b[best] * (t[recent] / self._last) ** -_EXPONENTS[best])
        self.sigma = max(_SIGMAS_PER_DEVIATION * float(np.median(deviations)), _SMALLEST_SIGMA * abs(float(y[-1])))
        """Standard deviation of one step's loss around the law."""
        self._half_width = sigmas * self.sigma

    def at(self, tokens: float) -> Expectation:
        """Return what is expected after so many tokens of the training stage."""
        basis = (tokens / self._last) ** -_EXPONENTS
        laws = self._a + self._b * basis
        errors = np.sqrt(self._variance * (1 / self._weight + (basis - self._mean) ** 2 / self._spread))
        unsure = self._sigmas * errors[self._plausible]
        return Expectation(
            loss=float(laws[self._best]),
            low=float((laws[self._plausible] - unsure).min()) - self._half_width,
            high=float((laws[self._plausible] + unsure).max()) + self._half_width,
        )


class LossWatch:
    """Follows a training stage's loss step by step and says when it has left the band.

    Args:
        every_steps: between fits.
        min_steps: of the training stage after its warm-up, before the first fit.
        sigmas: half width of the band.
        patience_steps: in a row above the band before that is told.
        new_data_steps: numbers of the run's steps at which the data changes.
    """

    def __init__(
        self,
        *,
        every_steps: int,
        min_steps: int,
        sigmas: float,
        patience_steps: int,
        new_data_steps: Sequence[int] = (),
    ) -> None:
        self._every_steps = every_steps
        self._min_steps = min_steps
        self._sigmas = sigmas
        self._patience_steps = patience_steps
        self._new_data_steps = frozenset(new_data_steps)
        self._highest_lr = 0.0
        self._tokens: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._since_fit = 0
        self._law: LossLaw | None = None
        self._above: list[float] = []
        """Losses of the latest steps, all above the band."""
        self._num_inside = 0
        """Steps in a row since then that were not."""
        self._is_told = False

    def observe(self, step: int, *, tokens: float, loss: float, lr: float) -> str | None:
        """Take a step; return a sentence if it is the one with which the loss counts as off the forecast.

        That is told once, and again only after as many steps in a row were in the band as had to be above it.

        Args:
            step: of the run.
            tokens: of the training stage, this step's too.
            loss: of the step; one that is not finite tells nothing here.
            lr: its learning rate.
        """
        if lr > self._highest_lr or step in self._new_data_steps:
            self._highest_lr = max(lr, self._highest_lr)
            self._begin_anew()
        if not math.isfinite(loss):
            return None
        expected = None if self._law is None else self._law.at(tokens)
        if expected is not None and loss > expected.high:
            return self._count_above(step, loss, expected)
        self._above.clear()
        self._num_inside += 1
        if self._num_inside >= self._patience_steps:
            self._is_told = False
        # What is above the band must not teach the law that it belongs there.
        self._tokens.append(tokens)
        self._losses.append(loss)
        self._since_fit += 1
        if len(self._tokens) >= self._min_steps and self._since_fit >= self._every_steps:
            self._law = LossLaw(self._tokens, self._losses, sigmas=self._sigmas)
            self._since_fit = 0
        return None

    def _count_above(self, step: int, loss: float, expected: Expectation) -> str | None:
        self._num_inside = 0
        self._above.append(loss)
        if len(self._above) < self._patience_steps or self._is_told:
            del self._above[: -self._patience_steps]
            return None
        self._is_told = True
        mean = sum(self._above) / len(self._above)
        return (
            f"the loss of the last {len(self._above)} steps, {mean:.4g} in the mean, is above what its curve so far "
            f"lets expect: {expected.loss:.4g} at step {step}, at most {expected.high:.4g}"
        )

    def _begin_anew(self) -> None:
        self._tokens.clear()
        self._losses.clear()
        self._above.clear()
        self._since_fit, self._num_inside, self._is_told, self._law = 0, 0, False, None


def forecast(
    steps: Sequence[StepRecord], *, at_tokens: float, tokens_before: float, sigmas: float, min_steps: int = 50
) -> Expectation | None:
    """Return the loss that is expected of a training stage after so many tokens, by its steps so far.

    A decaying learning rate usually ends below it: the law knows of the curve alone.

    Args:
        steps: of one training stage, each step once, in order (`metrics.latest_steps`).
        at_tokens: tokens of the run at the step that is asked for, for example the training stage's last.
        tokens_before: tokens of the run at which the training stage began.
        sigmas: half width of the band.
        min_steps: with fewer steps since the highest learning rate there is no forecast: None.
    """
    if not steps:
        return None
    highest = max(step.lr for step in steps)
    first = next(place for place, step in enumerate(steps) if step.lr == highest)
    used = [step for step in steps[first:] if math.isfinite(step.loss)]
    if len(used) < max(min_steps, 4):
        return None
    tokens = [step.tokens - tokens_before for step in used]
    return LossLaw(tokens, [step.loss for step in used], sigmas=sigmas).at(at_tokens - tokens_before)


def _medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most _MOST_POINTS medians of neighbours; the newest values are in the last one, the oldest may go."""
    each = math.ceil(len(values) / _MOST_POINTS)
    kept = values[len(values) % each :]
    return np.median(kept.reshape(-1, each), axis=1)


def _fit(
    basis: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a, b and the weighted sum of squares of each row's law y ≈ a + b·basis, b at least 0; and the weights."""
    weights = np.ones_like(y)
    a = b = squares = np.zeros(len(basis))
    used = weights
    for _ in range(_ROUNDS):
        used = weights
        total = weights.sum()
        mean_x, mean_y = (basis @ weights) / total, float(y @ weights) / total
        x = basis - mean_x[:, None]
        spread = (x**2) @ weights
        b = np.maximum(0.0, (x * (y - mean_y)) @ weights / np.maximum(spread, np.finfo(float).tiny))
        a = mean_y - b * mean_x
        residuals = y - a[:, None] - b[:, None] * basis
        squares = (residuals**2) @ weights
        best = np.abs(residuals[squares.argmin()])
        scale = _SIGMAS_PER_DEVIATION * float(np.median(best)) * _BISQUARE
        if scale == 0:
            break
        weights = np.maximum(0.0, 1 - (best / scale) ** 2) ** 2
    return a, b, squares, used
