"""NTK-FL (Yue et al., "Neural tangent kernel empowered federated learning", ICML 2022): a server evolves.

NTK-DFL decentralises this method. All clients hold the same weights. In each round some clients, drawn at
random, send a server their Jacobians at these weights. The server evolves with the kernel of all their
samples and sends the new weights to all clients.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from mpi_ntkdfl.algorithms.base import Leg, Method, Needs, RoundResult, may_diverge
from mpi_ntkdfl.algorithms.steps import NtkSettings, ntk_step, ntk_step_work
from mpi_ntkdfl.algorithms.work import Load, Work
from mpi_ntkdfl.config.sections import MOST_CLIENTS
from mpi_ntkdfl.federation.clients import Federation
from mpi_ntkdfl.federation.exchange import Exchange
from mpi_ntkdfl.federation.formats import factored_format, samples_format
from mpi_ntkdfl.federation.neighbourhood import Neighbourhood
from mpi_ntkdfl.federation.server import model_of_server
from mpi_ntkdfl.model.network import Network
from mpi_ntkdfl.runtime.looks import DARK_GREY, LineStyle
from mpi_ntkdfl.topology.schedule import participants


class NtkFlSettings(NtkSettings):
    """Settings of NTK-FL; the NTK-DFL paper compares with 21 of 300 clients per round.

    Jacobians travel in the network's factored form. If it has none, the samples travel instead, because
    dense Jacobians of so many samples would take 13 GB.
    """

    feedback: ClassVar[bool] = False

    name: Literal["ntk-fl"] = "ntk-fl"
    clients_per_round: int = Field(default=21, ge=1, le=MOST_CLIENTS)
    """Participants per round, which the server chooses anew."""

    @property
    def sends(self) -> tuple[str, ...]:
        """Jacobians to the server, and new weights back."""
        return ("weights", "jacobians")


class NtkFl(Method[NtkFlSettings]):
    """One model, evolved on a server.

    The server asks clients that hold its model. A client that comes back receives it in its first round.
    """

    Settings = NtkFlSettings
    label = "NTK-FL"
    look = LineStyle(DARK_GREY, (10, 1.5, 1, 1.5), "*")

    def __init__(self, settings: NtkFlSettings, federation: Federation) -> None:
        """Prepares the method; it carries only the weights from round to round."""
        super().__init__(settings, federation)
        self.loss = settings.loss

    @classmethod
    def needs(cls, settings: NtkFlSettings, network: Network, dtype: torch.dtype) -> Needs:
        """The network's smallest message for Jacobians goes to the server, and weights come back."""
        factored = network.factored is not None
        form = factored_format(network, dtype) if factored else samples_format(network, dtype)
        return Needs(
            blocks=(form,) if factored else (),
            samples=not factored,
            taus=len(settings.taus),
            participants=settings.clients_per_round,
            legs=(Leg(form.phases, way="up"), Leg(("weights",), way="down")),
        )

    @classmethod
    def server_work(cls, settings: NtkFlSettings, load: Load) -> dict[str, Work]:
        """Counts the step with the kernel of all participants' samples."""
        return ntk_step_work(settings, load.network, load.own, load.itemsize)

    def round(self, weights: torch.Tensor, number: int, exchange: Exchange) -> RoundResult:
        """One round; see the module's head for the steps."""
        s, f = self.settings, self.federation
        able = f.presence.askable
        chosen = participants(f.placement.clients, s.clients_per_round, f.seed, number, able)
        w = model_of_server(exchange, weights)

        def answer(hood: Neighbourhood) -> tuple[torch.Tensor, int]:
            new, tau = w, 0
            with may_diverge(f, number):
                new, tau = ntk_step(hood, w, number, s, f)
            return new, tau

        new, tau = exchange.ask_server(w, chosen, answer)
        return RoundResult(new.repeat(len(weights), 1), [tau] * len(weights))
