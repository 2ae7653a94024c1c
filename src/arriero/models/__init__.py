"""From a name or a path to ready weights, tokenizer and model card."""
