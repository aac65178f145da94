"""Engines over DeepSpeed: one protocol, several ways to spread a model over ranks.

base               the Engine protocol and its results
build              layout -> engine
routing            what a step's routers did, over all ranks; biases that balance experts
groups             process groups of the sequence and expert axes
inference          scores and next tokens, under any layout
zero               ZeRO 0-3 over DeepSpeedEngine
pipeline           DeepSpeed's PipelineEngine with ZeRO-1
pipeline_module    ... its module, cut where we say
pipeline_zero      pipeline over ZeRO-1 to 3: one DeepSpeedEngine per model chunk
chunk              ... one of them
pipeline_step      ... a rank's forwards, backwards and transfers of one step
learning_pass      what a micro-batch's forward learns from
links              ... its transfers
global_gradient    ... tied weights, norm, clipping over all pipeline stages
layer_norms        how each layer learned in a step
non_finite         where a NaN came from
optimizer          AdamW with parameter groups
process_group      start and agreement of the job's processes
deepspeed_private  every use of a private part of DeepSpeed, with its source location
"""
