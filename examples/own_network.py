r"""A network of your own: squeeze-and-excitation on 8 x 8 digits, as a plugin, with its exact kernel.

Command:   python -m mpi_ntkdfl run quickstart --plugin examples/own_network.py \
               --set 'model={name: plugin, network: excited, options: {channels: 8}}' \
               --set clients=8 --set topology.degree=3 --set partition.samples=40 --set rounds=2 -o se.h5
Cost:      about 20 seconds on one core.
It shows:  any torch module whose samples do not see each other can be the model of the clients, for every
           method. The program checks at the start that the Jacobians are right, and refuses otherwise.
"""

from torch import nn

import mpi_ntkdfl as nd


class Excitation(nn.Module):
    """Weights channels by a small network of their means (Hu et al., CVPR 2018)."""

    def __init__(self, channels):
        """Makes the layers of the small network."""
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        """From and to [sample, channel, row, column]."""
        shares = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * shares[:, :, None, None]


def excited(shape, classes, channels=8):
    """The factory: `shape` is the shape of one sample; `options` arrive as keywords."""
    filters = nn.Conv2d(shape[0], channels, 3, padding=1), nn.GroupNorm(2, channels), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes)
    return nn.Sequential(*filters, Excitation(channels), *head)


nd.register_network("excited", excited)
