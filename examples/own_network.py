r"""A network of your own: squeeze-and-excitation on 8 x 8 digits, as a plugin, with its exact kernel.

Command:   python -m mpi_ntkdfl run quickstart --plugin examples/own_network.py \
               --set 'model={name: plugin, network: excited, options: {channels: 8}}' \
               --set clients=8 --set topology.degree=3 --set partition.samples=40 --set rounds=2 -o se.h5
Cost:      about 20 seconds on one core.
It shows:  any torch module whose samples do not see each other can be the model of the clients, for every
           method. The program checks at the start that the Jacobians are right, and refuses otherwise.
"""

import torch
from torch import nn

import mpi_ntkdfl as nd


class Excited(nn.Module):
    """A convolution whose channels are weighted by a small network (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, classes: int) -> None:
        """Makes the layers."""
        super().__init__()
        self.filters = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.squeeze = nn.Linear(channels, 4)
        self.excite = nn.Linear(4, channels)
        self.head = nn.Linear(channels * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [sample, 64] or [sample, 1, 8, 8] to [sample, classes]."""
        x = torch.relu(self.norm(self.filters(x.reshape(-1, 1, 8, 8))))
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = nn.functional.avg_pool2d(x * weight[:, :, None, None], 2)
        return self.head(x.flatten(1))


def excited(shape, classes, channels=8):
    """The factory: `shape` is the shape of one sample, `options` arrive as keywords."""
    return Excited(channels, classes)


nd.register_network("excited", excited)
