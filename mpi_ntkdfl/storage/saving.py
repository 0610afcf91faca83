"""How all ranks together write a checkpoint: as one file of rank 0, or as parts of groups of ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from mpi_ntkdfl.comm.ledger import Ledger
from mpi_ntkdfl.comm.world import World
from mpi_ntkdfl.planning.costs import writing_groups
from mpi_ntkdfl.storage import checkpoint, parts
from mpi_ntkdfl.storage.checkpoint import Header
from mpi_ntkdfl.storage.outputs import Outputs
from mpi_ntkdfl.storage.parts import Part
from mpi_ntkdfl.storage.rows import Rows
from mpi_ntkdfl.topology.placement import Placement

_log = logging.getLogger(__name__)


class Saving:
    """Writes the checkpoints of a run. All ranks must call `save`."""

    def __init__(
        self,
        world: World,
        placement: Placement,
        ledger: Ledger,
        outputs: Outputs,
        smallest: int | None,
    ) -> None:
        """Takes what stays the same in a run.

        Args:
            world: the ranks.
            placement: which rank owns which client.
            ledger: books what the ranks send.
            outputs: the files of the run.
            smallest: bytes of a part; see `planning.costs.writing_groups`.
        """
        self._world, self._placement, self._ledger = world, placement, ledger
        self._outputs, self._smallest = outputs, smallest

    def save(self, header: Header, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a checkpoint of this rank's rows and those of all other ranks.

        Args:
            header: what the checkpoint says beside its arrays.
            arrays: `[owned, ...]` by name, the same names on all ranks.
        """
        world, clients = self._world, self._placement.clients
        each = sum(array[:1].nbytes for array in arrays.values())
        groups = writing_groups(world.size, clients * each, self._smallest)
        if groups and self._save_parts(header, arrays, groups):
            return
        everyone = self._collected(arrays, range(world.size))
        if world.rank == 0:
            checkpoint.write(self._outputs, header, everyone)

    def _save_parts(
        self, header: Header, arrays: Mapping[str, np.ndarray], groups: list[range]
    ) -> bool:
        """Writes a checkpoint of parts, if all writers see the same folder; returns whether they do."""
        world, outputs = self._world, self._outputs
        stem = world.on_root(lambda: parts.begin(outputs, header.round))
        number, group = next(each for each in enumerate(groups) if world.rank in each[1])
        rows, part = self._collected(arrays, group), None
        if world.rank == group.start:
            part = parts.write(outputs, f"{stem}-{number}.h5", self._clients(group), rows)
        told = self._tell(part)
        writers = [told[each.start] for each in groups] if world.rank == 0 else []
        if not world.on_root(lambda: parts.settled(outputs, writers)):
            if world.rank == 0:
                _log.warning(
                    "not all hosts see %s, so rank 0 writes checkpoints as one file; give an -o in a "
                    "folder that all hosts share",
                    outputs.parts,
                )
            self._smallest = None
            return False
        if world.rank == 0:
            shapes = {
                name: Rows((self._placement.clients, *array.shape[1:]), array.dtype, ())
                for name, array in arrays.items()
            }
            checkpoint.join(outputs, header, shapes, [part for part in writers if part])
        return True

    def _clients(self, group: range) -> range:
        """The clients of a group of ranks."""
        first, last = (self._placement.owned(rank) for rank in (group[0], group[-1]))
        return range(first.start, last.stop)

    def _collected(self, arrays: Mapping[str, np.ndarray], group: range) -> dict[str, Rows]:
        """The rows of a group on its first rank, whose blocks arrive one after another, array by array.

        The other ranks send theirs.
        """
        world, clients = self._world, len(self._clients(group))
        if world.rank != group.start:
            for _, array in sorted(arrays.items()):
                self._ledger.book_mpi("statistics", array.nbytes)
                list(world.collect(array, group))
        return {
            name: Rows((clients, *array.shape[1:]), array.dtype, world.collect(array, group))
            for name, array in arrays.items()
        }

    def _tell(self, part: Part | None) -> list[Part | None]:
        """Brings the parts of all ranks to rank 0; None for a rank that wrote none."""
        text = parts.as_json([part] if part else []).encode()
        if self._world.rank:
            self._ledger.book_mpi("statistics", len(text))
        told = self._world.collect(np.frombuffer(text, np.uint8))
        each = (parts.from_json(array.tobytes().decode()) for array in told)
        return [those[0] if those else None for those in each]
