"""The endpoint of a partner's model."""
