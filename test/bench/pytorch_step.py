"""The step of step.ts in PyTorch (fp32, eager and compiled), alternating with ours, so that both meet the same machine.

    python test/bench/pytorch_step.py [--rounds 3] [--threads 2] [--no-compile]

Needs torch. Lean on PyTorch's side: no Transformers, scaled_dot_product_attention, frozen weights without gradients, only the supervised rows through the head.
Prints one JSON object: seconds of the best step of each, and ours over each.
"""
import argparse
import json
import math
import subprocess
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, INNER, LAYERS, HEADS, KV, VOCAB = 576, 1536, 30, 9, 3, 49152
BATCH, TOKENS, MEDIA, SUPERVISED, FEATURES = 4, 256, 64, 64, 768
HEAD_DIM = WIDTH // HEADS


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.q, self.k, self.v, self.o = linear(WIDTH, WIDTH), linear(WIDTH, KV * HEAD_DIM), linear(WIDTH, KV * HEAD_DIM), linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = linear(WIDTH, INNER), linear(WIDTH, INNER), linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)

    def forward(self, x, cos, sin):
        h = self.norm1(x)
        q = self.q(h).view(BATCH, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
        k = self.k(h).view(BATCH, TOKENS, KV, HEAD_DIM).transpose(1, 2)
        v = self.v(h).view(BATCH, TOKENS, KV, HEAD_DIM).transpose(1, 2)
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).reshape(BATCH, TOKENS, WIDTH))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        self.requires_grad_(False)
        self.projector = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        angle = torch.arange(TOKENS)[:, None] * (100_000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))[None]
        self.register_buffer('cos', angle.cos())
        self.register_buffer('sin', angle.sin())

    def forward(self, ids, features, labels):
        x = self.embedding(ids)
        x = torch.cat([x[:, :4], self.projector(features), x[:, 4 + MEDIA :]], 1)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        rows = self.norm(x)[:, TOKENS - SUPERVISED - 1 : TOKENS - 1].reshape(-1, WIDTH)
        return F.cross_entropy(rows @ self.embedding.weight.T, labels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--no-compile', action='store_true')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Model()
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    features = torch.randn(BATCH, MEDIA, FEATURES)
    labels = torch.randint(VOCAB, (BATCH * SUPERVISED,))
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-4, weight_decay=0)
    variants = {'eager': model}
    if not options.no_compile:
        variants['compiled'] = torch.compile(model)

    def step(forward):
        started = time.perf_counter()
        optimizer.zero_grad()
        forward(ids, features, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.projector.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - started

    best = {name: math.inf for name in [*variants, 'ours']}
    for forward in variants.values():
        step(forward)  # compiles, fills caches
    for _ in range(options.rounds):
        for name, forward in variants.items():
            best[name] = min(best[name], *(step(forward) for _ in range(3)))
            ours = subprocess.run(['node', 'dist/test/bench/main.js', 'step', '--json'], capture_output=True, text=True, check=True)
            best['ours'] = min(best['ours'], json.loads(ours.stdout)['secondsPerStep'])
    print(json.dumps({'seconds': best, **{f'fasterThan_{name}': best[name] / best['ours'] for name in variants}}))


main()
