"""An engine in a child process: `supervisor` is the half that the server talks to, `child` the half that computes."""
