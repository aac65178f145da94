"""Whole runs, started, hurt and read as a user would. `running` starts them; one reference run serves many checks."""
