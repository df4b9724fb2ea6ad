"""What peers and schedulers share: identity, versions, pieces, digests, and the adapters around them.

The modules without I/O (`identity`, `versions`, `ranges`, `pieces`, `digests`, `errors`) are pure: no clock, no
randomness, no sockets. Everything else in the product may import this package; it imports nothing of theirs.
"""
