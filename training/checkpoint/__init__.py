"""Checkpoints that belong to no layout.

manifest   what a checkpoint holds and how far the run was (JSON, no torch)
store      write and commit, scan, verify, read any range (safetensors; nothing is ever unpickled)
__main__   `python -m training.checkpoint {inspect|verify} DIR`
"""
