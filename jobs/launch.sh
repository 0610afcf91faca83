# shellcheck shell=bash
# Shared by the batch scripts, which source this file. It finds Python and the launcher that fits its MPI,
# sets the threads, starts the ranks, and requeues a run that stopped at the time limit with a checkpoint.
#
# Variables, from the environment of sbatch or set in the script:
#   PYTHON        the Python with mpi_ntkdfl; default: .venv/bin/python in the submit folder, otherwise on the PATH
#   LAUNCHER      how ranks start, without their number and places: "srun --mpi=pmix", "mpiexec"; default:
#                 the first one that works
#   RUNS          folder for records; must be shared by the nodes and outlive the job;
#                 default: mpi_ntkdfl in $SCRATCH, or in the submit folder
#   MAX_RESTARTS  how often a job may requeue itself; default 50
: "${SLURM_JOB_ID:?submit this script with sbatch}"

UNFINISHED=75 # exit code of a run that stopped early with a checkpoint
SILENT=69     # exit code of ranks that waited too long for a silent rank, such as one on a lost node
MAX_RESTARTS=${MAX_RESTARTS:-50}
RESTARTS=${SLURM_RESTART_COUNT:-0}

# The number of ranks is nodes x tasks per node. If --ntasks gives another number, Slurm says nothing.
NODES=$SLURM_JOB_NUM_NODES
RANKS=${SLURM_NTASKS:-$((NODES * ${SLURM_NTASKS_PER_NODE:-1}))}
PER_NODE=${SLURM_NTASKS_PER_NODE:-$(((RANKS + NODES - 1) / NODES))}
if [ "$NODES" = 1 ] && [ "$RANKS" -lt "$PER_NODE" ]; then
  PER_NODE=$RANKS # such as --ntasks=2 for a script that asks for 4 tasks per node
elif [ -n "${SLURM_NTASKS_PER_NODE:-}" ] && [ "$RANKS" != $((NODES * PER_NODE)) ]; then
  echo "launch.sh: $NODES nodes x $PER_NODE tasks per node are $((NODES * PER_NODE)) ranks, but" \
    "--ntasks=$RANKS; give --nodes and --ntasks-per-node only" >&2
  exit 2
fi

# This is the same for every start of a job, so that a requeued job finds its files.
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
else
  JOB=$SLURM_JOB_ID
fi
RUNS=${RUNS:-${SCRATCH:-$PWD}/mpi_ntkdfl}
# shellcheck disable=SC2034 # for the scripts that source this
RECORD=$RUNS/$SLURM_JOB_NAME-$JOB.h5

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# srun asks for one CPU per task unless it gets the number again.
export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$PWD/.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=$(command -v python) || {
    echo "launch.sh: no .venv/bin/python here and no python on the PATH; set PYTHON" >&2
    exit 2
  }
fi

# Prints how to start ranks of the MPI that Python loads: srun if two processes that it starts see each other
# (a kind that srun lists need not work), otherwise the mpiexec beside Python or on the PATH.
# The two processes are on two nodes if the job has several, so that a node with one task is enough.
find_launcher() {
  local offered kind mpiexec count=$((RANKS > 1 ? 2 : 1)) nodes=$((NODES > 1 && RANKS > 1 ? 2 : 1))
  local probe="from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.size != $count)"
  local shape="--nodes=$nodes --ntasks=$count --ntasks-per-node=$((count / nodes))"
  offered=$(srun --mpi=list 2>&1) || offered=
  for kind in pmi2 pmix cray_shasta; do
    # shellcheck disable=SC2086 # several words
    if grep -qw "$kind" <<<"$offered" &&
      timeout 60 srun --mpi="$kind" $shape "$PYTHON" -c "$probe" >/dev/null 2>&1; then
      # A rank that still runs a minute after another one has ended would wait for it forever.
      echo "srun --mpi=$kind --cpu-bind=cores --wait=60"
      return
    fi
  done
  mpiexec=$(dirname "$PYTHON")/mpiexec
  [ -x "$mpiexec" ] || mpiexec=$(command -v mpiexec) || {
    echo "launch.sh: srun and this MPI do not fit together, and there is no mpiexec; set LAUNCHER" >&2
    return 2
  }
  echo "launch.sh: $count processes by srun on $nodes nodes do not see each other with any of its --mpi kinds;" \
    "using $mpiexec, which does not end ranks that wait in vain" >&2
  echo "$mpiexec"
}
LAUNCHER=${LAUNCHER:-$(find_launcher)}

# placed NODES: prints LAUNCHER such that it puts PER_NODE ranks on each of NODES nodes, one node after the
# other. srun needs these options: it ignores the job's tasks per node if the job has whole nodes.
placed() {
  case $LAUNCHER in
    *srun*) echo "$LAUNCHER --nodes=$1 --ntasks-per-node=$PER_NODE --distribution=block:block" ;;
    *mpiexec* | *mpirun*)
      # shellcheck disable=SC2086 # several words
      if $LAUNCHER --version 2>/dev/null | grep -qiE "open.?mpi|open-mpi"; then
        echo "$LAUNCHER --map-by ppr:$PER_NODE:node"
      else
        echo "$LAUNCHER -ppn $PER_NODE"
      fi
      ;;
    *) echo "$LAUNCHER" ;;
  esac
}

# mpi_ntkdfl WORDS: runs the program on all ranks.
mpi_ntkdfl() {
  local launcher
  read -ra launcher <<<"$(placed "$NODES")"
  supervise "${launcher[@]}" -n "$RANKS" "$PYTHON" -m mpi_ntkdfl "$@"
}

# driver WORDS: runs one process of the program, which then starts the ranks.
driver() {
  supervise "$PYTHON" -m mpi_ntkdfl "$@"
}

# supervise COMMAND: on exit codes 75 and 69 the job requeues itself; any other exit code is returned.
supervise() {
  local child code=0 told="" cancelled=""
  echo "job $JOB, start $((RESTARTS + 1)): $RANKS ranks on $NODES nodes by $LAUNCHER"
  "$@" &
  child=$!
  # --signal=B: signals only this shell; srun and mpiexec pass it on to the ranks. SIGTERM (scancel)
  # goes to the ranks as well, and a second one would end them before their checkpoint.
  trap 'told=yes; kill -USR1 "$child" 2>/dev/null || true' USR1
  trap 'cancelled=yes' TERM
  while wait "$child" || code=$?; kill -0 "$child" 2>/dev/null; do :; done
  code=0
  wait "$child" || code=$?
  trap - USR1 TERM
  # A program that is still starting is ended by the signal itself: srun returns 128 + 10, mpiexec 10.
  if [ -n "$told" ]; then
    case $code in 10 | 138) code=$UNFINISHED ;; esac
  fi
  [ "$code" != "$SILENT" ] || code=$UNFINISHED
  if [ "$code" = "$UNFINISHED" ] && [ -z "$cancelled" ]; then
    requeue
  else
    return "$code"
  fi
}

requeue() {
  if [ "$RESTARTS" -ge "$MAX_RESTARTS" ]; then
    echo "job $JOB: not requeued after $RESTARTS restarts (MAX_RESTARTS)" >&2
    return "$UNFINISHED"
  fi
  echo "job $JOB: unfinished, requeued"
  scontrol requeue "$SLURM_JOB_ID" || {
    echo "job $JOB: this Slurm refuses; the same sbatch line with -o RUN.h5 goes on" >&2
    return "$UNFINISHED"
  }
}

# powers_of_two MOST: 1,2,4,... up to MOST.
powers_of_two() {
  local count=1 list=1
  while [ $((count * 2)) -le "$1" ]; do
    count=$((count * 2))
    list+=,$count
  done
  echo "$list"
}
