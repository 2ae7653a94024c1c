"""Encoder models: families, what their checkpoints hold, pooling."""
