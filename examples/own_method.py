r"""A method of your own in one file: FedProx without a server, as a plugin.

Command:   python -m mpi_ntkdfl run quickstart --plugin examples/own_method.py \
               --set algorithm.name=prox --set rounds=4 -o prox.h5
Cost:      about 15 seconds on one core; under mpirun it gives the same bits on any number of ranks.
It shows:  all that a method has to say. Its settings are checked, `check` plans it, figures have its
           label and colour, and runs resume.

Each client takes full-batch gradient steps on its own loss plus mu / 2 ||w - w_bar||^2, where w_bar is
the average over its neighbourhood (Li et al., "Federated optimization in heterogeneous networks",
MLSys 2020, without their server).
"""

from typing import Literal

from pydantic import Field

import mpi_ntkdfl as nd
from mpi_ntkdfl.algorithms.base import Method, Needs, RoundResult, may_diverge, require_finite
from mpi_ntkdfl.config import MethodSettings
from mpi_ntkdfl.runtime.looks import LineStyle


class ProxSettings(MethodSettings):
    """Settings of the section `algorithm:`."""

    name: Literal["prox"] = "prox"
    lr: float = Field(default=0.1, gt=0, le=1e3)
    steps: int = Field(default=20, ge=1, le=10_000)
    mu: float = Field(default=0.1, ge=0, le=1e3)


class Prox(Method[ProxSettings]):
    """Average with the neighbours, then descend close to the average."""

    Settings = ProxSettings
    label = "Prox"
    look = LineStyle("#AA4499", (3, 1), "d")

    @classmethod
    def needs(cls, settings, network, dtype):
        """Every client sends its weights to its neighbours once per round."""
        return Needs(vectors=("weights",))

    def round(self, weights, number, exchange):
        """Averages, then takes the steps of each client."""
        s, f = self.settings, self.federation
        average = exchange.average(weights)
        new = average.clone()
        for row, client in enumerate(f.owned):
            own = f.samples[client]
            with may_diverge(f, number, client):
                w = average[row].clone()
                for _ in range(s.steps):
                    gradient = f.network.loss_gradient(w, own.inputs, own.labels, self.loss)
                    w = w - s.lr * (gradient + s.mu * (w - average[row]))
                require_finite(w, "lower algorithm.lr")
                new[row] = w
        return RoundResult(new)


nd.register_method(Prox)
