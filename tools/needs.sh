#!/usr/bin/env bash
# What the tests want beyond Go: a C and a C++ compiler, for the race detector and for DuckDB, and programs of others that naru is held against.
# What is missing and can be had without asking is fetched: packages of Debian's as root (or with sudo, given --sudo), and
# the programs for Node. What cannot is named, with how to get it, and the exit code is 1: no test is left out.
set -uo pipefail
cd "$(dirname "$0")/.."
declare -A package=([cc]=gcc [c++]=g++ [mosquitto_pub]=mosquitto-clients [mosquitto_sub]=mosquitto-clients [mosquitto_rr]=mosquitto-clients
  [mosquitto]=mosquitto [curl]=curl [openssl]=openssl [node]=nodejs [npm]=npm [python3]=python3 [stdbuf]=coreutils [git]=git [promtool]=prometheus [initdb]=postgresql)

look() { # sets tools to those that are missing, packages to what they are in
  tools="" packages=""
  local tool
  for tool in "${!package[@]}"; do
    PATH="$PATH:/usr/sbin:$(printf '%s:' /usr/lib/postgresql/*/bin)" command -v "$tool" >/dev/null && continue
    tools+=" $tool"
    [[ " $packages " == *" ${package[$tool]} "* ]] || packages+=" ${package[$tool]}"
  done
}

look
if [ -n "$tools" ]; then
  root=""
  [ "$EUID" -eq 0 ] || root="sudo -n"
  if { [ -z "$root" ] || [ "${1:-}" = --sudo ]; } && command -v apt-get >/dev/null; then
    echo "installing what the tests want:$packages"
    $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    look
  fi
fi
if [ -n "$tools" ]; then
  echo "the tests want, and this machine lacks:$tools" >&2
  if command -v apt-get >/dev/null; then
    echo "get them with: sudo apt-get install --no-install-recommends$packages" >&2
  else
    echo "on Debian they are in$packages; other systems name them alike" >&2
  fi
  exit 1
fi
stamp=test/foreign/node_modules/.package-lock.json
if [ ! -e "$stamp" ] || [ test/foreign/package-lock.json -nt "$stamp" ]; then
  echo "fetching the programs of others for Node into test/foreign/node_modules"
  if ! (cd test/foreign && npm ci --no-audit --no-fund --loglevel=error); then
    echo "the programs for Node are missing: with the npm registry in reach, run npm ci in test/foreign" >&2
    exit 1
  fi
  touch "$stamp"
fi
