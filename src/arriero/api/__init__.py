"""The OpenAI endpoints: what is asked in JSON becomes a `GenerationRequest`, and its text becomes JSON again."""
