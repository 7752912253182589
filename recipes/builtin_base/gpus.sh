#!/bin/bash
# Trains everything on this machine's GPUs until the wall clock shows $1 (seconds since 1970):
# autoencoder and judge side by side, the denoiser compiling meanwhile and then training on all.
# The work folder must hold icons.json.xz and tokenizer/ (stages fetch and words). Logs: $2.
set -u
until=$1 logs=$2
n=$(nvidia-smi -L | wc -l)
export PYTHONUNBUFFERED=1
mkdir -p "$logs"
python3 -m recipes.builtin_base render > "$logs/render.log" 2>&1
CUDA_VISIBLE_DEVICES=0 python3 -m recipes.builtin_base vae --compile --seconds 165 > "$logs/vae.log" 2>&1 &
CUDA_VISIBLE_DEVICES=$((n - 1)) python3 -m recipes.builtin_base judge --seconds 140 > "$logs/judge.log" 2>&1 &
python3 -m torch.distributed.run --nproc_per_node="$n" -m recipes.builtin_base diffuse --compile \
  --deadline "$until" > "$logs/diffuse.log" 2>&1 &
wait
touch "$logs/done"
