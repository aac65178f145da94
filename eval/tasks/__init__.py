"""One file per kind of measurement; each ends in one `Task` that the harness lists.

Map: `base` shape of a task and its result · `held_out` bits per byte, document by document · `multiple_choice` which
continuation is the real one · `samples` greedy continuations of prompts, for people.
"""
