"""The peer: one node's HTTP proxy, piece cache and piece server."""
