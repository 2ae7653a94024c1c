"""From text to tokens and back, whatever file the vocabulary comes in."""
