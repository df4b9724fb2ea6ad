"""The configuration file of a scheduler (TOML): read once, whole, into frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2p.errors import ConfigError
from p2p.toml import Table, as_budget, as_pattern
from scheduler.core.budget import BudgetRule


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a configuration file says; without one, the defaults."""

    origin_budgets: tuple[BudgetRule, ...] = ()


def load_configuration(path: Path) -> Configuration:
    """Read a configuration file. Raises ConfigError with the place of what cannot work."""
    top = Table.load(path)
    budgets = tuple(_budget(path, table) for table in top.tables("origin_budgets"))
    top.done()
    return Configuration(budgets)


def _budget(path: Path, table: Table) -> BudgetRule:
    pattern = table.require("match", as_pattern)
    budget = as_budget(table)
    table.done()
    if not budget:
        raise ConfigError(
            f"{path}: the budget of {pattern.pattern!r} bounds nothing; give it connections, requests_per_second or "
            "bytes_per_second"
        )
    return BudgetRule(pattern, budget)
