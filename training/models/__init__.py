"""Models: one list of layers per model, run plain, under ZeRO, or cut into pipeline stages.

layers      the modules: embedding, attention, feed-forward, block, projection
rope        rotary position tables
decoder     `decoder_layers` is the only place that lists layers; `Decoder` runs the list
recompute   which activations are recomputed in backward
loss        summed cross-entropy and per-sequence scores
sizes       parameters and FLOPs in closed form (no torch)
"""
