"""A swarm in virtual time: the cores that ship, thousands of hosts in one process, deterministic by seed."""
