#!/usr/bin/env bash
# Runs a sagewheels task (`auto` when none is named) in an environment of sagewheels' own, which is made once.
# Piped into bash, it first fetches the repository: SAGEWHEELS_REPO, SAGEWHEELS_REF, into SAGEWHEELS_HOME.
set -euo pipefail
secrets=(HF_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_TOKEN); export -n "${secrets[@]}" # not for what sets up
say() { printf '[setup] %s\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 2; }
redacted() { sed -E 's,://[^/[:space:]?#]*@,://,g'; } # git and pip may quote addresses with their credentials
attempt() { # REMEDY COMMAND...: what the command says is shown when it fails
  local said
  said=$("${@:2}" 2>&1 </dev/null) || { printf '%s\n' "$said" | tail -n 30 | redacted >&2; die "Set-up failed at ${*:2:4}. $1."; }
}
lock() { # descriptor 9; a file system without locks is no reason to stop
  command -v flock >/dev/null || return 0
  flock -n 9 || { say "waiting for another set-up in $root"; flock 9 || true; }
}
update_checkout() ( # everything tracked in $root becomes what the repository has, or stays as it last was
  command -v git >/dev/null || die "git is missing. Install it (apt-get install git)."
  [[ -e $root/.sagewheels-home || -z $(ls -A -I .tool.lock -- "$root") ]] ||
    die "$root holds something else, which would be overwritten. Set SAGEWHEELS_HOME to a new folder."
  repo=${SAGEWHEELS_REPO:-https://github.com/adbrasi/sageattention220-ultimate-installer.git} commit=FETCH_HEAD
  unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
  export GIT_TERMINAL_PROMPT=0 GIT_ASKPASS='' GIT_SSH_COMMAND="${GIT_SSH_COMMAND:-ssh -oBatchMode=yes}"
  touch "$root/.sagewheels-home"
  attempt "Remove $root/.git and run this again" git init -q "$root"
  rm -f "$root"/.git/*.lock # left by a killed run: the lock is ours
  why=$(timeout --foreground 60 git -C "$root" -c gc.auto=0 -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=20 \
    fetch -q --depth 1 -- "$repo" "${SAGEWHEELS_REF:-main}" 2>&1 </dev/null | redacted) || commit='HEAD^{commit}'
  why=${why%%$'\n'*}
  git -C "$root" reset -q --hard "$commit" -- 2>/dev/null ||
    die "The repository cannot be fetched (${why:-no answer}). Check the network, SAGEWHEELS_REPO and SAGEWHEELS_REF."
  [[ $commit == FETCH_HEAD ]] || say "cannot update (${why:-no answer}); going on with what is in $root"
)
find_python() { # prints the real path of the first that serves, rather one that can make environments
  local need candidate
  for need in "ensurepip, venv" sys; do
    for candidate in "$@"; do # running it is the only test: a pyenv shim exists and fails
      "$candidate" -I -c "import os, sys, $need; assert sys.version_info >= (3, 10)
print(os.path.realpath(sys._base_executable))" 2>/dev/null </dev/null && return
    done
  done
  die "No Python 3.10+ runs (tried $*). Install one (apt-get install python3 python3-venv) or set SAGEWHEELS_PYTHON."
}
wanted() { printf '%s\n' "$root" "${SAGEWHEELS_PYTHON:-}" "$(<"$root/pyproject.toml")" "$(<"$root/constraints.txt")"; }
is_complete() { [[ -x $tool/bin/python && -e $tool/complete && $(<"$tool/complete") == "$(wanted)" ]]; }
make_tool() (
  want=$(wanted) pythons=(python3.13 python3.12 python3.11 python3.10 python3)
  [[ -z ${SAGEWHEELS_PYTHON:-} ]] || pythons=("$SAGEWHEELS_PYTHON")
  python=$(find_python "${pythons[@]}")
  make=("$python" -I -m venv)
  "$python" -I -c "import ensurepip, venv" 2>/dev/null || make=(uv venv --no-project --seed --python "$python")
  command -v "${make[0]}" >/dev/null || die "$python lacks venv. Install it (apt-get install ${python##*/}-venv) or uv."
  say "making the tool's environment in $tool (once)"
  # What the user, or the image, set for the target's packages would bend ours.
  unset PYTHONHOME PYTHONPATH PIP_{CONSTRAINT,DRY_RUN,NO_DEPS,PREFIX,PYTHON,REQUIREMENT,ROOT,TARGET,USER}
  rm -rf -- "$tool"
  attempt "Check the disk and the network, then run this again" "${make[@]}" "$tool"
  touch "$tool/.sagewheels-tool" # the library installs no wheel where this is
  attempt "Check the disk and the network, then run this again" "$tool/bin/python" -I -m pip install -q --no-input \
    --disable-pip-version-check -c "$root/constraints.txt" -e "$root"
  printf '%s\n' "$want" >"$tool/complete"
)
main() { # a function, so that half a download runs nothing
  local root=${script%/*} piped='' tool
  if [[ -z $script || ! -e $root/sagewheels/__init__.py ]]; then
    piped=yes root=${SAGEWHEELS_HOME:-${XDG_DATA_HOME:-~/.local/share}/sagewheels}
    attempt "Set SAGEWHEELS_HOME to a folder that can be written" mkdir -p -- "$root"
    root=$(cd -- "$root" && pwd)
  fi
  tool=$root/.tool
  if [[ -n $piped ]] || ! is_complete; then
    [[ -w $root ]] || die "$root cannot be written. Run it from a folder that can."
    { lock; [[ -z $piped ]] || update_checkout; is_complete || make_tool; } 9>"$root/.tool.lock"
  fi
  export "${secrets[@]}"
  exec "$tool/bin/python" -I -m sagewheels "${@:-auto}" # isolated from PYTHONPATH and from packages that lie here
}
script=$(readlink -f -- "${BASH_SOURCE[0]:-}") || script=''
main "$@"
