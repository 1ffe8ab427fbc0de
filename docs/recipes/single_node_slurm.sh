#!/bin/bash
# A Slurm of one node, this one, to try recipes on; no systemd, no database. As root, with Debian's
# slurm-wlm and munge installed:
#
#     bash single_node_slurm.sh start FOLDER [CPUS]
#     export SLURM_CONF=FOLDER/slurm.conf
#     sinfo
#     bash single_node_slurm.sh stop FOLDER
#
# Everything it needs and leaves lies in FOLDER.
set -euo pipefail
action=${1:?start or stop} folder=$(realpath -m "${2:?a folder}") cpus=${3:-2}

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -s "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true; fi
    done
}

start() {
    local host memory
    host=$(hostname -s) memory=$(awk "/^MemTotal/ {print int(\$2 / 1024)}" /proc/meminfo)
    mkdir -p "$folder"/{state,spool}
    chmod 755 "$folder"
    if [ ! -s "$folder/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    fi
    mkdir -p "$folder/munge"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
# a requeued job waits until its credential has expired: soon, where nothing but a recipe is tried
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
JobRequeue=1
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; then return; fi
        sleep 0.5
    done
    echo "the node did not come up; see $folder/*.log" >&2
    exit 1
}

"$action"
