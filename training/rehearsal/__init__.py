"""Every rank's program of a training stage at full size, and the proof that the programs fit together. No torch.

grid          named parallel axes -> ranks, and the process groups along them
parameters    the model's parameters in the order in which engines meet them
operations    what a program is made of: collectives, transfers, computations
buckets       gradients -> the reductions that DeepSpeed starts for them
gathers       layers -> the weight gathers of ZeRO-3, with DeepSpeed's prefetching
engine_program  one chunk of the model in a DeepSpeedEngine: its part of start, backward and update
axis_program  what the planned axes add: all-to-alls of experts and sequence shards, all-reduces of tensor shards
program       config -> the program of every rank, phase by phase
ownership     which rank holds which range of which parameter, padding left out
samples       which sample each replica reads
rehearsal     all of it in one value
execution     runs the programs against each other, as strictly as can be
checks        ownership, samples, checkpoint and memory against what the model, the data order and the plan say
failures      what dies with a node, and what the next start reads
planted       mistakes for the checker to find
report        text and JSON
"""
