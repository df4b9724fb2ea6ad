"""Origins: probing them, and passing requests through to them byte for byte."""
