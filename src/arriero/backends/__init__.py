"""Models that other servers answer for: HTTP in, HTTP out, passed through."""
