"""Values of every run, as Hydra groups: YAML only. The types and meanings stand in training/config/schema.py."""
