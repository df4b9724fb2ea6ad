"""The HTTP proxy in front of tritonserver and its kin."""
