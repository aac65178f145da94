"""Workflows: conversations of many steps in which a model calls functions of simulated systems that keep a state.

Map: `tasks` reads prepared tasks · `chat` what a model has to be able to do, and lm_eval's models doing it · `calls`
which of a model's calls may be run · `simulator` runs them in a process of its own (`simulator_process`) ·
`conversation` one try at one task · `run` many tries in step, so that the model sees them as batches · `reliability`
pass^k. Training data from the same tasks: `gold` the right way through one · `wrong_answers` and `preference_pairs` ·
`trajectories` writes the files.
"""
