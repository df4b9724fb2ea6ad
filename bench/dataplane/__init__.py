"""`damselfly bench data-plane`: what a node's data path costs, beside nginx where it is installed.

Each section is a module with `measure(plan, progress)`, which starts what it needs, and yields figures; `sections.py`
lists them.
"""
