"""Faults in bulk: what a test does once, a drill does hundreds of times, with faults drawn from a seed.

Each is a command, `python -m tests.drills.NAME`, that prints one line about what it did and fails if anything was not
as it must be; `make drill` runs all of them at full size, `make test` a few rounds of each.
"""
