#!/bin/bash
# Into the folder $1 (default .whl): the wheels that a machine without a network needs beside PyTorch, for `gpu_check`.
# Python 3.12 on x86-64; for another one set PYTHON_VERSION. Run it where there is a network.
#   bench and gpu tests  diffusers omegaconf jsonargparse importlib_metadata lazy-importer   6.8 MB
#   fit                  webdataset braceexpand                                              0.1 MB
#   sample, curate       av ftfy wcwidth, with MORE=1                                       36.6 MB
# torch 2.11, lightning 2.6, transformers 5.17 and huggingface_hub 1.33 are taken to be there. constraints.txt pins
# huggingface_hub 2.4, which transformers 5.17 refuses: carry none of these.
set -eu
to=${1:-.whl}; mkdir -p "$to"
wheels="diffusers==0.42.1 omegaconf==2.4.0 jsonargparse==4.53.0 importlib_metadata==10.2.0 lazy-importer==0.1.0
        webdataset==1.0.2 braceexpand==0.1.7"
[ -n "${MORE:-}" ] && wheels="$wheels av==18.1.0 ftfy==6.3.1 wcwidth==0.9.4"
for one in $wheels; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$to" "$one"
done
du -sh "$to"
