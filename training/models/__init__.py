"""Models: one list of layers per model, run plain, under ZeRO, or cut into pipeline stages.

layers        what a pipeline cuts between: embedding, block, projection
attention     grouped-query and latent attention
attend        ... by torch's kernels, and the choice of one
documents     which tokens of packed sequences belong together
document_attention     attention within them on accelerators
feed_forward  the dense feed-forward layer; `norm` the norms
experts       feed-forward layers of routed experts, on one rank or spread over several
router        which experts a token passes, and the losses that balance them
routing_log   what routers did in a step, noted beside the forward
axes          ranks that share a sequence or a block's experts, and their exchanges
rope          rotary position tables
decoder       `decoder_layers` is the only place that lists layers; `Decoder` runs the list
recompute     which activations are recomputed in backward
dropout       masks that follow from each sample's identity, not from the layout
shapes        names and shapes of all parameters, without values
inference     key/value cache; logits of wanted positions only
prediction    blocks of multi-token prediction
loss          summed cross-entropy
learning      what a training forward learns from, given beside it; the loss within the output projection
linear_cross_entropy   the loss straight from hidden states, chunk by chunk

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
