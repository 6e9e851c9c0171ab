"""What happens to the whole over time: the state machine, and the fault matrix."""
