"""Tests of `training.stages`: curriculum and ledger."""
