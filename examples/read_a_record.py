"""A record as a pandas table, and the weights of a client as a torch state_dict.

Command:   python examples/read_a_record.py [RUN.h5]      (without one it makes a small record)
Cost:      about 10 seconds on one core; nothing but reading if a record is given.
It shows:  one row per evaluated round with every metric of the run; which client is worst; how far apart
           the clients' weights are.
"""

import sys
from pathlib import Path

import mpi_ntkdfl as nd

if len(sys.argv) > 1:
    record = nd.open_record(sys.argv[1])
else:
    config = nd.load_config("quickstart", clients=12, rounds=4)
    record = nd.run(config, Path("example-runs/read_a_record.h5"), overwrite=True)

print(f"{record.config.algorithm.name} on {record.config.dataset.name}, seed {record.config.seed}")
frame = record.frame()  # needs pandas; record.table() has the same columns as arrays
print(frame[["rounds", "accuracy", "client-accuracy", "deviation", "bytes"]].to_string(index=False))

by_client = record.clients("client-accuracy")[
    -1
]  # one row per evaluated round, one column per client
worst = int(by_client.argmin())
print(f"the worst client is {worst}: accuracy {by_client[worst]:.3f}")

own, average = record.weights(worst), record.average()
for name, tensor in own.items():
    distance = float((tensor - average[name]).norm())
    print(f"{name}: {tuple(tensor.shape)}, {distance:.3f} from the average of all clients")
