#!/usr/bin/env bash
# Everything that needs an accelerator, in at most 8 minutes on one H100: the tests marked gpu, steps
# of large networks, digits in bf16 against float32, and a larger teacher of the glyphs, distilled.
#
#     OUT=results bash benchmarks/gpu.sh
#
# Needs no network and no installation, only the dependencies and torch >= 2.11. Writes JSON files of
# at most some MB to $OUT. Without CUDA it runs a short form of everything on the CPU. A part that
# fails is reported in $OUT/failed.txt, and the others go on; the exit status is then 1.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:?name the folder for the results, as in OUT=results}"
PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD/src" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
rm -f "$OUT/failed.txt"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cuda=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')
end=$((SECONDS + ${LIMIT:-460}))

part() { # NAME LIMIT COMMAND...: run a part; a failure is noted
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  printf '\n== %s ==\n' "$name"
  timeout -s INT -k 10 "$limit" "$@" || echo "$name ($?)" >>"$OUT/failed.txt"
  printf -- '-- %s took %d s\n' "$name" $((SECONDS - began))
}
left() { echo $((end - SECONDS > 20 ? end - SECONDS : 20)); }

"$PYTHON" -c 'import json; from pidistill.machine import machine; print(json.dumps(machine()))' \
  | tee "$OUT/machine.json"

if [ "$cuda" = 1 ]; then
  part tests 80 "$PYTHON" -m pytest -q -n 0 -m gpu tests/test_gpu.py
  part "steps of PID" 50 "$PYTHON" benchmarks/step.py --sizes cifar10,unet16 --methods pid \
    --precisions no,bf16 --compile off --seconds 2 --sampling --out "$OUT/step.json"
  part "a compiled step" 80 "$PYTHON" benchmarks/step.py --sizes cifar10 --methods pid \
    --precisions bf16 --compile on --seconds 3 --out "$OUT/step-compiled.json"
  part "steps of large networks" 50 "$PYTHON" benchmarks/step.py --sizes imagenet64,edm2-s \
    --methods pid --precisions bf16 --compile off --seconds 2 --out "$OUT/step-large.json"
  part "steps of every method" 40 "$PYTHON" benchmarks/step.py --sizes cifar10 \
    --methods pid-map,correction,consistency,progressive,boot,knowledge \
    --precisions bf16 --compile off --batch 64 --seconds 0.5 --out "$OUT/step-methods.json"
  digits=(--preset fast --max-train-steps 1000) data=glyphs num=2000 precisions="no bf16"
  large=(--preset glyphs-teacher-large) corrected=()
else
  part "steps of PID" 60 "$PYTHON" benchmarks/step.py --sizes digits --methods pid \
    --precisions bf16 --compile off --seconds 0.2 --sampling --out "$OUT/step.json"
  digits=(--preset fast --max-train-steps 20) data=digits num=64 precisions=bf16
  large=(--size xs --batch-size 8 --preview-steps 0)
  corrected=(--batch-size 8 --preview-steps 0 --set method.auxiliary_warmup=1)
fi

for precision in $precisions; do
  run="$work/digits-$precision"
  part "digits in $precision" 60 "$PYTHON" -m pidistill distill --teacher digits "${digits[@]}" \
    --mixed-precision "$precision" --out "$run"
  part "digits in $precision, evaluated" 60 "$PYTHON" -m pidistill evaluate "$run" \
    --reference digits --num $((num == 64 ? 200 : 5000)) --metrics fid,error
  cp "$run/metrics.json" "$OUT/digits-$precision.json"
done

steps_in() { # SECONDS COMMAND...: as many steps as fit, by a dry run; two on a CPU
  local seconds=$1
  shift
  [ "$cuda" = 1 ] || { echo 2; return; }
  "$PYTHON" -m pidistill "$@" --mixed-precision bf16 --dry-run --json \
    | "$PYTHON" -c "import json, sys
print(max(2, int($seconds / json.load(sys.stdin)['seconds_per_step'])))"
}
share=$((($(left) - 60) / 2))
if [ "$cuda" = 1 ] && [ "$share" -lt 10 ]; then
  echo "a larger teacher (no time left)" >>"$OUT/failed.txt"
  cat "$OUT/failed.txt"
  exit 1
fi
train=(train-teacher "$data" "${large[@]}")
steps=$(steps_in "$share" "${train[@]}")
part "a larger teacher, $steps steps" $((share * 2 + 60)) "$PYTHON" -m pidistill "${train[@]}" \
  --mixed-precision bf16 --max-train-steps "$steps" --out "$work/teacher"
distil=(distill --teacher "native:$work/teacher" --preset matched "${corrected[@]}")
steps=$(steps_in "$share" "${distil[@]}")
part "its student, $steps steps" $((share * 2 + 60)) "$PYTHON" -m pidistill "${distil[@]}" \
  --mixed-precision bf16 --max-train-steps "$steps" --out "$work/student"
part "its student, evaluated" 60 "$PYTHON" -m pidistill evaluate "$work/student" \
  --reference "$data" --num "$num" --metrics fid
[ "$cuda" = 0 ] || part "the teacher, evaluated" 60 "$PYTHON" -m pidistill evaluate \
  "native:$work/teacher" --reference "$data" --num "$num" --metrics fid \
  --out "$OUT/larger-teacher.json"
cp "$work/student/metrics.json" "$OUT/its-student.json"
cp "$work/student/metrics.jsonl" "$OUT/its-student.jsonl"

[ ! -e "$OUT/failed.txt" ] || { cat "$OUT/failed.txt"; exit 1; }
