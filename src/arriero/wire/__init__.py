"""What every HTTP answer has in common: error bodies, server-sent events, disconnects and headers."""
