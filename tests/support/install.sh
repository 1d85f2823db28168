#!/usr/bin/env bash
# Debian packages that tests of many machines, and of a sweep's report, need, a line each; only what is missing is fetched,
# and only by root. Where they cannot be had the tests say so and are skipped.
set -euo pipefail

PACKAGES=(
  iproute2        # network namespaces and the cable between them
  openssh-client
  openssh-server  # an sshd a namespace
  munge            # how the parts of Slurm know each other
  pdsh             # deepspeed --hostfile
  slurm-wlm        # slurmctld, slurmd, sbatch, srun
  chromium         # shows a sweep's report
  chromium-driver  # tells chromium what to open, and what to click on
  fonts-wqy-zenhei # Chinese in pictures of it
)

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed, and only root on Debian can here: ${missing[*]}" >&2
  exit 0
fi

# A package's own service must not start: the tests start what they need, where they need it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
