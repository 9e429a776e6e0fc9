#!/usr/bin/env bash
# A complete SLURM on this one machine, to try the cluster commands without a cluster: controller, node, accounting
# (slurmdbd, MariaDB) and munge, all on the loopback interface, all in one private folder.
#
#   workflow/slurm-local.sh start | stop | status
#
# Needs Debian or Ubuntu, root, and some packages; it installs nothing, and says what is missing. For containers and
# virtual machines: it makes one link, /etc/slurm/slurm.conf, while it runs. `stop` ends only what `start` started.
#   SLURM_LOCAL_DIR   its folder, by default ~/.cache/vaegap-slurm: configuration, keys, data base, logs
#   SLURM_LOCAL_GPUS  how many GPUs the node claims to have, by default 0. They are only counted, so that the options
#                     of a GPU queue can be tried on a machine without any.
#   SLURM_LOCAL_MB    the node's memory, by default most of what the machine has
set -euo pipefail

DIR=${SLURM_LOCAL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vaegap-slurm}
HOST=$(hostname -s)
CPUS=$(nproc)
GPUS=${SLURM_LOCAL_GPUS:-0}
MB=${SLURM_LOCAL_MB:-$(awk '/MemTotal/ {print int($2 / 1024 * 0.85)}' /proc/meminfo)}
LINK=/etc/slurm/slurm.conf
PORTS="6817 6818 6819" # slurmctld, slurmd, slurmdbd
DAEMONS="slurmd slurmctld slurmdbd mariadbd munged" # in the order in which they are stopped

die() { printf 'slurm-local: %s\n' "$*" >&2; exit 1; }
born() { awk '{print $22}' "/proc/$1/stat" 2>/dev/null; } # a process's start: its number may be another's by now
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

ours() { # NAME: the number of our daemon, if it runs
  local pid start
  read -r pid start 2>/dev/null <"$DIR/run/$1.pid" && [ -n "$start" ] && [ "$(born "$pid")" = "$start" ] && echo "$pid"
}

launch() { # NAME COMMAND...: start a daemon in the background and note its number
  local name=$1 pid; shift
  setsid "$@" </dev/null >"$DIR/log/$name.log" 2>&1 &
  pid=$!
  echo "$pid $(born "$pid")" >"$DIR/run/$name.pid"
}

wait_for() { # SECONDS NAME COMMAND...: until the daemon answers
  local tries=$(($1 * 5)) name=$2 i; shift 2
  for ((i = 0; i < tries; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  tail -n 5 "$DIR/log/$name.log" >&2 || true
  echo "slurm-local: $name did not answer; its log is $DIR/log/$name.log" >&2
  return 1
}

check() {
  local pair missing="" port
  for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client slurmdbd:slurmdbd munged:munge \
    mariadbd:mariadb-server mariadb-install-db:mariadb-server; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
  done
  if [ -n "$missing" ]; then
    missing=$(tr ' ' '\n' <<<"$missing" | sort -u | xargs)
    die "these Debian packages are missing: $missing
  cure: apt-get install --no-install-recommends $missing"
  fi
  [ "$(id -u)" = 0 ] || die "needs root: its daemons run as root, best in a container or a virtual machine"
  getent ahostsv4 "$HOST" | grep -q '^127\.' ||
    die "the host name $HOST must mean this machine's loopback: add the line \"127.0.0.1 $HOST\" to /etc/hosts"
  if [ -e $LINK ] || [ -L $LINK ]; then
    [ "$(readlink $LINK)" = "$DIR/etc/slurm.conf" ] || [ ! -e $LINK ] ||
      die "there is a SLURM on this machine already ($LINK); use that one"
  fi
  for port in $PORTS; do
    ! answers "$port" || die "port $port of 127.0.0.1 is taken; is there a SLURM on this machine already?"
  done
}

configure() {
  mkdir -p "$DIR"/{etc,run,log,state,spool,munge,mysql}
  chmod 755 "$DIR" "$DIR/munge"
  [ -s "$DIR/munge/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/munge.key")
  local gres="" types="" i
  if [ "$GPUS" -gt 0 ]; then
    types=$'GresTypes=gpu\nAccountingStorageTRES=gres/gpu' gres="Gres=gpu:$GPUS"
    mkdir -p "$DIR/gpus"
    for ((i = 0; i < GPUS; i++)); do touch "$DIR/gpus/$i"; done
    echo "NodeName=$HOST Name=gpu File=$DIR/gpus/[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
  else
    rm -f "$DIR/etc/gres.conf"
  fi
  # NoInAddrAny: listen on what the host name means, the loopback, and not on all interfaces.
  # AccountingStoragePass: the link to slurmdbd does not read AuthInfo. Sampling each second and OverMemoryKill: there
  # are no cgroups here to enforce memory limits.
  cat >"$DIR/etc/slurm.conf" <<X
ClusterName=mini
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/munge/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/run/slurmctld.own.pid
SlurmdPidFile=$DIR/run/slurmd.own.pid
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=20
MinJobAge=300
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,batch_sched_delay=0,sched_min_interval=0,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=6819
AccountingStoragePass=$DIR/munge/munge.sock
AccountingStoreFlags=job_comment
$types
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MB $gres State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
X
  (umask 077 && cat >"$DIR/etc/slurmdbd.conf") <<X
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=6819
SlurmUser=root
DebugLevel=info
PidFile=$DIR/run/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
X
  chmod 600 "$DIR/etc/slurmdbd.conf" # slurmdbd insists on it
}

up() { # each daemon answers before the next one starts
  export SLURM_CONF="$DIR/etc/slurm.conf" MYSQL_UNIX_PORT="$DIR/mysql/mysql.sock"
  mkdir -p /etc/slurm
  # SLURM_CONF alone is not enough: Snakemake's jobs lose the SLURM_* variables before their inner srun
  ln -sfn "$SLURM_CONF" $LINK
  launch munged munged --foreground --num-threads=2 --key-file="$DIR/munge/munge.key" \
    --socket="$DIR/munge/munge.sock" --seed-file="$DIR/munge/munge.seed" --pid-file="$DIR/run/munged.own.pid"
  wait_for 10 munged bash -o pipefail -c "munge -S '$DIR/munge/munge.sock' -n | unmunge -S '$DIR/munge/munge.sock'"
  if [ ! -d "$DIR/mysql/data/mysql" ]; then
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql/data" \
      --auth-root-authentication-method=normal --skip-test-db >"$DIR/log/install-db.log" 2>&1 ||
      { echo "slurm-local: the data base could not be made; see $DIR/log/install-db.log" >&2; return 1; }
  fi
  launch mariadbd mariadbd --no-defaults --user=root --datadir="$DIR/mysql/data" --socket="$MYSQL_UNIX_PORT" \
    --pid-file="$DIR/run/mariadbd.own.pid" --skip-networking --innodb-buffer-pool-size=64M
  wait_for 60 mariadbd mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" -uroot ping
  launch slurmdbd slurmdbd -D
  wait_for 60 slurmdbd answers 6819
  sacctmgr -n -P show cluster format=cluster | grep -qx mini || sacctmgr -i add cluster mini >/dev/null
  launch slurmctld slurmctld -D
  wait_for 60 slurmctld bash -c 'scontrol ping | grep -q UP'
  launch slurmd slurmd -D
  wait_for 60 slurmd scontrol show node "$HOST"
  scontrol update "NodeName=$HOST" State=RESUME >/dev/null 2>&1 || true # if a crash has left it drained
  wait_for 60 slurmd bash -c "sinfo -h -o %T | grep -qE 'idle|mixed|alloc'"
}

start() {
  if [ -n "$(ours slurmctld)" ] && [ -n "$(ours slurmd)" ]; then
    echo "slurm-local: runs already, in $DIR"
    return
  fi
  stop
  check
  configure
  set +e # a command that is tested, as in `up || ...`, would go on after errors
  (set -e && up)
  local code=$?
  set -e
  if [ "$code" != 0 ]; then
    stop
    die "did not start; what had begun is stopped again"
  fi
  sinfo
  echo "slurm-local: runs, in $DIR; partition main, account root"
}

stop() {
  local name pid
  for name in $DAEMONS; do
    if pid=$(ours "$name"); then
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 75); do
        [ -n "$(ours "$name")" ] || break
        sleep 0.2
      done
      [ -z "$(ours "$name")" ] || kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$DIR/run/$name.pid"
  done
  if [ "$(readlink $LINK 2>/dev/null)" = "$DIR/etc/slurm.conf" ]; then rm -f $LINK; fi
}

status() {
  local name pid down=0
  for name in $DAEMONS; do
    if pid=$(ours "$name"); then echo "$name: process $pid"; else echo "$name: does not run"; down=1; fi
  done
  [ "$down" = 1 ] || { sinfo; squeue; }
  return "$down"
}

case "${1:-}" in
  start | status) "$1" ;;
  stop) stop && echo "slurm-local: stopped" ;;
  *)
    echo "usage: $0 start|stop|status" >&2
    exit 2
    ;;
esac
