"""The starts of a run: on which machines and with which code its rounds were computed.

A run that was resumed has several starts, perhaps on other machines and with other code. The attributes
of its record describe the first start only, so comparisons of seconds or code look at all starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpi_ntkdfl.runtime import plugins
from mpi_ntkdfl.storage.schema import starts_of


@dataclass(frozen=True)
class Start:
    """One start of a run that computed at least one round.

    Attributes:
        done: number of rounds that were done before it.
        told: the recorded facts about it as text, by the names of the record's attributes.
        threads: number of threads of each rank.
    """

    done: int
    told: Mapping[str, str]
    threads: str

    @property
    def ranks(self) -> int:
        """R."""
        return int(self.told["ranks"])

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return len(set(json.loads(self.told["hosts"])))

    @property
    def cores(self) -> int:
        """Number of cores of all hosts that its ranks may use; 0 if the record does not say it."""
        if by_host := json.loads(self.told.get("host_cores", "{}")):
            return sum(by_host.values())
        return int(self.told.get("cores", 0)) * self.hosts

    @property
    def machine(self) -> dict[str, str]:
        """The facts on which seconds depend."""
        return {
            "ranks": str(self.ranks),
            "device": self.told["device"],
            "hosts": str(self.hosts),
            "threads": self.threads,
            "cores": str(self.cores),
        }

    @property
    def code(self) -> dict[str, str]:
        """The code: SHA-256 of the package's sources and of plugins; empty text if not recorded."""
        brought = plugins.from_json(self.told.get("plugins", "[]"))
        files = ", ".join(f"{each.name} {each.sha256[:12]}" for each in brought)
        return {"sources": self.told.get("sources", "")[:12], "plugins": files}


def starts(attributes: Mapping[str, object], done: int, threads: object) -> tuple[Start, ...]:
    """The starts of a run that computed rounds, in order; the last one if none has done a round.

    Args:
        attributes: the attributes of the record.
        done: number of rounds in the record.
        threads: number of threads in the configuration, for starts that recorded none.

    Raises:
        Exception: of many kinds, if the record is damaged.
    """
    every = starts_of({"resumed": "[]", **attributes})
    begins = [int(each.get("round", 0)) if place else 0 for place, each in enumerate(every)]
    ends = [*begins[1:], done]
    described = []
    for told, begin, end in zip(every, begins, ends, strict=True):
        texts = {str(key): str(value) for key, value in told.items()}
        threads_told = texts.get("threads", str(threads))
        described.append((begin < end, Start(begin, texts, threads_told)))
    computed = [start for worked, start in described if worked]
    return tuple(computed or [described[-1][1]])


def over_time(values: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The values of all starts by name, such as `2, then 3`, or one value if it never changed."""
    joined = {}
    for name in dict.fromkeys(name for each in values for name in each):
        several = [each.get(name, "") for each in values]
        changes = [v for place, v in enumerate(several) if not place or v != several[place - 1]]
        joined[name] = ", then ".join(changes)
    return joined
