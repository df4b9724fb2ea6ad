"""The pieces of objects such as tests use."""

from __future__ import annotations

from p2p.pieces import piece_length

PIECE = piece_length(0)
"""Length in bytes of the pieces of an object of up to some hundred of them."""
