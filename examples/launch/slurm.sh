#!/bin/bash
# A run on two hosts with eight GPUs each that survives preemption and the time limit:
#   sbatch examples/launch/slurm.sh CORPUS RUN
# SLURM sends SIGUSR1 to every process 120 s before it takes the hosts back. The run then saves a checkpoint and ends
# with exit code 75, and this script puts the job back into the queue. Any other failure ends the job.
#SBATCH --job-name=music2vec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=29500

# One process per GPU, started by SLURM itself, so that the signal reaches it and its exit code comes back.
srun bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec python -m music2vec_hf pretrain --recipe crop5s --corpus "$0" --output "$1" --resume \
    --max_seconds_per_device auto
' "$1" "$2"
code=$?
if [ $code -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
