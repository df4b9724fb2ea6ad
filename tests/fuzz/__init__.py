"""Fuzzing of the proxy's front: a grammar of hostile requests, and a field in which the proxy meets them.

The suite draws a few hundred (tests/property/test_proxy_front.py); `make fuzz` goes on for as long as one likes.
"""
