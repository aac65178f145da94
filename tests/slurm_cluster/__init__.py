"""A throw-away Slurm of several nodes on this machine, for tests and drills; `make packages` installs Slurm.

configuration  slurm.conf and its company, in a temporary directory
cluster        daemons up and down; a node's daemon killed, a node powered off, drained, brought back
jobs           what Slurm says about a job, waited for by polling
"""
