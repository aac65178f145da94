"""Plans of runs: failures, price, energy."""
