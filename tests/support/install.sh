#!/usr/bin/env bash
# Debian packages for the tests of many machines and of a sweep's report, one per line. Only missing ones are installed, and
# only as root. Tests whose packages are not available are skipped and print the reason.
set -euo pipefail

PACKAGES=(
  iproute2        # network namespaces, and the links between them
  openssh-client
  openssh-server  # one sshd per namespace
  munge            # authentication between Slurm's daemons
  pdsh             # deepspeed --hostfile
  slurm-wlm        # slurmctld, slurmd, sbatch, srun
  golang-go        # text/template, which Ollama renders prompts with
  libaio-dev       # zero=stage3_nvme
  chromium         # opens a sweep's report
  chromium-driver  # controls chromium
  fonts-wqy-zenhei # Chinese fonts for screenshots
)

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed (needs root on Debian): ${missing[*]}" >&2
  exit 0
fi

# Services of the packages must not start: the tests start the ones they need.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
