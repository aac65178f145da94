"""A throw-away Slurm of several nodes on this machine, for tests and drills.

install.sh     what it needs, from Debian: run by `make test`
configuration  slurm.conf and its company, in a temporary directory
cluster        daemons up and down; a node's daemon killed, a node powered off, drained, brought back
jobs           what Slurm says about a job, waited for by polling
"""
