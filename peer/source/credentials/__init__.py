"""Credentials of this host's own for origins: found, kept fresh, and put on each request at the moment it is made."""

from peer.source.credentials.signing import Credentials

__all__ = ["Credentials"]
