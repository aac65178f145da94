"""Real DeepSpeed processes over gloo. One start of the workers serves many checks."""
