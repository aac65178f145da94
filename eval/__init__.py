"""Evaluation between training stages.

Map: `harness` runs a suite and makes the report · `tasks/` what is measured on held-out documents · `benchmarks/` and
`benchmark_runs` what lm_eval asks and scores · `workflows/` tasks of many steps in simulated systems · `prepare` gets
the items of benchmarks, once · `function_calls` calls in a model's answer.

The model: `requests` what it is asked, in tokens · `lm` a live engine scores and continues, under any layout ·
`batching` who does what of it (pure) · `conductor` rank 0 evaluates, all compute · `live_model` the same as an LM of
lm_eval · `text_tokenizers` its tokenizer · `data` what is needed of prepared data · `throughput` what it took.

What follows: `metrics` numbers from scores · `evidence` reads a report back, item by item · `statistics` how sure a
number is · `gates` decides whether the next training stage may start (both pure) · `contamination` what of the items
stands in the training data.

By hand: `run` measures a model, `measured_models` what its command line names, `text_model` a model that is asked in
text, `compare` two reports · a partner's model: `endpoint/` behind an HTTP API, `hugging_face_model` in a local
directory, `comparison` whether ours is on par with it (pure) · `sandbox/` runs programs that a model wrote ·
`reliability` pass^k (pure).
"""
