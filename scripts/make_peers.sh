#!/bin/sh
# The environments that other people's servers run in, for `python -m premotor.client compare`: build/peers/openpi and
# build/peers/lerobot. Pinned, and without the peers' own pins (numpy below 2, another torch), which they do not need as
# they are used here. torch and numpy are those of .venv, by a .pth that comes last on the path: installed once, and
# every server then runs the model on the same of both.
set -eu

python="${PYTHON:-.venv/bin/python}"
peers="${1:-build/peers}"
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

make_peer() {
    name="$1"
    shift
    echo "peers: $name" >&2
    rm -rf "$peers/$name"
    "$python" -m venv --without-pip "$peers/$name"
    "$python" -m pip --quiet --disable-pip-version-check --python "$peers/$name/bin/python" install --no-deps "$@"
    own=$("$peers/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$packages" >"$own/zz_premotor_environment.pth"
}

mkdir -p "$peers"
make_peer openpi policy-websocket==0.1.0 openpi-client==0.1.2
# transformers, huggingface-hub, tokenizers, datasets and diffusers are the last before what LeRobot 0.4.4 breaks on.
make_peer lerobot lerobot==0.4.4 draccus==0.10.0 mergedeep==1.3.4 pyyaml-include==1.4.1 typing-inspect==0.9.0 \
    mypy-extensions==1.1.0 toml==0.10.2 datasets==4.1.1 dill==0.4.0 multiprocess==0.70.16 xxhash==3.6.0 \
    pandas==2.3.3 pytz==2025.2 torchvision==0.28.0 transformers==4.57.3 huggingface-hub==0.35.3 tokenizers==0.22.1 \
    diffusers==0.35.2 einops==0.8.1 pyserial==3.5 deepdiff==8.6.1 orderly-set==5.5.0
