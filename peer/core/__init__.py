"""The peer's decisions, pure: events and time in, commands out."""
