"""What an exchange books in the ledger, and how long its messages are."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.coding import Codings
from mpi_ntkdfl.federation.waves import neighbourhood_sums
from mpi_ntkdfl.topology.graphs import Graph


class Booking:
    """Books the protocol bytes of messages along a graph.

    Attributes:
        federation: the clients.
        graph: the communication graph.
        codings: how messages are written.
        lasting: whether the graph is used for many rounds.
    """

    def __init__(
        self, federation: Federation, graph: Graph, codings: Codings, lasting: bool, held: bool
    ) -> None:
        """Books nothing yet; `held` says whether neighbours hold each other's raw samples already."""
        self.federation, self.graph, self.codings = federation, graph, codings
        self.lasting, self._hold_samples = lasting, held

    def coded(self, form: MessageFormat) -> MessageFormat:
        """The layout in which messages of the layout `form` about samples travel."""
        codec = self.codings.jacobians
        return form if codec is None else codec.form(form)

    @cached_property
    def rows(self) -> np.ndarray:
        """Of how many samples each client sends messages, `[client]`."""
        codec, sizes = self.codings.jacobians, self.federation.sizes
        return sizes if codec is None else codec.rows(sizes)

    def book_vectors(self, form: MessageFormat) -> None:
        """Books a message with one row from every client to each of its neighbours."""
        self._book_rows(form, self._vectors_through)

    def book_samples(self, form: MessageFormat) -> None:
        """Books a message with one row per sample from every client to each of its neighbours."""
        self._book_rows(self.coded(form), self._samples_through)

    def book_once(self, form: MessageFormat) -> None:
        """Books samples, which clients on a lasting graph keep: only in the first round of the run.

        Samples that are drawn anew in every round are booked in every round.
        """
        drawn = self.rows is not self.federation.sizes
        if not self._hold_samples or drawn:
            self.book_samples(form)
        self._hold_samples = self.lasting

    def _book_rows(self, form: MessageFormat, through: np.ndarray) -> None:
        for phase, count in form.by_phase(1, travelling=False).items():
            self.book_protocol(phase, count * through)

    def book_sent(self, phase: str, counts: np.ndarray) -> None:
        """Books `counts` `[client]` bytes, known on rank 0, from every client to each neighbour."""
        self.book_protocol(phase, self._through(counts))

    def _through(self, counts: np.ndarray) -> np.ndarray:
        """What each node sends plus what it receives, `[client + 1]`.

        Client i sends `counts[i]` to each of its neighbours. The last node, the server, has 0.
        """
        sent, received = self.graph.degrees * counts, neighbourhood_sums(self.graph, counts)
        return np.append(sent + received, 0)

    @cached_property
    def _vectors_through(self) -> np.ndarray:
        return self._through(np.ones(self.graph.clients, dtype=np.int64))

    @cached_property
    def _samples_through(self) -> np.ndarray:
        return self._through(self.rows)

    def book_protocol(self, phase: str, through: np.ndarray) -> None:
        """Books payload once for the whole job.

        Args:
            phase: phase of the ledger.
            through: bytes that each node sends plus bytes that it receives, `[client + 1]`.
        """
        if self.federation.world.rank == 0:
            self.federation.ledger.book_protocol(phase, through)
