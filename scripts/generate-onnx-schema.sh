#!/usr/bin/env bash
# Generates src/onnx/onnx_pb.ts from the schema that the PyPI package `onnx` ships (onnx/onnx-ml.proto, proto2: field presence and
# unpacked repeated fields as the official tools write them).
#
# usage: scripts/generate-onnx-schema.sh [ONNX_VERSION]
#
# Needs python3, npm and their registries. Everything is installed in a temporary folder: the generator wants Node >= 22 and must not
# become a dependency of this package. TypeScript enums become const objects, because the repository is compiled with erasableSyntaxOnly.
set -euo pipefail

onnx_version=${1:-1.23.2}
generator_version=2.17.0
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund node@22 "@bufbuild/protoc-gen-es@$generator_version"
python3 -m venv python
python/bin/pip install --quiet grpcio-tools
python/bin/pip install --quiet --no-deps "onnx==$onnx_version"
mkdir in out
cp "$(find python -path '*/onnx/onnx-ml.proto')" in/onnx.proto

# The plugin's own `#!/usr/bin/env node` would find the machine's Node.
cat >protoc-gen-es <<PLUGIN
#!/bin/sh
exec "$work/node_modules/node/bin/node" "$work/node_modules/.bin/protoc-gen-es"
PLUGIN
chmod +x protoc-gen-es
python/bin/python -m grpc_tools.protoc --plugin=protoc-gen-es="$work/protoc-gen-es" \
  --es_out=out --es_opt=target=ts,import_extension=ts --proto_path=in in/onnx.proto

python3 - "$onnx_version" <<'POSTPROCESS' >"$repository/src/onnx/onnx_pb.ts"
import pathlib, re, sys

source = pathlib.Path('out/onnx_pb.ts').read_text()
declaration = re.compile(r'^export enum (\w+) \{\n(.*?)^\}$', re.S | re.M)


def as_const(match):
    name, body = match.groups()
    members = re.sub(r'^(\s+)(\w+) = (-?\w+),$', r'\1\2: \3,', body, flags=re.M)
    return (f'export const {name} = {{\n{members}}} as const;\n'
            f'export type {name} = (typeof {name})[keyof typeof {name}];')


# Type positions `Enum.MEMBER` do not occur in generated code; the names serve as values and as types, as the enums did.
text = declaration.sub(as_const, source)
assert not re.search(r'^export enum', text, re.M)
print(f'// The ONNX schema of the PyPI package onnx {sys.argv[1]} (onnx-ml.proto, IR versions up to its IR_VERSION).')
print('// Made by scripts/generate-onnx-schema.sh: do not edit.')
print(text, end='')
POSTPROCESS
