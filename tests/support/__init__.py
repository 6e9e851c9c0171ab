"""What tests have in common: servers to run, clients to ask with, doubles, and promises to hold to."""
