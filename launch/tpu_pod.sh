#!/usr/bin/env bash
# Every worker of a TPU VM or pod, from your own machine. All have the checkout in ~/udd_jax, with a
# virtual environment of Python 3.11 or later in it, and the data at one path; the work folder is a
# bucket. In ~/udd_jax of each worker, once:
#
#   python3.11 -m venv venv && venv/bin/pip install -e ".[tpu,gcs]"
#
# Then, and again whenever it has ended before it was done:
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/t2i.py:coco --config.data=coco:/data/coco \
#       --config.vq.batch_size=64 --workdir=gs://BUCKET/coco
#
# The run does not need the connection: its output is in ~/udd_jax.log of each worker. It saves and
# stops with `pkill -TERM -f launch/run.sh` on all workers.
set -eu
name=$1
zone=$2
shift 2
run="UDD_DISTRIBUTED=1 PATH=\$PWD/venv/bin:\$PATH nohup launch/run.sh $(printf '%q ' "$@")"
command="cd udd_jax || exit; $run>> ~/udd_jax.log 2>&1 < /dev/null &"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
