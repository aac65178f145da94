#!/bin/bash
# debian_packages.sh PACKAGE…: install the Debian packages that are missing; no service of theirs is started.
# Without root or apt it says which tests will be skipped, and ends with 0 all the same: those tests say so, too.
set -euo pipefail

installed=$'\n'
if command -v dpkg-query >/dev/null; then
    installed+=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
fi
missing=()
for package in "$@"; do
    [[ "$installed"$'\n' == *$'\n'"installed $package"$'\n'* ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "some tests will be skipped: this needs root and apt (sudo apt-get install ${missing[*]})"
    for package in "${missing[@]}"; do
        case "$package" in
            slurm* | munge) echo "  $package: runs under Slurm" ;;
            openssh-server | pdsh | openmpi-bin) echo "  $package: runs on several hosts" ;;
            strace) echo "  strace: slow storage" ;;
            bubblewrap | libseccomp2) echo "  $package: programs that a model wrote" ;;
            gcc | libc6-dev) echo "  $package: clocks that jump" ;;
            chromium) echo "  chromium: the report in a browser" ;;
            shellcheck) echo "  shellcheck: the style of batch scripts" ;;
            *) echo "  $package" ;;
        esac
    done
    exit 0
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
