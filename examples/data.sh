#!/usr/bin/env bash
# Training data from real questions, from search to data card. The same command resumes a stopped run.
#
#   examples/data.sh nq|factcheck|dolpaca SHARED OUT
#
# SHARED holds climate-fever/, factcheckgpt/, corpus/ and instructions/; all output goes to OUT.
# LIMIT=300 before the command tries it on the first 300 rows. On one core: half an hour for the first set, which also
# fits a labeler, then 3 to 14 minutes each.
set -euo pipefail
if [ $# -ne 3 ]; then sed -n '2,8p' "$0" >&2; exit 2; fi
set_name=$1 shared=$2 out=$3
claims=$shared/climate-fever/climate-fever.jsonl
stances=$shared/factcheckgpt/subtask3_claim_evidence_stance.jsonl
questions=$shared/corpus/nq-open-oracle.jsonl.gz
corpus=(--corpus "$questions" --corpus "$shared/corpus/factbook.tar.gz")

case $set_name in
  nq)  # questions and their answers
    queries=(--instructions "$questions" --fields instruction=question,output=answers) threshold=0.5 ;;
  factcheck)  # claims and their corrections; also searched over the web passages of the data set
    queries=(--instructions "$shared/factcheckgpt/subtask4_claim_factuality.jsonl")
    queries+=(--fields instruction=claim,output=revised_claim)
    corpus+=(--corpus "$stances") threshold=0.6 ;;
  dolpaca)  # everyday instructions; this corpus answers few of them, and the data card warns of it
    queries=(--instructions "$shared/instructions/dolpaca_prompt_completion_dev.jsonl") threshold=0.5 ;;
  *) echo "no data set $set_name: nq, factcheck or dolpaca" >&2; exit 2 ;;
esac

# How far can each labeler be trusted? One is fitted on half of Climate-FEVER; both are measured on the other half.
fitted=$out/fitted
[ -d "$fitted" ] || sailkit fit --data "$claims" --out "$fitted"
sailkit audit --data "$claims" --labeler similarity --labeler "entailment:$fitted" --out "$out/audit"

run=$out/$set_name
sailkit search "${queries[@]}" "${corpus[@]}" ${LIMIT:+--limit "$LIMIT"} --out "$run/search"
sailkit label --results "$run/search" --labeler similarity --out "$run/similarity"
sailkit label --results "$run/search" --labeler "entailment:$fitted" --out "$run/fitted"
for style in chat sail-fixed sail; do
  sailkit build --results "$run/search" --labels "$run/similarity" --threshold "$threshold" --style "$style" \
    --exclude-task "climate-fever=$claims" --audit "$out/audit/audit.json" --export trl --export sail \
    --out "$run/build-$style"
done
