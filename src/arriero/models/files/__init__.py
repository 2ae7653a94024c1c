"""File formats, read and checked, whatever they hold."""
