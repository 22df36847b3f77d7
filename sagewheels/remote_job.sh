#!/usr/bin/env bash
# What a rented machine runs for `build --on hf-jobs`: sagewheels at SAGEWHEELS_REF, a stack as it is pinned, the wheel,
# and its upload. No value is written into this text: settings come as variables, HF_TOKEN as a secret of the job.
set -euo pipefail
# The last line: whoever follows the log learns from it how this ended.
trap 'printf "[job] exit code %d\n" "$?"' EXIT
trap 'exit 130' INT TERM
export -n HF_TOKEN
tool=$(mktemp -d)
cd -- "$tool"
git init -q .
# git quotes addresses with their credentials, and others may see the log.
GIT_TERMINAL_PROMPT=0 git fetch -q --depth 1 -- "$SAGEWHEELS_REPO" "$SAGEWHEELS_REF" </dev/null 2>&1 |
  sed -E 's,://[^/[:space:]?#]*@,://,g' || {
  printf 'SAGEWHEELS_REF %s cannot be fetched. Check SAGEWHEELS_REPO and SAGEWHEELS_REF.\n' "$SAGEWHEELS_REF"
  exit 2
}
git reset -q --hard FETCH_HEAD --
export HF_TOKEN
for task in stack build upload; do
  ./install_sageattention220_wheel.sh "$task" 2>&1 </dev/null
done
