#!/usr/bin/env bash
# Installs what the build needs and is missing: Debian packages, then the pinned libraries of .deps.
# With nothing missing it takes a fraction of a second and touches neither the network nor root.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  # tools
  g++ make cmake ninja-build ccache pkg-config patch python3 python3-pip ca-certificates
  # libraries
  libhwy-dev nlohmann-json3-dev libcli11-dev libfmt-dev libspdlog-dev libpcre2-dev libutf8proc-dev
  libxxhash-dev libgmp-dev libcpp-httplib-dev libgtest-dev libbenchmark-dev
  # inlined into reports
  libjs-chart.js
)

fail() {
  echo "setup: $*" >&2
  exit 1
}

# Prints the packages that are not installed.
missing_packages() {
  local package status
  for package in "${packages[@]}"; do
    # A virtual or renamed package counts as installed when its status says so, and only then.
    status=${installed[$package]:-}
    [[ $status == installed ]] || echo "$package"
  done
}

read_installed() {
  local package status
  installed=()
  while read -r package status; do
    installed[$package]=$status
  done < <(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null)
}

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "these packages are missing and neither root nor sudo is at hand. As root, run:
  apt-get install -y ${missing[*]}"
  fi
}

[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
  fail "the pinned libraries are for Linux on x86_64; this is $(uname -s) on $(uname -m)."

declare -A installed
if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  read_installed
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]})); then
    echo "setup: installing ${missing[*]}"
    as_root apt-get update -qq ||
      echo "setup: apt-get update failed; trying with the package lists at hand" >&2
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
      fail "apt-get could not install ${missing[*]} (its message is above). Check the network and the package sources."
  fi
else
  echo "setup: not a Debian or Ubuntu system; expecting the like of: ${packages[*]}" >&2
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
  fail "python3 is older than 3.9: install a newer one."
python3 tools/fetch_dependencies.py
