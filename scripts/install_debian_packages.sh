#!/bin/sh
# What pip cannot bring: headless OpenGL for the simulators, and the shared libpython that Triton's python backend links.
# With "dev" also what tests need: a PostgreSQL server, which they start by themselves, and a browser with a font.
# Installs what is missing when it may; otherwise says the one command to run. Does nothing when nothing is missing.
set -eu

python="${PYTHON:-python3}"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
missing=""
has_library() { ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* >/dev/null 2>&1; }

has_library libEGL.so.1 || missing="$missing libegl1"
ls /usr/lib/*/dri/swrast_dri.so >/dev/null 2>&1 || missing="$missing libgl1-mesa-dri"
"$python" - <<'PYTHON' || missing="$missing libpython$version"
import pathlib, subprocess, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
places = [sysconfig.get_config_var("LIBDIR") or "", "/usr/lib/x86_64-linux-gnu"]
sys.exit(0 if any((pathlib.Path(place) / name).exists() for place in places) else 1)
PYTHON
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"

if [ "${1:-}" = dev ]; then
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
    command -v chromium >/dev/null || missing="$missing chromium fonts-dejavu-core"
fi

if [ -z "$missing" ]; then
    exit 0
fi
install="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing Debian packages:$missing" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive $install -qq >&2
else
    echo "setup: system packages are missing. Run this once, then try again:" >&2
    # A machine that never fetched package lists, as a container is, knows no package without the first half.
    echo "    sudo apt-get update && sudo $install" >&2
    exit 1
fi
