"""Benchmarks: an origin that behaves like an object store, a local cluster, one reader, tables and charts."""
