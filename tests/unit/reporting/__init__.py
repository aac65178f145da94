"""Tests of training/reporting; `example_run` writes a run directory as training would."""
