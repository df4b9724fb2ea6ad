"""Downloads: what to fetch from where, and the transfers that fetch it."""
