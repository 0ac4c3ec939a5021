#!/usr/bin/env bash
# Grow a trained BERT (MiniLM: 384 wide, 6 layers) to two sizes and verify both; `make demo` runs this.
# Usage: demo.sh CHECKPOINT FOLDER, with growkit on the PATH. Run again, it finds its work done.
set -euo pipefail
mkdir -p "$2"
cp -Rp "$1/." "$2" # with its times: they tell a source that is still the same
cd "$2"

say() {
  printf '\n'
  printf '# %s\n' "$@"
}
show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

say "768 is twice 384, and 12 layers are twice 6: copies fit, so the wider model is exact." \
  "The new layers normalise once more what is normal already, so in all it is exact up to norm eps."
show growkit grow small.safetensors --recipe bert_base
show growkit verify small.safetensors small-bert_base --text sentences.txt

say "1024 is no multiple of 384, and here a LayerNorm writes the stream: approximate." \
  "Some coordinates have three copies and others two, so that norm sees another mean."
show growkit grow small.safetensors --recipe bert_large
show growkit verify small.safetensors small-bert_large --text sentences.txt
