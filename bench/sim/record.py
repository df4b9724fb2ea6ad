"""What a run leaves behind: who was done when, and who sent how much."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """Times are virtual seconds since the beginning; hosts are known by their number, in order of arrival."""

    arrived: dict[int, float] = field(default_factory=dict)
    completed: dict[int, float] = field(default_factory=dict)
    """When the last byte of the whole file could be read in order."""
    failed: dict[int, str] = field(default_factory=dict)
    unhealthy: set[int] = field(default_factory=set)
    """Stragglers, hosts that die, and their successors: their completion counts for no percentile."""
    sent: dict[int, list[int]] = field(default_factory=dict)
    """Bytes by sender, then by time slice (`slice_seconds`), for the heat map."""
    slice_seconds: float = 0.1
    seed_bytes: int = 0
    peer_bytes: int = 0
    crossing_bytes: int = 0
    """What went from one zone to another."""
    origin_pieces: dict[int, int] = field(default_factory=dict)
    """How often each piece came from the origin."""
    origin_bytes: int = 0
    landed_pieces: int = 0
    """Pieces that were verified and stored, anywhere."""
    most_uploads: int = 0
    """The most transfers that any host served at once."""
    refusals: dict[str, int] = field(default_factory=dict)
    """How often a transfer ended early, by reason."""
    messages_up: int = 0
    messages_down: int = 0
    contiguous: float = 0.0
    """The sum over all landings of which share of what the host had was readable from the front."""
    decisions: list[float] = field(default_factory=list)
    """Real CPU seconds of each batch of events that the scheduler took."""
    modelled_seconds: float = 0.0
    """For how long the scheduler was busy by the cost model."""
    events: int = 0
    """Simulated events."""
    fingerprint: int = 0
    """Of all landings: equal runs have equal ones."""

    def send(self, host: int, size: int, number: int) -> None:
        """Note that so many bytes left a host in the time slice of that number."""
        sent = self.sent.get(host)
        if sent is None:
            sent = self.sent[host] = []
        while number >= len(sent):
            sent.append(0)
        sent[number] += size
