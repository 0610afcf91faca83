"""What a run leaves on disk as it goes: all ranks hand in their part, rank 0 writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from mpi_ntkdfl.algorithms.base import Method, Needs
from mpi_ntkdfl.config import Config
from mpi_ntkdfl.evaluate import Evaluation
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.storage import checkpoint
from mpi_ntkdfl.storage.checkpoint import Rows
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.record import Record, RoundRecord, provenance
from mpi_ntkdfl.storage.resume import Start
from mpi_ntkdfl.topology.graphs import Graph


class Journal:
    """Record and checkpoints of one run; all ranks call the same methods together."""

    def __init__(self, config: Config, federation: Federation, outputs: Outputs) -> None:
        """Names the files; `create` or `resume` opens the journal."""
        self._config, self._federation, self._outputs = config, federation, outputs
        self._world, self._clock = self._federation.world, self._federation.clock
        self._record = Record(outputs.record)
        self._provenance = provenance(
            self._world, str(federation.device), str(torch.__version__), federation.choices
        )

    def create(
        self,
        shares: tuple[np.ndarray, np.ndarray] | None,
        data: str | None,
        method: Method[Any],
    ) -> None:
        """Begins an empty record; former outputs of that name are removed.

        Args:
            method: of this run; the record stores what readers need to know of it.
            shares: offsets and indices of the partition, on rank 0.
            data: fingerprint of the data set, on rank 0.
        """

        def begin() -> None:
            assert shares is not None
            assert data is not None
            config, network = self._config, self._federation.network
            needs = method.needs(config.algorithm, network, self._federation.dtype)
            attributes = {
                "config": config.to_yaml(),
                "seed": config.seed,
                "data": data,
                **facts(type(method), needs),
                **self._provenance,
            }
            self._outputs.remove()
            self._record.create(attributes, config.clients, self._world.size, shares)

        self._world.on_root(begin)

    def resume(self, start: Start | None, method: Method[Any]) -> torch.Tensor:
        """Cuts the record to the checkpoint, and gives `method` its state back.

        Args:
            start: where to go on, on rank 0; None elsewhere.
            method: of this run.

        Returns:
            Weights of this rank's clients, `[owned, param]`.
        """

        def begin() -> list[str]:
            assert start is not None
            start.compare_choices(self._federation.choices)
            every, config_yaml = self._config.evaluation.every, self._config.to_yaml()
            if start.checkpoint.path != self._outputs.checkpoint:
                # The next checkpoint keeps what has this name: not the damaged one.
                start.checkpoint.path.replace(self._outputs.checkpoint)
            self._record.resume(start.checkpoint.round, every, config_yaml, self._provenance)
            return start.checkpoint.arrays

        def rows(name: str, rank: int) -> np.ndarray:
            assert start is not None
            return start.checkpoint.rows(name, self._federation.placement.owned(rank))

        found = {}
        for name in self._world.on_root(begin):
            mine = self._world.scatter(partial(rows, name))
            found[name.removeprefix("state/")] = torch.from_numpy(mine)
        weights = found.pop("params").to(self._federation.device)
        method.restore(found)
        return weights

    def finish_round(
        self, done: int, graph: Graph | None, taus: list[int], evaluation: Evaluation | None
    ) -> np.ndarray:
        """Appends to the record what there is after `done` rounds.

        Args:
            done: rounds done.
            graph: of the round, or None at the start, which belongs to no round.
            taus: this rank's clients' tau.
            evaluation: a row, or None if this round is not evaluated.

        Returns:
            Tau of every client, on rank 0.
        """
        every_tau = self._gather(np.array(taus))
        ledger = self._federation.ledger
        busiest, traffic = ledger.busiest, self._world.total(ledger.lap())
        seconds = self._gather(np.array([self._clock.lap()]))
        flights = self._gather(np.array([self._clock.lap_flights()]))
        with self._clock("record"):
            if self._world.rank == 0:
                told = None
                if graph is not None:
                    told = RoundRecord(graph.edges, traffic, seconds, busiest, flights)
                self._record.append(done, every_tau, evaluation, told)
        return every_tau

    def checkpoint(self, done: int, weights: torch.Tensor, method: Method[Any]) -> None:
        """Writes the checkpoint after `done` rounds."""
        state = {f"state/{name}": array for name, array in method.state().items()}
        arrays = {"params": weights, **state}
        with self._clock("record"):
            if self._world.rank:
                for _, array in sorted(arrays.items()):
                    list(self._world.collect(array.cpu().numpy()))  # hands it to rank 0
                return
            checkpoint.write(
                self._outputs,
                self._config.to_yaml(),
                self._federation.network.layout,
                done,
                {name: self._rows(array) for name, array in arrays.items()},
            )

    def _rows(self, mine: torch.Tensor) -> Rows:
        """An array of all clients, of which these are rank 0's; blocks come when they are asked for."""

        def blocks() -> Iterator[np.ndarray]:
            yield from self._world.collect(mine.cpu().numpy())

        dtype = mine[:0].cpu().numpy().dtype
        return Rows((self._config.clients, *mine.shape[1:]), dtype, blocks())

    def _gather(self, array: np.ndarray) -> np.ndarray:
        """Every rank's rows on rank 0; elsewhere this rank's own."""
        parts = list(self._world.collect(array))
        return np.concatenate(parts) if parts else array


def facts(method: type[Method[Any]], needs: Needs) -> dict[str, str | int]:
    """What a record stores of a method, because readers of records load no methods.

    Args:
        method: its class.
        needs: what it needs in this run.

    Returns:
        Attributes of the record: `method_label`; `method_look` (JSON), if it has a look;
        `method_central`, 1 if it has a server.
    """
    look = {} if method.look is None else {"method_look": method.look.to_json()}
    return {"method_label": method.label, **look, "method_central": int(needs.central)}
