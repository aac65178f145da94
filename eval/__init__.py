"""Evaluation between training stages.

Map: `data` what evaluation needs of prepared data · `lm` scores and continues sequences with a live engine, under any
layout · `tasks/` one file per kind of measurement · `metrics` numbers from scores (numpy) · `harness` runs a suite and
makes the report · `evidence` reads it back, item by item · `statistics` how sure a number is · `gates` decides whether
the next training stage may start (both pure).

A partner's model: `endpoint/` behind an HTTP API · `hugging_face_model` in a local directory · `comparison` whether
ours is on par with it (pure).
"""
