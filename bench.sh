#!/usr/bin/env bash
# The figures of docs/benchmarks.md, measured here: ./bench.sh [--quick | --full] [--only SECTION] [--out FOLDER]
#
# Needs Linux with two cores, a C compiler, Python >= 3.11 with venv, and the right to set a CPU limit (root, or a delegated
# cgroup). Go, Node, Bun (from npm) and nginx are measured too if they are there. Everything listens on and sends to 127.0.0.1
# only. 16 minutes; --quick 2. What it prints is also in bench-out/: bench.json, bench.md, cpu.png, held.png, latency.png.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ $(uname -s) != Linux ]]; then
  echo "bench.sh: needs Linux: CPU limits and CPU time are read from cgroups" >&2
  exit 1
fi
make .venv-bench/.installed
[[ " $* " != *" lake "* ]] || make .venv-lake/.installed # PyIceberg, Spark; needs Java
ulimit -n "$(ulimit -Hn)"
.venv-bench/bin/python loadtest/bench.py "$@"
