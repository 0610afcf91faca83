"""NTK-DFL (Thompson, Yue, Wong, Dai, "NTK-DFL", ICML 2025): average, then evolve with the NTK.

Clients send their weights to the neighbours and average. They send the average back, and receive the
neighbours' Jacobians at this average. From the kernel of its neighbourhood a client evolves the outputs
in function space, and takes the weights that follow from the evolution.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import torch

from mpi_ntkdfl.algorithms.base import Leg, Method, Needs, RoundResult, may_diverge
from mpi_ntkdfl.algorithms.steps import NtkSettings, evolve_together, ntk_step, ntk_step_work
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.config import ModelSettings
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.formats import dense_entries, dense_heading, factored_format
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.looks import BLUE, LineStyle


class NtkDflSettings(NtkSettings):
    """Settings of NTK-DFL; the defaults are the paper's. Tau is chosen by the neighbourhood's loss."""

    name: Literal["ntk-dfl"] = "ntk-dfl"
    jacobian: Literal["inputs", "factored", "dense"] = "factored"
    """How Jacobians travel: in the network's factored form, which is the default where the network
    has one; as raw samples, from which the receiver computes them (`inputs`), which is the smallest
    message and the default for all other networks; or entry by entry (`dense`), as in the paper.
    """
    averaging: Literal["plain", "samples", "none"] = "plain"
    """Weights of the average over the neighbourhood: equal (`plain`), or in proportion to the
    clients' samples (`samples`). With `none` a client evolves its own weights, with its neighbours'
    Jacobians at these weights.
    """

    @classmethod
    def defaults(cls, model: ModelSettings) -> dict[str, Any]:
        """Samples travel by default if the network has no factored form."""
        return {} if model.factored else {"jacobian": "inputs"}


class NtkDfl(Method[NtkDflSettings]):
    """The method of the paper."""

    Settings = NtkDflSettings
    label = "NTK-DFL"
    look = LineStyle(BLUE, (), "o")

    def __init__(self, settings: NtkDflSettings, federation: Federation) -> None:
        """Prepares the method; it carries no state from round to round but the weights."""
        super().__init__(settings, federation)
        self.loss = settings.loss

    @classmethod
    def needs(cls, settings: NtkDflSettings, network: Network, dtype: torch.dtype) -> Needs:
        """Weights (if averaged) and averages; samples, factored forms, or heading and entries."""
        vectors: tuple[str, ...] = ("weights", "averages")
        if settings.averaging == "none":
            vectors = ("averages",)
        taus = len(settings.taus)
        legs = tuple(Leg((phase,)) for phase in vectors)
        if settings.jacobian == "inputs":
            # Samples do not depend on the average, so they travel in the first leg.
            legs = (Leg((*legs[0].phases, "inputs", "labels")), *legs[1:])
            return Needs(vectors, samples=True, taus=taus, legs=legs)
        if settings.jacobian == "factored":
            form = factored_format(network, dtype)
            legs = (*legs, Leg(form.phases, ("jacobian",)))
            return Needs(vectors, blocks=(form,), taus=taus, legs=legs)
        heading = dense_heading(network, dtype, inputs=settings.selection == "network")
        entries = dense_entries(network, dtype, network.layout.size)
        legs = (*legs, Leg((*heading.phases, *entries.phases), ("jacobian",)))
        return Needs(vectors, blocks=(heading, entries), dense=True, taus=taus, legs=legs)

    @classmethod
    def work(cls, settings: NtkDflSettings, load: Load) -> dict[str, Work]:
        """Jacobians of a client's own samples for itself and each neighbour; the step by the kernel."""
        counts = load.network.work
        # Senders compute the outputs for each receiver; from samples a receiver computes them itself.
        passes = load.gathered if settings.jacobian == "inputs" else load.own * (load.degrees + 1)
        found = ntk_step_work(settings, load.network, load.gathered, load.itemsize)
        found["jacobian"] = Work(
            2 * counts.products * (passes + load.gathered),
            3 * load.itemsize * load.gathered * counts.activations,
            60 * (load.degrees + 1),
        )
        return found

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        s = self.settings
        w_bar = weights if s.averaging == "none" else exchange.average(weights, s.averaging)
        new, taus = w_bar.clone(), [0] * len(w_bar)
        first = self.federation.owned.start
        rate, inputs = s.rate(number), s.selection == "network"
        hoods = exchange.neighbourhoods(w_bar, s.jacobian, inputs, taus=len(s.taus))
        # Dense Jacobians are used for one client at a time.
        at_once = 1 if s.jacobian == "dense" else exchange.at_once(len(s.taus))
        while together := list(islice(hoods, at_once)):
            evolved = evolve_together(together, rate, s, self.federation)
            for hood, evolution in zip(together, evolved, strict=True):
                row = hood.client - first
                with may_diverge(self.federation, number, hood.client):
                    new[row], taus[row] = ntk_step(
                        hood, w_bar[row], rate, s, self.federation, evolution
                    )
        return RoundResult(new, taus)
