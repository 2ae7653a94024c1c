"""Continuous batching: which sequences run in a step, which token each gets, and how callers hear of it."""
