"""Every rank's program of a training stage at full size, and the proof that the programs fit together. No torch.

grid              named parallel axes -> ranks, and the process groups along them
parameters        the model's parameters in the order in which engines meet them
operations        what a program is made of: collectives, transfers, computations
buckets           gradients -> the reductions that DeepSpeed starts for them
gathers           layers -> the weight gathers of ZeRO-3 without a pipeline, with DeepSpeed's prefetching
axis_program      what a layer's forward exchanges among sequence, tensor and expert ranks, and where it uses parameters
engine_program    one DeepSpeedEngine's part of a program
chunk_program     the engines of one chunk of the model together
plan              a training stage as the rehearsal sees it
zero_program      what ranks run without a pipeline
pipeline_program  what ranks run whose model is in chunks: a pipeline, or experts over ranks
program           all ranks' programs, phase by phase
ownership         which rank holds which range of which parameter
samples           which samples each rank reads
findings          what a check has found
actors            ranks -> classes that always stand at the same place
execution         runs the programs against each other, as strictly as can be
standstill        what keeps them from their end
planned_memory    the memory that is planned for ranks
checks            state, samples, checkpoint and memory against the model, the order of samples and the plan
rehearsal         all of it in one value, and its check
failures          what dies with a node, and what the next start reads
mistake           a rehearsal with one mistake
planted_programs  mistakes in what ranks run
planted_state     mistakes in what ranks hold, read and write
planted           all kinds of mistakes, and whether they are named
report            text and JSON
"""
