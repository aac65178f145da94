"""Small files that hold what a command is known to produce; `python -m tests.golden.rewrite` writes them anew."""
