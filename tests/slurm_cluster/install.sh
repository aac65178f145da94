#!/usr/bin/env bash
# Install what the Slurm tests need, if it is missing: Slurm's daemons and commands, munge, shellcheck. Debian, root.
# The packages of Debian and Ubuntu start nothing and change no service here: the tests start daemons of their own.
# Exit code 0 if all is there at the end, or if this machine cannot have it (the tests then say so and are skipped).
set -euo pipefail

packages=(slurm-wlm slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge shellcheck)
missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed; then
    missing+=("$package")
  fi
done
if [ "${#missing[@]}" -eq 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "the Slurm tests will be skipped: they need root and Debian's packages ${missing[*]}"
  exit 0
fi

# Daemons of the packages must not start: the tests bring their own configuration. invoke-rc.d asks this program.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null
