"""Slurm: a run becomes a batch job that looks after itself, starts again where that helps, and says why where not.

    login node      submission -> script -> sbatch
    batch node      job: allocation -> node_check on every node -> step (srun, one task per rank) -> requeue or stop

submission  which jobs a command line becomes: one, a chain of one per training stage, an array for a sweep
script      the batch script: #SBATCH lines and one command, every value checked a second time
job         what runs on the batch node from the first to the last second of an allocation
allocation  which nodes Slurm gave, at which address and port the ranks meet
node_check  what every node shows before ranks start on it
step        the srun command and the environment of the ranks
bad_nodes   nodes that a run leaves out from now on
commands    Slurm's own commands, with time limits
"""
