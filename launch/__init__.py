"""What runs on the login node: compose once, check, make the run directory, hand over. No torch, no DeepSpeed import.

check      `python -m launch.check …`: only say whether a run can start, and what it would do
plan       `python -m launch.plan …`: memory, time, traffic, failures, price; --search ranks all layouts
rehearse   `python -m launch.rehearse …`: every rank's program at full size, without a GPU
twin       `python -m launch.twin …`: the same run scaled down in its own ratios, trained on this machine
submit     `python -m launch.submit …`: check, make the run directory, start; -m starts one run per point of a sweep
local      DeepSpeed's launcher on this machine: command and environment
hostfile   DeepSpeed's runner over the hosts of a file: pdsh or mpirun
tether     holds such a command: nothing of it outlives the starter, a wish to stop reaches the ranks
dry_run    what a start would do, as text
preflight  what every node must show first: `python -m launch.preflight …`
slurm      the same as a batch job of Slurm, which checks its nodes and puts itself back into the queue
again      the same for the other two: started again as often as cluster.max_restarts allows
requeue    what follows from how a start ended: again, without a node, or stop and say why. Pure
attempts   every start of a run, in its directory
profile    `python -m launch.profile RUN_DIR`: asks a run for a profile of its next steps
status     `python -m launch.status RUN_DIR`: the job, the last step, the last end
gate       `python -m launch.gate RUN_DIR`: what gates said, and a person's answer to them
supervise  one child process to its end: signals in, exit code out, the first failing rank's words last
"""
