"""What every node must show before a GPU-hour is spent. `python -m launch.preflight`; no torch.

findings    one finding, one node's report, and the table that a person reads
bounded     any number of checks at once, each ended when its time is over, whatever it hangs in
machine     disk, locks, clock service, interface, versions
gpus        nvidia-smi, dcgmi and the kernel's log: count, errors, throttling, NVLink
infiniband  ibstat: ports and their rates
meeting     the shared folder and the rendezvous port, seen from every node
node        all checks of one node
ask         how a command gets onto every node: here, over ssh, by srun
across      all nodes: ask, compare, judge; the collective's bandwidth
"""
