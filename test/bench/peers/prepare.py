"""The weights that all are compared on: a GGUF file, dequantised, as a Hugging Face folder and as ONNX exports at float32 and 4 bits.

Usage: python prepare.py GGUF TARGET        (torch, transformers, gguf, onnx, onnx-ir, onnxruntime, onnxruntime-genai)

TARGET/hf            config.json, model.safetensors (float32), tokenizer: what modalign reads at float32
TARGET/genai/NAME    as onnxruntime-genai's own builder makes them: NAME is fp32 or int4 (blocks of 32, accuracy level 4)
TARGET/hub/smollm2   the same two models where and as transformers.js looks for them: onnx/model.onnx and onnx/model_q4.onnx
"""
import json
import pathlib
import shutil
import subprocess
import sys

import onnx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

gguf, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)

folder = target / 'hf'
if not folder.exists():
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config
    if hasattr(config, 'quantization_config'):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)

for precision in ('fp32', 'int4'):
    made = target / 'genai' / precision
    if not (made / 'genai_config.json').exists() or not (made / 'model.onnx.data').exists():
        subprocess.run(
            [sys.executable, '-m', 'onnxruntime_genai.models.builder', '-m', '', '-i', str(folder), '-o', str(made), '-p', precision, '-e', 'cpu',
             '-c', str(target / 'cache'), '--extra_options', 'hf_token=false'],
            check=True,
        )

hub = target / 'hub' / 'smollm2'
(hub / 'onnx').mkdir(parents=True, exist_ok=True)
for file in folder.iterdir():
    if file.suffix == '.json' or file.suffix == '.jinja':
        shutil.copy(file, hub / file.name)
for precision, name in (('fp32', 'model.onnx'), ('int4', 'model_q4.onnx')):
    if not (hub / 'onnx' / name).exists():
        model = onnx.load(target / 'genai' / precision / 'model.onnx')
        # The builder names the channels of the cache; transformers.js needs their number.
        head_size = json.loads((folder / 'config.json').read_text())['head_dim']
        for value in (*model.graph.input, *model.graph.output):
            if len(value.type.tensor_type.shape.dim) == 4:
                value.type.tensor_type.shape.dim[3].dim_value = head_size
        onnx.save(model, hub / 'onnx' / name, save_as_external_data=True, location=f'{name}_data', size_threshold=1024)
