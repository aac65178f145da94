"""kill -9 by the hundred: real ranks forked from a process that has imported everything, killed, started again.

fork_server   the process that forks launchers, which fork ranks
starts        its client: start a run directory's ranks, wait for the last of them
drill_run     the run that is drilled: its config, and what must be equal to the uninterrupted run
moments       where a run is, and waiting for the moment of a kill
campaign      one run, killed at random moments until it is done
points        one run, killed at every point of the save protocol on every rank
kill          the command line
"""
