"""Ranks and pipeline stages."""
