"""The files of a throw-away cluster: slurm.conf, cgroup.conf and a munge key, all in one directory.

Node k is 127.0.77.k on a port of its own, so several slurmd run on one machine without network set-up (Debian's build
has MULTIPLE_SLURMD). Nothing of /etc is read; the only thing a client needs is SLURM_CONF.
"""

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

_CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job is requeued cred_expire + 1 seconds after it ended; Slurm's default would be two minutes.
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
SlurmctldPort={port}
# The port where ranks meet follows from the job's number, and all these clusters share one machine.
FirstJobId={first_job}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# No cgroups, no PMIx: neither is there in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
# Quick: 6 s make 16 s until a silent node counts as down; Slurm's default makes five minutes.
SlurmdTimeout=6
SlurmctldTimeout=10
TCPTimeout=2
MessageTimeout=5
KillWait={kill_wait_seconds}
UnkillableStepTimeout=10
BatchStartTimeout=5
InactiveLimit=0
# Ended jobs stay visible, which replaces accounting.
MinJobAge=3600
WaitTime=0
ReturnToService=1
RebootProgram=/bin/true
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=1,bf_min_age_reserve=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=DEFAULT CPUs=4 RealMemory=20000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def node_names(number: int) -> list[str]:
    """Return the names of so many nodes."""
    return [f"node{index}" for index in range(1, number + 1)]


def write_configuration(root: Path, *, num_nodes: int, kill_wait_seconds: int) -> Path:
    """Make all folders and files of a cluster under a root; returns the path for SLURM_CONF."""
    for name in ("etc", "state", "spool", "log", "run", "munge"):
        (root / name).mkdir(parents=True)
    (root / "munge").chmod(0o711)  # munge refuses a folder that others may write; clients must reach the socket
    (root / "state").chmod(0o700)
    key = root / "munge" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    port, *node_ports = free_ports(num_nodes + 1)
    host = socket.gethostname()
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.77.{index} Port={node_port}"
        for index, (name, node_port) in enumerate(zip(node_names(num_nodes), node_ports, strict=True), start=1)
    ]
    conf = root / "etc" / "slurm.conf"
    first_job = 1 + secrets.randbelow(1_000_000)
    values = {"root": root, "host": host, "port": port, "first_job": first_job, "kill_wait_seconds": kill_wait_seconds}
    conf.write_text(_CONF.format(**values, nodes="\n".join(nodes)))
    # slurmd loads a cgroup plugin whatever happens; this keeps it from mounting anything.
    (root / "etc" / "cgroup.conf").write_text("CgroupAutomount=no\n")
    return conf


def free_ports(number: int) -> Sequence[int]:
    """Return so many different ports that are free right now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for listener in sockets:
            listener.bind(("0.0.0.0", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
