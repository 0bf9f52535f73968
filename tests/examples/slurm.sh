#!/bin/bash
# Run a Slurm of this one machine in the foreground, as root, with all its files in the folder DIR:
#
#     slurm.sh DIR CONTROLLER_PORT NODE_PORT
#
# Prints "ready" once it takes jobs, for commands that run with SLURM_CONF=DIR/slurm.conf, and ends with its input.
set -euo pipefail
dir=$1
host=$(hostname -s)
memory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')

mkdir -p "$dir/state" "$dir/spool"
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$2
SlurmdPort=$3
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf

started=()
end() { kill "${started[@]}" 2>/dev/null && wait; }
trap end EXIT
# --force: others than root need not reach the socket.
munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=2 </dev/null >"$dir/munged.out" 2>&1 &
started+=($!)
until [ -S "$dir/munge.socket" ]; do sleep 0.1; done
slurmctld -D -c </dev/null >"$dir/slurmctld.out" 2>&1 &
started+=($!)
slurmd -D -c </dev/null >"$dir/slurmd.out" 2>&1 &
started+=($!)
until [ "$(timeout 10 sinfo --noheader --format=%t 2>/dev/null)" = idle ]; do sleep 0.2; done
echo ready
cat >/dev/null
