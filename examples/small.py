"""Write a tiny Llama with random weights. In the pipelines here it stands for the one you trained.

python small.py OUT --hidden 64 --layers 2
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

arguments = argparse.ArgumentParser(description="Write a tiny Llama with random weights.")
arguments.add_argument("out")
arguments.add_argument("--hidden", type=int, default=64)
arguments.add_argument("--layers", type=int, default=2)
chosen = arguments.parse_args()

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=chosen.hidden,
    intermediate_size=2 * chosen.hidden,
    num_hidden_layers=chosen.layers,
    num_attention_heads=4,
)
LlamaForCausalLM(config).save_pretrained(chosen.out)
