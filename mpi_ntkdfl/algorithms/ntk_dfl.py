"""NTK-DFL (Thompson, Yue, Wong, Dai, "NTK-DFL", ICML 2025): average, then evolve with the NTK.

Clients send their weights to the neighbours and average. They send the average back, and receive the
neighbours' Jacobians at this average. If samples are sent instead of Jacobians, a client computes the
Jacobians itself and does not send its average. With the kernel of its neighbourhood a client evolves the
outputs of the network, and computes its new weights from the evolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator

from mpi_ntkdfl.algorithms.aids import CarriesMomentum, RoundMomentum, remembered
from mpi_ntkdfl.algorithms.base import Leg, Method, Needs, RoundResult, may_diverge
from mpi_ntkdfl.algorithms.kernel_outputs import check_directions, choose_directions
from mpi_ntkdfl.algorithms.steps import NtkSettings, evolve_together, ntk_step, ntk_step_work
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.comm.messages import MessageFormat
from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.federation import projected
from mpi_ntkdfl.federation.clients import Federation, Samples
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.formats import (
    dense_entries,
    dense_heading,
    factored_format,
    projected_format,
)
from mpi_ntkdfl.federation.jacobian_coding import require_fit
from mpi_ntkdfl.federation.jacobian_messages import linearised
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.projected import Projecting, projection_of_round, stacked_numbers
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.model.projection import columns, matrix_numbers
from mpi_ntkdfl.runtime.looks import BLUE, LineStyle


class NtkDflSettings(NtkSettings):
    """Settings of NTK-DFL; the defaults are the paper's. Tau is chosen by the neighbourhood's loss."""

    name: Literal["ntk-dfl"] = "ntk-dfl"
    jacobian: Literal["inputs", "factored", "dense", "projected"] = "factored"
    """How Jacobians are sent. `factored`: in the network's factored form; the default where the network
    has one. `inputs`: as raw samples, from which the receiver computes the Jacobian; the smallest
    message, and the default for all other networks. `dense`: entry by entry, as in the paper.
    `projected`: as fewer numbers, which is not exact. Then a client does not hold its neighbours' inputs,
    and `selection: network` takes the loss on its own samples.
    """
    projection: int = Field(default=1024, ge=1, le=1_000_000)
    """For `jacobian: projected`: numbers per layer and output to which a Jacobian is projected. Layers
    with at most so many parameters are sent entry by entry. The kernel's relative error falls as
    1/sqrt(projection).
    """
    projected_update: Literal["lifted", "own"] = "lifted"
    """For `jacobian: projected`: whether the neighbours' part of an update is `lifted` back from the
    projections, with their error, or left out, so that only the client's `own` exact part remains.
    """
    averaging: Literal["plain", "samples", "metropolis", "none"] = "plain"
    """Weights of the average over the neighbourhood: equal (`plain`), or in proportion to the
    clients' samples (`samples`), or Metropolis weights (`metropolis`), which keep the mean of all
    clients on graphs of unequal degrees. With `none` a client evolves its own weights, with its
    neighbours' Jacobians at these weights.
    """
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """The network is linearised at a + momentum (a - a'), where a is the client's average and a' its
    average of the round before. 0 linearises at the average, as in the paper.
    """
    linearisations: int = Field(default=1, ge=1, le=1000)
    """Evolutions per round. After the first, the Jacobian is taken again at the new weights, on the
    samples that the client holds, and the outputs evolve again, as long as that lowers the loss. The
    recorded tau is the sum. No message is added, except that dense Jacobians then come with inputs.
    """

    kernel_outputs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of random directions of the outputs from which a kernel is computed; null takes all outputs,
    which is exact. The time of a kernel is nearly proportional to this number, so a small one helps if
    there are many classes. It needs a network without a factored form, and `jacobian: inputs`.
    """

    @model_validator(mode="after")
    def _projections_have_no_inputs(self) -> NtkDflSettings:
        if self.jacobian == "projected" and self.linearisations > 1:
            raise ValueError(
                "linearisations > 1 need the neighbours' inputs, which jacobian=projected does not send; "
                f"got linearisations {self.linearisations}; set it to 1 or choose another jacobian"
            )
        return self

    @property
    def sends(self) -> tuple[str, ...]:
        """Weights if they are averaged, averages unless samples travel, and Jacobians."""
        weights = () if self.averaging == "none" else ("weights",)
        averages = () if self.jacobian == "inputs" else ("averages",)
        return (*weights, *averages, "jacobians")

    @model_validator(mode="after")
    def _codec_fits_the_message(self) -> NtkDflSettings:
        chosen = None if self.codec is None else self.codec.jacobians
        if chosen is not None:
            require_fit(chosen, self.jacobian)
        return self

    @property
    def inputs(self) -> bool:
        """Whether a client needs its neighbours' inputs."""
        return self.selection == "network" or self.linearisations > 1

    @classmethod
    def defaults(cls, model: ModelSettings) -> dict[str, Any]:
        """Samples travel by default if the network has no factored form."""
        return {} if model.factored else {"jacobian": "inputs"}


SettingsT = TypeVar("SettingsT", bound=NtkDflSettings)


class NeighbourhoodNtk(CarriesMomentum, Method[SettingsT]):
    """Averages with the neighbours, and steps by the kernel of the neighbourhood's samples."""

    def __init__(self, settings: SettingsT, federation: Federation) -> None:
        """Prepares the method; with momentum, it carries the averages of the last round."""
        super().__init__(settings, federation)
        self.loss = settings.loss
        self.momentum = RoundMomentum(settings.momentum, self.no_vectors(), "averages")

    @classmethod
    def needs(cls, settings: SettingsT, network: Network, dtype: torch.dtype) -> Needs:
        """Weights (if averaged) and samples; or weights, averages, and Jacobians in one of two forms."""
        check_directions(settings.kernel_outputs, settings.jacobian, network)
        vectors: tuple[str, ...] = () if settings.averaging == "none" else ("weights",)
        kept = remembered(settings.momentum, network, dtype)
        needs = Needs(vectors, taus=len(settings.taus), kept=kept)
        if settings.jacobian == "inputs":
            # Samples depend on no average, so weights and samples travel together, and nothing else.
            return replace(needs, samples=True, legs=(Leg((*vectors, "inputs", "labels")),))
        vectors, matrices, stacked = (*vectors, "averages"), 0, 0
        blocks: tuple[MessageFormat, ...]
        if settings.jacobian == "factored":
            blocks = (factored_format(network, dtype),)
        elif settings.jacobian == "projected":
            width = columns(network.layout, settings.projection)
            blocks, stacked = (
                (projected_format(network, dtype, width),),
                stacked_numbers(network, width),
            )
            matrices = matrix_numbers(network.layout, settings.projection) * dtype.itemsize
        else:
            heading = dense_heading(network, dtype, inputs=settings.inputs)
            blocks = (heading, dense_entries(network, dtype, network.layout.size))
        last = Leg(tuple(phase for form in blocks for phase in form.phases), ("jacobian",))
        return replace(
            needs,
            vectors=vectors,
            blocks=blocks,
            dense=settings.jacobian == "dense",
            stacked=stacked,
            matrices=matrices,
            legs=(*(Leg((phase,)) for phase in vectors), last),
        )

    @classmethod
    def work(cls, settings: SettingsT, load: Load) -> dict[str, Work]:
        """Counts the Jacobians of a client's own samples for itself and each neighbour, and the step."""
        counts = load.network.work
        # Senders compute the outputs for each receiver; from samples a receiver computes them itself.
        passes = load.gathered if settings.jacobian == "inputs" else load.own * (load.degrees + 1)
        times = settings.linearisations
        step = ntk_step_work(settings, load.network, load.gathered, load.itemsize)
        by_phase = {phase: work.times(times) for phase, work in step.items()}
        if settings.jacobian == "projected":
            by_phase.update(_projected_work(settings, load, by_phase))
            return by_phase
        by_phase["jacobian"] = Work(
            2 * counts.products * (passes + (2 * times - 1) * load.gathered),
            3 * times * load.itemsize * load.gathered * counts.activations,
            60 * (load.degrees + times),
        )
        return by_phase

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        return self.step(self.average(weights, exchange), number, exchange)

    def average(self, weights: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        """The averages of the neighbourhoods, `[owned, param]`; `weights` if nothing is averaged."""
        how = self.settings.averaging
        return weights if how == "none" else exchange.average(weights, how)

    def step(self, w_bar: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """The step by the kernel from the averages `w_bar` `[owned, param]`."""
        s = self.settings
        new, taus = w_bar.clone(), [0] * len(w_bar)
        point = self.momentum.point(w_bar)
        hoods = self._neighbourhoods(point, number, exchange)
        # Dense and projected Jacobians are used for one client at a time.
        at_once = 1 if s.jacobian in ("dense", "projected") else exchange.at_once(len(s.taus))
        while together := list(islice(hoods, at_once)):
            moved = self._evolve(together, point, new, taus, number)
            for _ in range(s.linearisations - 1):
                held = [
                    (hood.client, hood.inputs, hood.labels)
                    for hood in together
                    if hood.client in moved
                ]
                together = [self._at(new, *each) for each in held]
                moved = self._evolve(together, new, new, taus, number, must_improve=True)
        return RoundResult(new, taus)

    def _neighbourhoods(
        self, point: torch.Tensor, number: int, exchange: Exchange
    ) -> Iterator[Neighbourhood]:
        """Sends the points `[owned, param]` of linearisation and collects the Jacobians there."""
        s, taus = self.settings, len(self.settings.taus)
        if s.jacobian != "projected":
            return exchange.neighbourhoods(point, s.jacobian, s.inputs, taus)
        projection = projection_of_round(self.federation, s.projection, number)
        how = Projecting(projection, s.projected_update == "lifted")
        return projected.neighbourhoods(exchange, point, how, taus)

    def _evolve(
        self,
        hoods: Sequence[Neighbourhood],
        starts: torch.Tensor,
        new: torch.Tensor,
        taus: list[int],
        number: int,
        must_improve: bool = False,
    ) -> set[int]:
        """Takes the step of each neighbourhood; `new` and `taus` are changed in place.

        Args:
            hoods: neighbourhoods, linearised at `starts`.
            starts: weights of all clients of the rank, `[owned, param]`.
            new: receives the new weights, `[owned, param]`.
            taus: a list to which the numbers of steps are added, `[owned]`.
            number: number of the round.
            must_improve: as in `ntk_step`.

        Returns:
            The clients that took a step.
        """
        s, f, moved = self.settings, self.federation, set()
        choose_directions(hoods, s.kernel_outputs, f, number)
        evolved = evolve_together(hoods, number, s, f)
        for hood, evolution in zip(hoods, evolved, strict=True):
            row = hood.client - f.owned.start
            with may_diverge(f, number, hood.client):
                w, tau = ntk_step(hood, starts[row], number, s, f, evolution, must_improve)
                new[row] = w
                taus[row] += tau
                if tau:
                    moved.add(hood.client)
        return moved

    def _at(
        self, weights: torch.Tensor, client: int, inputs: torch.Tensor | None, labels: torch.Tensor
    ) -> Neighbourhood:
        """The neighbourhood with these samples, linearised at the client's row of `weights`."""
        f = self.federation
        assert inputs is not None
        with f.clock("jacobian"):
            return linearised(f, weights[client - f.owned.start], client, Samples(inputs, labels))


class NtkDfl(NeighbourhoodNtk[NtkDflSettings]):
    """The method of the paper."""

    Settings = NtkDflSettings
    label = "NTK-DFL"
    look = LineStyle(BLUE, (), "o")


def _projected_work(
    settings: NtkDflSettings, load: Load, step: Mapping[str, Work]
) -> dict[str, Work]:
    """What projections change of a round's work: the Jacobians, the kernel, and the lifted update."""
    network, k, item = load.network, settings.projection, load.itemsize
    width = network.classes * columns(network.layout, k)
    matrices = matrix_numbers(network.layout, k)
    sent = network.work.projected(load.own * (load.degrees + 1), k)
    lifted = (1 + 2 * len(settings.taus)) * matrices * (settings.projected_update == "lifted")
    update = step["update"]
    return {
        # A matrix is drawn once per round if it is kept, which is the usual case.
        "jacobian": Work(
            sent.operations, item * (sent.numbers + matrices), 100 * (load.degrees + 1)
        ),
        "kernel": Work(
            load.gathered**2 * width, 4 * item * load.gathered * width, 30 + load.nothing
        ),
        "update": Work(update.operations + lifted, update.bytes + item * matrices, update.calls),
    }
