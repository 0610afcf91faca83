r"""A control as a plugin: gradient descent on the linearised perceptron, with the full kernel.

NTK-DFL evolves all outputs with one kernel, the mean over the outputs (the trace kernel). The linearised
network itself has a kernel for each pair of outputs, and gradient descent on it evolves with all C x C of
them. This method takes these steps, so that the two approximations can be told apart:

    ntk-dfl                              linearised, one kernel for all outputs
    linearised (this file)               linearised, all kernels
    average-gd, data: neighbourhood      not linearised

Command:  python -m mpi_ntkdfl run paper-fashion-mnist --plugin benchmarks/linearised.py \
              --set algorithm.name=linearised --set clients=20 --set partition.samples=100 --set rounds=10
Needs:    the perceptron with one hidden layer.
"""

from typing import Literal

import torch

import mpi_ntkdfl as nd
from mpi_ntkdfl.algorithms.average_gd import AverageGd, AverageGdSettings
from mpi_ntkdfl.model.losses import one_hot, prediction
from mpi_ntkdfl.runtime.looks import LineStyle


class LinearisedSettings(AverageGdSettings):
    """Settings of average-gd; the samples of the neighbourhood are the default."""

    name: Literal["linearised"] = "linearised"
    data: Literal["own", "neighbourhood"] = "neighbourhood"


class Linearised(AverageGd):
    """Averaging, then gradient descent on the network linearised at the average."""

    Settings = LinearisedSettings
    label = "Linearised GD"
    look = LineStyle("#882255", (2, 1), "v")

    def candidates(self, w, data, lr, shift):
        s, network = self.settings, self.federation.network
        return descend(network, w, data.inputs, data.labels, lr, s.taus, s.loss, shift)


def descend(stack, w, inputs, labels, lr, taus, loss, shift=None):
    """The weights `[tau, param]` after each of `taus` steps on the linearised network."""
    (w1, b1), (w2, b2) = stack.weights_and_biases(w)
    before = torch.nn.functional.linear(inputs, w1, b1)
    hidden, open_ = before.relu(), (before > 0).to(w.dtype)
    outputs = torch.nn.functional.linear(hidden, w2, b2)
    targets = one_hot(labels, stack.classes, w.dtype)
    first = inputs @ inputs.T + 1  # Gram matrices of the inputs of both layers, with the bias
    second = hidden @ hidden.T + 1
    rate = lr / len(inputs)
    total, wanted = torch.zeros_like(outputs), []
    for step in range(1, taus[-1] + 1):
        residual = prediction(outputs if shift is None else outputs + shift, loss) - targets
        total += residual
        signal = (residual @ w2) * open_
        moved = ((first @ signal) * open_) @ w2.T + second @ residual
        outputs = outputs - rate * moved
        if step in taus:
            signals = (total @ w2) * open_
            parts = (signals.T @ inputs, signals.sum(0), total.T @ hidden, total.sum(0))
            wanted.append(w - rate * torch.cat([part.flatten() for part in parts]))
    return torch.stack(wanted)


nd.register_method(Linearised)
