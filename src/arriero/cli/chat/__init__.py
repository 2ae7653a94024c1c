"""`arriero chat`: a conversation with any OpenAI-compatible endpoint, in a terminal or a pipe."""
