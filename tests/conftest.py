"""What holds for every test: Hypothesis draws the same examples in every run, and never judges by the clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("deterministic")
