"""`arriero doctor`: what is wrong with an installation, a model, a port or a configuration, and what mends it."""
