"""Evaluation between training stages, and by hand on a checkpoint.

Map: `data` what evaluation needs of prepared data · `lm` scores and continues sequences with a live engine, under any
layout · `tasks/` one file per kind of measurement · `metrics` numbers from scores (numpy) · `harness` runs a suite and
makes the report · `gates` decides from the numbers whether the next training stage may start (pure) · `run` by hand.
"""
