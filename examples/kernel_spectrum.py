"""The empirical neural tangent kernel of any torch module, and its spectrum; no MPI, no run.

Command:   python examples/kernel_spectrum.py
Cost:      about 5 seconds on one core.
It shows:  the exact kernel of a small convolutional network at its start and after 200 steps of SGD:
           how many eigenvalues carry 99 % of the trace, and how well the labels lie in them.
"""

import torch

import mpi_ntkdfl as nd

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1),
    torch.nn.GroupNorm(2, 8),
    torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(4),
    torch.nn.Flatten(),
    torch.nn.Linear(128, 3),
)
labels = torch.randint(3, (60,))
images = torch.randn(60, 1, 8, 8) + labels[:, None, None, None]


def report(when: str) -> None:
    """Prints the spectrum of the kernel [sample, sample] at the module's present parameters."""
    kernel = nd.kernel(network, images).double()
    values, vectors = torch.linalg.eigh(kernel)
    values, vectors = values.flip(0), vectors.flip(1)
    carried = int((values.cumsum(0) < 0.99 * values.sum()).sum()) + 1
    targets = torch.nn.functional.one_hot(labels, 3).double() - 1 / 3
    aligned = (vectors[:, :3].T @ targets).square().sum() / targets.square().sum()
    print(
        f"{when}: largest eigenvalue {values[0]:.1f}, {carried} of {len(values)} eigenvalues carry 99 %, "
        f"{100 * aligned:.0f} % of the labels lie in the first three directions"
    )


report("at the start     ")
descent = torch.optim.SGD(network.parameters(), lr=0.05)
for _ in range(200):
    descent.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    descent.step()
report("after 200 steps  ")
