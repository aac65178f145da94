"""Models: one list of layers per model, run plain, under ZeRO, or cut into pipeline stages.

layers      the modules: embedding, attention, feed-forward, block, projection
rope        rotary position tables
decoder     `decoder_layers` is the only place that lists layers; `Decoder` runs the list
recompute   which activations are recomputed in backward
dropout     masks that follow from each sample's identity, not from the layout
shapes      names and shapes of all parameters, without values
inference   key/value cache; logits of wanted positions only
loss        summed cross-entropy

Without torch:
hugging_face            config.json of Hugging Face <-> ModelConfig, and which family a model is exported as
hugging_face_families   families as tables: names of fields and weights
hugging_face_rope       their rotary settings

In closed form, without torch:
sizes               parameters and FLOPs
cut                 layers -> chunks of a pipeline, by modelled cost
memory              what a rank holds, and when a pipeline gathers its weights
zero_memory         DeepSpeed's share of it
activation_memory   autograd's share of it
"""
