"""Programs that a model wrote, run in isolation on Linux: bubblewrap, a filter of system calls, resource limits.

Map: `limits` what a program may use, and how it ended · `running` runs one program · `functions` checks a function of a
program with a benchmark's test that it cannot reach · `check` whether this host can isolate at all, before anything
runs · `bubblewrap` one sandbox, made by its `command_line` · `runtime` the files it shows · `system_calls` what
it refuses · `inside/` what runs in it. What is defended and what is not stands in docs/adr/0009-a-models-programs.md.
"""
