#!/usr/bin/env bash
# The figures of docs/benchmarks.md, measured here: ./bench.sh [--quick | --full] [--only SECTION] [--out FOLDER]
#
# Needs Linux with two cores, a C compiler, Python >= 3.11 with venv, and the right to set a CPU limit (root, or a delegated
# cgroup); nginx is measured too if it is there. Everything listens on and sends to 127.0.0.1 only. 12-15 minutes;
# --quick 2. What it prints is also in bench-out/: bench.json, bench.md, cpu.png, held.png, latency.png.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ $(uname -s) != Linux ]]; then
  echo "bench.sh: needs Linux: CPU limits and CPU time are read from cgroups" >&2
  exit 1
fi
compiler=$(command -v cc || command -v gcc || command -v clang) || {
  echo "bench.sh: no C compiler found, which loadtest/generator.c needs (Debian: apt-get install gcc libc6-dev)" >&2
  exit 1
}

make .venv-bench/.installed
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
"$compiler" -O2 -Wall -o "$built/generator" loadtest/generator.c
ulimit -n "$(ulimit -Hn)"
.venv-bench/bin/python loadtest/bench.py --generator "$built/generator" "$@"
