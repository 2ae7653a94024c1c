"""What computes a step: each runner takes rows of tokens and gives back logits, and holds no queues."""
