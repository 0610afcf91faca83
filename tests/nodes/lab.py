"""Several hosts on one machine, out of Linux namespaces, for the tests in this folder.

Each host has its own network, host name, System V memory, /dev/shm and /run; a bridge joins the networks.
Files elsewhere, cores and the kernel are shared. `launch` stands in for ssh: MPI's launcher calls it with
a host and a command. Nothing touches the machine's own network. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import environment, find_mpirun

SUBNET = "10.99.0"

# Runs as the first process of a host. What it mounts is seen on that host only.
_INIT = """
hostname "$1"
mount --make-rprivate /
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/munge /run/slurmd /run/cgroup
# Network devices below /sys are those of the network that mounts it.
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sys /sys
mount --rbind /run/cgroup /sys/fs/cgroup
mount --bind "$2/hosts" /etc/hosts
if [ -d "$2/slurm" ]; then mount --bind "$2/slurm" /etc/slurm; fi
echo ready
exec sleep infinity
"""

# Stands in for ssh: options, a host, the words of a command.
_LAUNCH = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1
shift
exec {nsenter} -t "$(cat {folder}/$host.pid)" -n -u -i -m -- sh -c "$*"
"""


def missing(*programs: str) -> str:
    """Why no hosts can be made here that have `programs`, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux to make hosts out of namespaces"
    for name in ("ip", "nsenter", "unshare", *programs):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"needs {name} (Debian packages iproute2, util-linux, slurm-wlm, munge)"
    pair = ("ip", "link", "add", "name", "one", "type", "veth", "peer", "name", "two")
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--ipc", "--mount", *pair],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"needs namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Lab:
    """Hosts that are up.

    Attributes:
        folder: for what the lab needs; all hosts see it.
        prefix: of the names of its network namespaces.
        hosts: by name the process whose namespaces they are.
    """

    folder: Path
    prefix: str
    hosts: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def inside(self, host: str, *words: object) -> list[str]:
        """The command line that runs `words` on a host."""
        enter = ("nsenter", "-t", str(self.hosts[host].pid), "-n", "-u", "-i", "-m", "--")
        return [*enter, *map(str, words)]

    def run(
        self,
        host: str,
        *words: object,
        variables: Mapping[str, str] | None = None,
        limit: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host to its end."""
        return subprocess.run(
            self.inside(host, *words),
            env={**environment(), "OMP_NUM_THREADS": "1", **(variables or {})},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            cwd=self.folder,
        )

    def mpirun(self, per_host: int, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs `python WORDS` with some ranks on every host, under MPICH's mpirun on the first."""
        names = list(self.hosts)
        launch = ("-launcher", "ssh", "-launcher-exec", self.folder / "launch")
        spread = ("-hosts", ",".join(names), "-ppn", per_host, "-n", per_host * len(names))
        return self.run(names[0], find_mpirun(), *launch, *spread, sys.executable, *words)

    def sent(self, host: str) -> int:
        """Bytes that a host has sent to the network so far."""
        counter = "/sys/class/net/eth0/statistics/tx_bytes"
        told = _ip("netns", "exec", f"{self.prefix}-{host}", "cat", counter)
        return int(told)


@contextlib.contextmanager
def up(folder: Path, names: Sequence[str], called: Sequence[str] | None = None) -> Iterator[Lab]:
    """Makes hosts and joins them; ends them and all their processes afterwards.

    Args:
        folder: an empty one, not below /run or /dev/shm.
        names: of the hosts.
        called: what each host calls itself; by default its name.
    """
    lab = Lab(folder, f"lab{secrets.token_hex(2)}")
    addresses = [f"{SUBNET}.{number}" for number in range(1, len(names) + 1)]
    lines = [f"{address} {name}\n" for address, name in zip(addresses, names, strict=True)]
    if called:  # the launcher, on the first host, says its own name
        lines.append(f"{addresses[0]} {called[0]}\n")
    (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
    launch = folder / "launch"
    launch.write_text(_LAUNCH.format(nsenter=shutil.which("nsenter"), folder=folder))
    launch.chmod(0o755)
    spaces = [f"{lab.prefix}-{name}" for name in ("switch", *names)]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        _ip("-n", spaces[0], "link", "add", "br0", "type", "bridge")
        _ip("-n", spaces[0], "link", "set", "br0", "up")
        for name, call, address in zip(names, called or names, addresses, strict=True):
            _cable(lab, name, address)
            lab.hosts[name] = _boot(lab, name, call)
        yield lab
    finally:
        for process in lab.hosts.values():
            process.kill()
            process.wait()
        for space in spaces:
            for pid in _ip("netns", "pids", space).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            _ip("netns", "delete", space)


def _cable(lab: Lab, name: str, address: str) -> None:
    switch, space = f"{lab.prefix}-switch", f"{lab.prefix}-{name}"
    peer = ("type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("-n", switch, "link", "add", f"p-{name}", *peer)
    _ip("-n", switch, "link", "set", f"p-{name}", "master", "br0", "up")
    _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", space, "link", "set", device, "up")


def _boot(lab: Lab, name: str, called: str) -> subprocess.Popen[str]:
    network = ("nsenter", f"--net=/run/netns/{lab.prefix}-{name}")
    process = subprocess.Popen(
        [
            *network,
            "unshare",
            "--uts",
            "--ipc",
            "--mount",
            "sh",
            "-ec",
            _INIT,
            "sh",
            called,
            str(lab.folder),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == "ready\n", said
    (lab.folder / f"{name}.pid").write_text(str(process.pid))
    return process


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "pids" in words, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


# -------------------------------------------------------------------------------------------- Slurm

SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
CPUS = 4

_CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/run/munge/socket,cred_expire=5
StateSaveLocation={folder}/slurm/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={names} CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def prepare_slurm(folder: Path, names: Sequence[str]) -> None:
    """Writes the configuration of a Slurm with one slurmd per host; before `up`."""
    (folder / "slurm/state").mkdir(parents=True)
    (folder / "slurm/key").write_bytes(secrets.token_bytes(128))
    (folder / "slurm/key").chmod(0o400)
    (folder / "slurm/slurm.conf").write_text(
        _CONFIGURATION.format(first=names[0], names=",".join(names), cpus=CPUS, folder=folder)
    )


def start_slurm(lab: Lab, limit: float = 40) -> None:
    """Starts munge and slurmd on all hosts, the controller on the first; they end with the hosts."""
    key = lab.folder / "slurm/key"
    munge = ("munged", "--force", f"--key-file={key}", "--socket=/run/munge/socket")
    files = ("pid", "seed", "log")
    more = [f"--{name}-file=/run/munge/{name}" for name in files]
    first = next(iter(lab.hosts))
    for name in lab.hosts:
        for words in ((*munge, *more), ("slurmd", "-N", name)):
            done = lab.run(name, *words)
            assert done.returncode == 0, done.stderr
        if name == first:
            lab.run(name, "slurmctld")
    deadline = time.monotonic() + limit
    while lab.run(first, "sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() != str(
        len(lab.hosts)
    ):
        assert time.monotonic() < deadline, "Slurm does not come up"
        time.sleep(0.3)
