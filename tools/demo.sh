#!/usr/bin/env bash
# The whole pipeline on the example model.
set -euo pipefail
cd "$(dirname "$0")/.."
build/release/quatrain --version
