"""Engines over DeepSpeed: one protocol, several ways to spread a model over ranks.

base               the Engine protocol and its results
build              layout -> engine
zero               ZeRO 0-3 over DeepSpeedEngine
pipeline           DeepSpeed's PipelineEngine with ZeRO-1
optimizer          AdamW with parameter groups
process_group      start and agreement of the job's processes
deepspeed_private  every use of a private part of DeepSpeed, with its source location
"""
