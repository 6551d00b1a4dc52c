"""onnxruntime-genai: python genai.py FOLDER IDS TOKENS prints its first token's milliseconds and tokens a second as JSON."""
import json
import sys
import time

import onnxruntime_genai as og

folder, ids, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = og.Model(folder)


def generate():
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, min_length=len(ids) + tokens, max_length=len(ids) + tokens)
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(ids)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(tokens - 1):
        generator.generate_next_token()
    end = time.perf_counter()
    return 1000 * (first - started), (tokens - 1) / (end - first), generator.get_sequence(0).tolist()[len(ids):]


generate()
runs = [generate() for _ in range(2)]
print(json.dumps({'firstTokenMs': min(run[0] for run in runs), 'tokensPerSecond': max(run[1] for run in runs), 'ids': runs[0][2]}))
