"""The command line: composes the scheduler, the peer and the benchmarks, and holds no logic of its own."""
