#!/usr/bin/env bash
# Every worker of a TPU VM or pod, from your own machine; the workers have the checkout in ~/udd_jax,
# installed with `pip install -e ".[tpu,gcs]"`, and share the work folder as a bucket.
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/t2i.py:coco --workdir=gs://BUCKET/coco
set -eu
name=$1
zone=$2
shift 2
command="cd udd_jax && UDD_DISTRIBUTED=1 launch/run.sh $(printf '%q ' "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
