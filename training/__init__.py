"""The job that runs on every rank, as a library with one composition root, `training/composition.py`.

errors            error classes and their exit codes
rank_environment  which rank a process is, under every launcher
slurm_rendezvous  where the tasks of a Slurm step meet
durable_files     files that survive a kill
exit_report       where ranks leave word of how a run ended
config            schema, composition, checks; the only writer of DeepSpeed's key names
reporting         records, metrics.jsonl and its views
parallel          layout and partition (no torch)
models            one list of layers per model
data              corpus, tokenizer, shards, sample order, loader
checkpoint        layout-free sharded checkpoints
engine            DeepSpeed behind one protocol
planner           memory, time, failures and price of a run before it starts (no torch)
rehearsal         every rank's program at full size, and whether they fit together (no torch)
fault_tolerance   ends what is broken, and says why
stages            curriculum, ledger, runner
bandwidth         an all-reduce over all ranks, measured before a start
find_run          which run directory a start is about, decided by rank 0
composition       wires a rank together
train             the entry, once per rank
"""
