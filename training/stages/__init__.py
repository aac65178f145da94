"""The chain of training stages: what is planned, what is done, and what happens next.

Map: `curriculum` learning rate, from the config alone (pure) · `ledger` what is done, committed to
stages.json at every arrow · `transitions` the arrows (pure) · `runner` the state machine that walks them ·
`training_loop` the steps of one training stage · `statistics` what is measured beside them, at intervals ·
`forecasting` whether the loss is where its curve lets expect it · `profiling` torch's profiler around chosen steps ·
`gatekeeper` asks gates, on rank 0 for all · `evaluating` when it is measured ·
`interruption` where it looks whether it was told to stop.
"""
