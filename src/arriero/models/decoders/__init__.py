"""Decoder-only models: families, what their checkpoints hold, positions."""
