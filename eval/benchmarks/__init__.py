"""Benchmarks: where their items come from, and the lm_eval tasks (`*.yaml`) that measure them.

Map: `registry` source and licence of each · `evals_data`, `bfcl_data`, `human_eval_data`, `needle_data`,
`bits_per_byte_data` read or make items, for `eval.prepare` · `local_text` documents that training keeps out · `bfcl`,
`exact_answer`, `human_eval`, `needle` prompts and scores that YAML files name · `call_match` whether a call is one that
was asked for.
"""
