"""A real Slurm of one node, in a folder of its own, for the tests in this folder.

Needs root and the Debian packages slurm-wlm and munge, nothing that runs already: munge has its own
key and socket, both daemons have free ports, so other instances are not disturbed. The node claims
more CPUs than the machine has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "scancel")
CPUS = 32
GPUS = 4
_SBIN = "/usr/sbin:/usr/local/sbin"

# A requeued job waits until its old credential has expired, two minutes unless told otherwise, and
# until the scheduler looks at it again.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here, or nothing."""
    if os.geteuid() != 0:
        return "needs root to start a Slurm of its own"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"needs the Debian packages slurm-wlm and munge (no {lacking[0]})" if lacking else ""


def _path() -> str:
    return f"{os.environ['PATH']}:{_SBIN}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Attributes:
        folder: its configuration, state and logs.
    """

    folder: Path

    def call(
        self,
        *words: object,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        limit: float = 120,
    ) -> str:
        """Runs a Slurm command that must succeed and returns what it prints."""
        done = self.try_call(*words, folder=folder, variables=variables, limit=limit)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def try_call(
        self,
        *words: object,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        limit: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command with this Slurm as its Slurm."""
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        return subprocess.run(
            [str(word) for word in words],
            env={**_outside_slurm(environment()), **own, **(variables or {})},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )

    def state(self, job: str) -> str:
        """RUNNING, COMPLETED and so on; of an array the states of its tasks, each once."""
        told = self.call("scontrol", "-o", "show", "job", job)
        words = [word for line in told.splitlines() for word in line.split()]
        return " ".join(
            sorted({w.removeprefix("JobState=") for w in words if w.startswith("JobState=")})
        )

    def wait(self, job: str, *states: str, limit: float = 120) -> str:
        """Waits until a job is in one of `states`, by default in one that it does not leave."""
        final = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + limit
        while (state := self.state(job)) not in final:
            assert time.monotonic() < deadline, f"job {job} is {state} after {limit} s"
            time.sleep(0.5)
        return state


def _outside_slurm(variables: Mapping[str, str]) -> dict[str, str]:
    """Without what a job of another Slurm, in which the tests may run, would pass on."""
    prefixes = ("SLURM_", "SBATCH_", "PMI", "OMPI_COMM_")
    return {name: value for name, value in variables.items() if not name.startswith(prefixes)}


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Starts munge, controller and node daemon in `folder`; ends them and their jobs afterwards."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    (folder / "munge/key").write_bytes(secrets.token_bytes(128))
    (folder / "munge/key").chmod(0o400)
    controller, daemon = _free_ports(2)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host, controller=controller, daemon=daemon, folder=folder, cpus=CPUS, gpus=GPUS
        )
    )
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    cluster = Cluster(folder)
    munge = [
        *("munged", "--foreground", "--force", f"--key-file={folder}/munge/key"),
        *(f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"),
        *(f"--seed-file={folder}/munge/seed", f"--log-file={folder}/munge/log", "--num-threads=1"),
    ]
    with contextlib.ExitStack() as daemons:
        for words in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
            daemons.enter_context(_daemon(folder, words))
            if words is munge:
                _until(lambda: (folder / "munge/socket").exists(), "munge does not start", folder)
        _until(
            lambda: cluster.try_call("sinfo", "-h", "-o", "%T").stdout.strip() == "idle",
            "Slurm does not come up",
            folder,
        )
        try:
            yield cluster
        finally:
            cluster.try_call("scancel", "--user=root")
            quiet = lambda: not cluster.try_call("squeue", "-h").stdout.strip()  # noqa: E731
            with contextlib.suppress(AssertionError):
                _until(quiet, "jobs do not end", folder)


@contextlib.contextmanager
def _daemon(folder: Path, words: list[str]) -> Iterator[None]:
    log = (folder / f"{words[0]}.log").open("w")
    process = subprocess.Popen(
        words,
        env={
            **_outside_slurm(os.environ),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": _path(),
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _until(condition, complaint: str, folder: Path, limit: float = 40) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        logs = "\n".join(f"{log}:\n{log.read_text()[-1000:]}" for log in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"{complaint}:\n{logs}"
        time.sleep(0.2)
