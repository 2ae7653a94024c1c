"""What can be posted, for tests that try every endpoint."""

from typing import Any

POSTED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/rerank": {"query": "Hello", "documents": ["there"]},
    "/v1/score": {"text_1": "Hello", "text_2": "there"},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [65]},
}
"""Where anything but administration can be posted, and the least of what must be, beside the model."""
