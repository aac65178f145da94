"""Benchmarks: where their items come from, and the lm_eval tasks (`*.yaml`) that measure them.

Map: `human_eval_data` reads the items of HumanEval, for `eval.prepare` · `human_eval` judges its answers · `tries`
scores of an item that was tried several times.
"""
