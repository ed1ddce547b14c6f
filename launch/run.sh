#!/usr/bin/env bash
# One machine, with GPUs, a TPU or neither: starts the command, and again whenever it was stopped
# by SIGTERM and has saved (exit code 75, or UDD_EXIT_CODE). Stop this script, and the command saves
# and stays down. A crash (139, 134) is not a stop: it would come again and again, so the script ends
# with its code. The same command by hand goes on from the last checkpoint.
#
#   launch/run.sh --config=configs/t2i.py:cub --workdir=runs/cub
set -u
again=${UDD_EXIT_CODE:-75}
stopped=0
code=$again
run=
trap 'stopped=1; waiting=1; [ -z "$run" ] || kill -TERM "$run"' INT TERM
while [ "$code" -eq "$again" ] && [ "$stopped" -eq 0 ]; do
    python -m udd_jax.main "$@" &
    run=$!
    [ "$stopped" -eq 0 ] || kill -TERM "$run" # the signal came before its number was known
    code=127
    waiting=1
    while [ "$waiting" -eq 1 ]; do # a signal ends `wait`, and the command still runs
        waiting=0
        wait "$run"
        last=$?
        [ "$last" -eq 127 ] || code=$last # 127: it had ended before
    done
done
exit "$code"
