"""What stands around the API: ids, logs, metrics, health. Pure ASGI; the API does not know it."""
