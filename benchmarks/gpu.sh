#!/bin/sh
# One command that proves nanoprune on a device: tests, short measurements, and the page docs/gpu.md.
#
#   PYTHON=/path/to/python benchmarks/gpu.sh --seconds 420        the device is cuda; --device mps or cpu
#
# It installs nothing and needs no network. It never takes longer than it is told, and continues where it
# stopped. Options: benchmarks/gpu.sh --help
cd "$(dirname "$0")/.." || exit 2
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
