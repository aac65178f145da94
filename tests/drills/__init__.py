"""Faults in bulk: what a test does once, a drill does hundreds of times, with faults drawn from a seed.

Each is a command, `python -m tests.drills.NAME`, that prints one line about what it did and fails if anything was not
as it must be; `make drill` runs all of them at full size, `make test` a few rounds of each.

kill        kill -9 of ranks and launchers: at random moments, and at every point of the save protocol
  fork_server   the process that forks launchers, which fork ranks: it has imported everything
  starts        its client: start a run directory's ranks, wait for the last of them
  drill_run     the run that is drilled: its config, and what must be equal to the uninterrupted run
  moments       where a run is, and waiting for the moment of a kill
  campaign      one run, killed at random moments until it is done
  points        one run, killed at every point of the save protocol on every rank
benchmarks  every item of every benchmark, by who knows the answers and by who does not; workflows replayed
documents   160 MB of real documents, prepared by a command that is killed twice; tokens/s beside the tokenizer's
  document_packages   the HTML pages of Debian packages, as JSON Lines of text
signals     wishes to stop, to any rank, in every phase
  phases        what all ranks are doing, seen from outside
  stops         one run, told to stop in every phase until it is done
corruption  damaged files of every kind (damages, random_states), and good ones
corruption_in_memory  flipped bits in weights, optimizer state, activations and gradients (its _worker is one rank)
freeze      ranks stopped in the middle of a thousand saves (freeze_worker)
hang        ranks that stand still, at every place of a run
faults      the whole fault matrix, a line for every row, as one table
  fault_rows, fault_rows_around   its rows: processes; disks, clocks, the network, numbers
  disturbed     one run that is disturbed once: who notices, when it trains again, whether it ends equal
  mounts, tracing, clocks, bad_servers, memory_limits   how what is around a run is hurt
endpoint    a partner's endpoint and its client, killed, stopped and refused (endpoint_worker is the client)
  endpoint_servers   a real server of a real model, and the proxy that hurts and counts
slurm       runs on a real Slurm, hurt in every way that docs/slurm.md lists (slurm_campaign)
sandbox     hostile programs and deceiving answers of a model (hostile_programs, hostile_reaches; deceiving_answers)
  hostile, host_watch   the shape of such a program; what is true of the host before and after
twins       every experiment for a cluster, scaled down and trained on four processes
payloads    malicious files in the place of every kind of file (payload_cases, payload_contents, bounded)
"""
