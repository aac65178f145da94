"""Checkpoints: manifest, commit protocol, damage."""
