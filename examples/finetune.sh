#!/usr/bin/env bash
# Train a small model to use search results and compare it with its base; about an hour on two cores. The same command
# resumes a stopped run.
#
#   examples/finetune.sh SHARED OUT
#
# SHARED holds climate-fever/, factcheckgpt/ and corpus/; all output goes to OUT.
set -euo pipefail
if [ $# -ne 2 ]; then sed -n '2,7p' "$0" >&2; exit 2; fi
here=$(cd "$(dirname "$0")" && pwd) shared=$(cd "$1" && pwd)
mkdir -p "$2" && cd "$2"
claims=$shared/climate-fever/climate-fever.jsonl

# Claims of one half of Climate-FEVER with their evidence; false claims with their corrections; questions with their own
# answer or that of another question, which only the passage can decide.
[ -f claims/answers.jsonl ] || python "$here/claims.py" "$shared" claims
judged=(--distractors random --supported 0.75 --shares)
sailkit build-task climate-fever --data "$claims" --half first "${judged[@]}" 0.05,0.35,0.3,0.3 --held-out-share 0.05 \
  --no-match-wording --out data/climate-fever
sailkit build-task "$here/tasks/factcheck.yaml" --data claims/factcheck.jsonl "${judged[@]}" 0.05,0.65,0.3 \
  --held-out-share 0.05 --no-match-wording --out data/factcheck
sailkit build-task "$here/tasks/answers.yaml" --data claims/answers.jsonl "${judged[@]}" 0.05,0.65,0.3 \
  --held-out-share 0.03 --limit 1000 --out data/answers

sailkit finetune "$here/../recipes/smollm2-flags.yaml" --out tuned

# The other half: with its evidence, with that of other claims, with none. Evidence minus random is what search gives.
for search in evidence random none; do
  sailkit evaluate --model smollm2-135m --task climate-fever --data "$claims" --half second --search $search --max-results 3 \
    --dtype float32 --out "base-$search"
  sailkit evaluate --model tuned/model --task climate-fever --data "$claims" --half second --search $search --max-results 3 \
    --dtype float32 --out "tuned-$search"
done
sailkit compare tuned-evidence tuned-random base-random base-evidence
sailkit report tuned --out tuned.html
sailkit report tuned-evidence tuned-random base-random base-evidence --out climate-fever.html
