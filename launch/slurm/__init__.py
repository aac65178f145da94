"""Slurm: a run becomes a batch job that looks after itself, starts again where that helps, and says why where not.

    login node      submission -> script -> sbatch
    batch node      job: allocation -> nodes (preflight) -> step (srun, one task per rank) -> requeue or stop

submission  which jobs a command line becomes: one, a chain of one per training stage, an array for a sweep
script      the batch script: #SBATCH lines and one command, every value checked a second time
job         what runs on the batch node from the first to the last second of an allocation
start       one start of a run inside an allocation, and what follows from its end
allocation  which nodes Slurm gave
nodes       which of them the ranks run on, and at which port they meet
step        the srun command and the environment of the ranks
bad_nodes   nodes that a run leaves out from now on
commands    Slurm's own commands, with time limits
"""
