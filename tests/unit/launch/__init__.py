"""Tests of launch: the command lines, a child process to its end, sweeps."""
