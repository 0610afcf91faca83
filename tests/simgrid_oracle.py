"""One exchange of equal messages by SimGrid's CM02 model, run by the system's Python.

Reads a case as JSON: `up` and `down` in bytes per second, `latency`, `nbytes`, and `messages` as pairs of
source and target.
Prints, for every client, when its last message had come.
"""

import json
import sys

from simgrid import Actor, Engine, Link, LinkInRoute, Mailbox, NetZone

case = json.load(sys.stdin)
engine = Engine(
    [
        "oracle",
        "--cfg=network/model:CM02",
        "--cfg=network/TCP-gamma:0",
        "--cfg=network/crosstraffic:0",
        "--cfg=network/optim:Full",  # the default ended 2 of 20 cases too early
        "--log=root.threshold:critical",
    ]
)
zone = NetZone.create_full_zone("all")
clients = range(len(case["up"]))
hosts = [zone.create_host(f"h{i}", 1e9) for i in clients]
up, down = (
    [zone.create_link(f"{name}{i}", case[name][i]).seal() for i in clients]
    for name in ("up", "down")
)
for place, (i, j) in enumerate(case["messages"]):
    wire = zone.create_link(f"wire{place}", 1e15)
    wire.set_latency(case["latency"])
    wire.set_sharing_policy(Link.SharingPolicy.FATPIPE, None)
    path = [LinkInRoute(link) for link in (up[i], wire.seal(), down[j])]
    zone.add_route(hosts[i].netpoint, hosts[j].netpoint, None, None, path, False)
zone.seal()
done = [0.0 for _ in clients]


def send(i, j):
    Mailbox.by_name(f"{i}-{j}").put("x", int(case["nbytes"]))


def receive(i, j):
    Mailbox.by_name(f"{i}-{j}").get()
    done[j] = max(done[j], Engine.clock)


for i, j in case["messages"]:
    Actor.create(f"s{i}-{j}", hosts[i], send, i, j)
    Actor.create(f"r{i}-{j}", hosts[j], receive, i, j)
engine.run()
print(json.dumps(done))
