#!/usr/bin/env bash
# A real SLURM for the tests, with munge, in a folder of its own; beside another SLURM it does no harm.
#
#   tests/slurm_cluster.sh start FOLDER [PID]    prints the variables that clients need: eval "$(...)"; with PID, it
#                                                stops by itself when that process is gone
#   tests/slurm_cluster.sh stop FOLDER           cancels all jobs and leaves no process behind
#   tests/slurm_cluster.sh kill FOLDER NODE      the node dies: its slurmd, its steps and what they run
#   tests/slurm_cluster.sh revive FOLDER NODE    and is there again
#   tests/slurm_cluster.sh blind FOLDER NODE HIDDEN   the node sees the folder HIDDEN empty, until it is killed
#
# NODES: 1; with 2 this machine is two nodes, by its name and as localhost. SLURM_CPUS: how many it believes to have (8).
# SLURM_TASK_PLUGIN=task/affinity binds each process to its cores; not with more of them than there are. Needs root and
# Debian's packages slurm-wlm and munge. No accounting: sacct answers nothing.
set -euo pipefail

fail() { echo "slurm_cluster.sh: error: $*" >&2; exit 2; }
[ $# -ge 2 ] || fail "start FOLDER [PID], or stop FOLDER"
action=$1 folder=$2
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$folder/slurm.conf

nodes() { # their names, which must resolve
  hostname -s
  [ "${NODES:-1}" = 1 ] || echo localhost
}

free_ports() { # one for slurmctld and one for each node
  python3 - "$((1 + ${NODES:-1}))" <<'PY'
import socket
import sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

write_configuration() {
  local host memory ports node number=0
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  read -r -a ports <<<"$(free_ports)"
  # cred_expire: a job that is queued again waits so many seconds (120 by default).
  cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=${SLURM_TASK_PLUGIN:-task/none}
${SLURM_TASK_PLUGIN:+TaskPluginParam=autobind=threads}
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PriorityType=priority/basic
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
MailProg=/bin/true
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=ALL MaxTime=INFINITE State=UP
CONF
  for node in $(nodes); do
    number=$((number + 1))
    echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[$number]} CPUs=${SLURM_CPUS:-8}" \
      "RealMemory=$((memory / ${NODES:-1})) Feature=fast State=UNKNOWN" >>"$SLURM_CONF"
  done
}

start() {
  [ "$(id -u)" = 0 ] || fail "SLURM's daemons need root"
  for program in munged slurmctld slurmd srun; do
    command -v "$program" >/dev/null || fail "$program: not installed: apt-get install slurm-wlm munge"
  done
  [ ! -e "$SLURM_CONF" ] || fail "$folder: holds a cluster already"
  mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
  chmod 755 "$folder"
  chmod 700 "$folder/munge"
  head -c 1024 /dev/urandom >"$folder/munge/key"
  chmod 600 "$folder/munge/key"
  write_configuration
  trap 'stop; fail "the cluster did not start: see $folder/*.log"' ERR
  chmod 711 "$folder/munge"
  munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >&2
  slurmctld -c >&2
  for node in $(nodes); do slurmd -c -N "$node" >&2; done
  for _ in $(seq 100); do
    [ "$(sinfo -h -p main -o '%t %D' 2>/dev/null)" != "idle ${NODES:-1}" ] || break
    sleep 0.2
  done
  [ "$(sinfo -h -p main -o '%t %D')" = "idle ${NODES:-1}" ]
  if [ -n "${3:-}" ]; then
    (
      trap - ERR
      while kill -0 "$3" 2>/dev/null && [ -e "$SLURM_CONF" ]; do sleep 1; done
      stop
    ) >/dev/null 2>&1 &
  fi
  echo "export SLURM_CONF='$SLURM_CONF'"
}

stop() {
  trap - ERR
  [ -e "$SLURM_CONF" ] || return 0
  if scancel --full --signal=KILL -u root 2>/dev/null && scancel -u root 2>/dev/null; then
    for _ in $(seq 50); do
      [ -n "$(squeue -h 2>/dev/null)" ] || break
      sleep 0.2
    done
  fi
  for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
    end_process "$(cat "$file" 2>/dev/null || true)"
  done
  for pid in $(pgrep -x slurmstepd || true); do # those of this cluster hold its log open or work in its folder
    if [ -n "$(find "/proc/$pid/fd" "/proc/$pid/cwd" -lname "$folder/*" 2>/dev/null)" ]; then end_process "$pid"; fi
  done
  mv "$SLURM_CONF" "$SLURM_CONF.stopped"
}

kill_node() { # kill_node NODE
  local step
  kill -9 "$(cat "$folder/slurmd.$1.pid")"
  for step in $(pgrep -x slurmstepd || true); do
    [ -n "$(find "/proc/$step/fd" -lname "$folder/slurmd.$1.log" 2>/dev/null)" ] || continue
    pkill -9 -P "$step" || true
    kill -9 "$step" || true
  done
  scontrol update NodeName="$1" State=DOWN Reason=died # at once; by itself it is noticed after SlurmdTimeout
}

revive_node() { slurmd -c -N "$1" >&2; } # revive_node NODE: ReturnToService lets it work again

blind_node() { # blind_node NODE HIDDEN, in a mount namespace of its own
  kill_node "$1"
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --mount bash -c 'mount -t tmpfs none "$2" && exec slurmd -c -N "$1"' blind "$1" "$2" >&2
}

end_process() {
  [ -n "$1" ] || return 0
  kill "$1" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$1" 2>/dev/null || true
}

case $action in
  start) start "$@" ;;
  stop) stop ;;
  kill) kill_node "$3" ;;
  revive) revive_node "$3" ;;
  blind) blind_node "$3" "$4" ;;
  *) fail "$action: not start, stop, kill, revive or blind" ;;
esac
