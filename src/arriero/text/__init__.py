"""Everything that knows text: chat templates in, whole characters and stop strings out."""
