"""What a run is: types, values, checks, and the directory they are frozen into. No torch, no DeepSpeed import.

schema            frozen dataclasses, one per section; the field docstrings are the reference (conf/README.md)
cluster_schema    the sections of `cluster` about hosts and preflight
hosts             which hosts a hostfile names
gate_schema       that of gates
slurm_schema      its section cluster.slurm
arguments         the command line that every entry point shares; takes launchers' --local_rank away
load              YAML and overrides -> RunConfig (once), frozen YAML -> RunConfig, hash
overrides         one `key=value`: parse, tell groups from values, apply
typed             plain values <-> dataclasses, strictly
keys              every dotted key the schema knows, and the nearest one to a typing mistake
checks            the only door to all checks; the other *_checks hold them
secret_names      what looks like a secret: the names of keys and variables, addresses with passwords
approval          what a person said about a gate
initial_weights   init_from: which directory the first weights come from
resume_policy     what may be another when a run goes on: free, guarded (resume.allow) or frozen
twin              a run in small, in the ratios of one for a cluster; twin_model and twin_layout are its parts
differences       what to give on the command line to turn one config into another
run_directory     which directory a start uses: new, continued or refused
deepspeed_config  the only writer of DeepSpeed's key names
docs              writes conf/README.md
"""
