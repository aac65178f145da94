"""Evaluation between training stages.

Map: `data` what evaluation needs of prepared data · `requests` what a model is asked, in tokens · `lm` scores and
continues sequences with a live engine, under any layout · `batching` who does what of it (pure) · `conductor` rank 0
evaluates, all compute · `live_model` the same as an LM of lm_eval · `text_tokenizers` its tokenizer · `tasks/` one file per kind of measurement · `metrics` numbers from scores (numpy) · `harness` runs a suite and
makes the report · `evidence` reads it back, item by item · `statistics` how sure a number is · `gates` decides whether
the next training stage may start (both pure) · `prepare` gets the items of `benchmarks/`, once · `workflows/` tasks of
many steps in simulated systems · `function_calls` calls in a model's answer.
"""
