"""The peer's store: one sparse file a version, and an index that survives a crash (docs/store.md)."""

from peer.store.entry import Entry
from peer.store.index import StoreStats
from peer.store.store import Store
from peer.store.upkeep import StoreSettings, Upkeep

__all__ = ["Entry", "Store", "StoreSettings", "StoreStats", "Upkeep"]
