"""What the engines rest on; the engines themselves are in tests/distributed."""
