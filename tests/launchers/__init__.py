"""Several nodes on this machine: real ssh servers on loopback addresses."""
