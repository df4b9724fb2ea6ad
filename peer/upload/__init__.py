"""The piece server: what other hosts read from this one."""
