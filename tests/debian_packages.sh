#!/bin/bash
# debian_packages.sh PACKAGE…: install, as root, the Debian packages that are missing; no service of theirs is started.
set -euo pipefail

missing=()
for package in "$@"; do
    [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if [[ "$(id -u)" != 0 ]]; then
    echo "debian_packages.sh: ${missing[*]} missing and this is not root; run: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi

# invoke-rc.d asks this file whether a package may start its daemon; 101 is "no".
policy=/usr/sbin/policy-rc.d
if [[ ! -e "$policy" ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
"${install[@]}" >/dev/null 2>&1 || { "${apt[@]}" update && "${install[@]}" >/dev/null; }
