#!/usr/bin/env bash
# Install Debian's Slurm for the tests in this folder where that is possible; else say what is skipped.
set -euo pipefail
if [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmd ] && [ -x /usr/sbin/munged ]; then
    exit 0
elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests of Slurm will be skipped: installing it needs root and apt-get"
elif ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
         apt-get install -y -q --no-install-recommends slurm-wlm munge; } >/dev/null; then
    echo "tests of Slurm will be skipped: apt-get could not install slurm-wlm and munge"
fi
