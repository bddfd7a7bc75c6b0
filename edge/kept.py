"""What a station keeps beside its journal, pictures of parts and heads of the chain, and how it changes while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge.evidence import Choice, EvidenceFolder
from edge.heads import HeadKeeper
from edge.journal import SqliteJournal
from edge.sections import EvidenceConfig, StationConfig


class Kept:
    """Opens, replaces and closes the two.

    Attributes:
        heads: of the journal.
        evidence: pictures; None where none are kept.
    """

    def __init__(
        self,
        config: StationConfig,
        run: str,
        spread: float,
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        """Keep heads; pictures follow with `open_evidence`.

        Args:
            config: of the station.
            run: this start's name.
            spread: standard deviation of normal scores, by which pictures of near misses are chosen.
            say, complain: told what a person should read.
        """
        self._config = config
        self._run = run
        self._spread = spread
        self._say = say
        self._complain = complain
        self.heads = HeadKeeper(config.journal_heads, say, complain)
        self.evidence: EvidenceFolder | None = None

    def open_evidence(self, journal: SqliteJournal) -> None:
        """Keep pictures where the configuration says so."""
        self.evidence = self._make(self._config.evidence, journal)

    def change(self, config: StationConfig, journal: SqliteJournal) -> None:
        """Go over to another configuration. What the former ones still have to write is written by threads of their own."""
        if config.journal_heads != self._config.journal_heads:
            former, self.heads = self.heads, HeadKeeper(config.journal_heads, self._say, self._complain)
            threading.Thread(target=former.close, name="former heads").start()
        if config.evidence != self._config.evidence:
            pictures, self.evidence = self.evidence, self._make(config.evidence, journal)
            if pictures is not None:
                threading.Thread(target=pictures.close, name="former evidence").start()
        self._config = config

    def near(self, spread: float) -> None:
        """Another recipe is judged: a near miss is near by its spread."""
        self._spread = spread
        if self.evidence is not None and self._config.evidence is not None:
            self.evidence.choose(self._choice(self._config.evidence))

    def close_evidence(self) -> None:
        """Write what waits; may be called twice."""
        if self.evidence is not None:
            self.evidence.close()

    def close_heads(self) -> None:
        """Write what waits; may be called twice."""
        self.heads.close()

    def report(self) -> None:
        """Say what became of the pictures."""
        if self.evidence is not None:
            counts = self.evidence.counts
            lost = f"{counts.dropped} dropped, {counts.no_room} without room, {counts.failed} failed, {counts.deleted} deleted"
            self._say(f"wrote {counts.written} pictures to {self.evidence.folder}; {lost}")

    def _make(self, wanted: EvidenceConfig | None, journal: SqliteJournal) -> EvidenceFolder | None:
        if wanted is None:
            return None
        return EvidenceFolder(
            wanted.folder,
            self._run,
            journal,
            self._choice(wanted),
            quota_bytes=round(wanted.quota_mb * 1e6),
            waiting=wanted.waiting,
            complain=self._complain,
        )

    def _choice(self, wanted: EvidenceConfig) -> Choice:
        return Choice(every=wanted.every, near=wanted.near_spreads * self._spread)
