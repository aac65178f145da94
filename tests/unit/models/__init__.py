"""Models against transformers, closed forms against built modules."""
