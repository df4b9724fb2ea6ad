"""The scheduler's decisions, pure: frozen events in, commands out; no I/O, no clock, no randomness of its own."""
