
# shellcheck shell=bash disable=SC2153,SC2154  # the values above come from launch/tpu/startup.py
# Runs on the VM. From here on it is launch/tpu/startup.sh, the same for all runs; above are this
# run's values: RUN ATTEMPT NODE HOSTS BUCKET FOLDER FOLDER_URL CODE CODE_REF CODE_SHA256
# TRAINER_ENV TRAINER_ARGS. FOLDER_URL is FOLDER with a trailing slash, escaped for addresses.
#
# In FOLDER of the bucket it keeps launch/ATTEMPT.log up to date, and writes FAILED if the trainer
# ends with anything but 0, 42 or 143, or if the setup fails (201: may pass). The trainer itself
# writes DONE. The script may be run again at any time, as happens when the VM reboots.

set -u
: "${ROOT:=/var/lib/trainer-launch}"
: "${METADATA_URL:=http://metadata.google.internal/computeMetadata/v1}"
: "${STORAGE_URL:=https://storage.googleapis.com}"
: "${PAUSE_S:=30}"
: "${HOME:=/root}"
export HOME PATH="$PATH:/snap/bin" DEBIAN_FRONTEND=noninteractive

GCSFUSE=2.7.0         # since 2.9, files reach the bucket only once they are closed
SETUP_FAILED=201      # launch/policy.py: restart, charged
USERS_MISTAKE=2       # launch/policy.py: a restart would not help
WITHOUT_PROGRESS=5    # launch/policy.py: MAX_WITHOUT_PROGRESS
LOG=$ROOT/$ATTEMPT.log
MOUNT=$ROOT/bucket
WORK=$MOUNT/$FOLDER
PYTHON=$ROOT/venv/bin/python
OBJECT=$STORAGE_URL/storage/v1/b/$BUCKET/o/$FOLDER_URL
stopping=             # set once the VM shuts down: failures from then on are not the run's
trainer=              # the trainer's process ID while it runs

# Prints what the metadata server has at this path.
metadata() {
  curl --silent --fail --retry 5 --header 'Metadata-Flavor: Google' "$METADATA_URL/instance/$1"
}

# Runs curl as the VM's service account. The token never appears on a command line.
storage() {
  curl --silent --show-error --fail --retry 5 "$@" --header @<(
    metadata service-accounts/default/token |
      sed -n 's/.*"access_token" *: *"\([^"]*\)".*/Authorization: Bearer \1/p'
  )
}

# Uploads file $1 to the object $2 in FOLDER, whole or not at all.
put() {
  storage --output /dev/null --request POST --header 'Content-Type: text/plain; charset=utf-8' \
    --upload-file "$1" "$STORAGE_URL/upload/storage/v1/b/$BUCKET/o?uploadType=media&name=$FOLDER_URL$2"
}

# One at a time: an older upload that is still in progress must not finish last.
put_log() { (flock 9 && put "$LOG" "launch%2F$ATTEMPT.log") 9>"$ROOT/log.lock"; }

say() { printf 'launch: %s\n' "$1" >>"$LOG"; }

# Ends the run with exit code $1. FAILED also names the run and start: those of others are ignored.
fail() {
  say "$2"
  put_log
  [[ $stopping ]] && exit 0
  printf 'FAILED %s\nrun %s attempt %s: %s\n' "$1" "$RUN" "$ATTEMPT" "$2" >"$ROOT/FAILED"
  for _ in {1..20}; do
    put "$ROOT/FAILED" FAILED && exit 0
    sleep "$PAUSE_S"
  done
  exit 1
}

# Tries a command three times: remote failures often pass.
insist() {
  for _ in 1 2; do
    "$@" >>"$LOG" 2>&1 && return
    sleep "$PAUSE_S"
  done
  "$@" >>"$LOG" 2>&1
}

has_ended() {
  storage --output /dev/null "$OBJECT"DONE 2>/dev/null && return
  storage "$OBJECT"FAILED?alt=media 2>/dev/null | grep -qF "run $RUN attempt $ATTEMPT:"
}

install_packages() { apt-get -qq -o DPkg::Lock::Timeout=300 install -y "$@"; }

install_python() { apt-get -qq update && install_packages python3.11 python3.11-venv; }

install_gcsfuse() {
  local file=$ROOT/gcsfuse.deb
  local releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
  curl -sSfL --retry 5 -o "$file" "$releases/v$GCSFUSE/gcsfuse_${GCSFUSE}_amd64.deb" &&
    install_packages --allow-downgrades "$file"
}

mount_bucket() {
  mountpoint -q "$MOUNT" && return
  gcsfuse --version 2>/dev/null | grep -qF "version $GCSFUSE " ||
    insist install_gcsfuse || fail $SETUP_FAILED "cannot install gcsfuse $GCSFUSE"
  mkdir -p "$MOUNT"
  insist gcsfuse --implicit-dirs "$BUCKET" "$MOUNT" ||
    fail $SETUP_FAILED "cannot mount gs://$BUCKET"
}

fetch_code() {
  [[ -e $ROOT/code.complete ]] && return
  rm -rf "$ROOT/code"
  if [[ $CODE_REF ]]; then
    insist clone || fail $SETUP_FAILED "cannot clone $CODE"
    git -C "$ROOT/code" checkout --quiet --detach "$CODE_REF" -- >>"$LOG" 2>&1 ||
      git -C "$ROOT/code" checkout --quiet --detach "origin/$CODE_REF" -- >>"$LOG" 2>&1 ||
      fail $USERS_MISTAKE "$CODE has no $CODE_REF"
  else
    insist storage --output "$ROOT/code.tar.gz" "$STORAGE_URL/storage/v1/b/$CODE" ||
      fail $SETUP_FAILED "cannot fetch the code: $CODE"
    [[ -z $CODE_SHA256 ]] || sha256sum --quiet --check - <<<"$CODE_SHA256  $ROOT/code.tar.gz" ||
      fail $SETUP_FAILED "the code differs from what was uploaded: $CODE"
    mkdir -p "$ROOT/code"
    tar -xzf "$ROOT/code.tar.gz" --no-same-owner -C "$ROOT/code" >>"$LOG" 2>&1 ||
      fail $USERS_MISTAKE "the code is not a tar.gz: $CODE"
  fi
  [[ -e $ROOT/code/requirements-tpu.txt ]] ||
    fail $USERS_MISTAKE "the code has no requirements-tpu.txt at its top level: $CODE"
  touch "$ROOT/code.complete"
}

clone() { rm -rf "$ROOT/code" && git clone --quiet -- "$CODE" "$ROOT/code"; }

make_environment() {
  [[ -e $ROOT/venv/complete ]] && return
  command -v python3.11 >/dev/null || insist install_python ||
    fail $SETUP_FAILED "cannot install Python 3.11"
  rm -rf "$ROOT/venv"
  insist python3.11 -m venv "$ROOT/venv" || fail $SETUP_FAILED "cannot create a Python environment"
  insist "$PYTHON" -m pip install --quiet --no-deps -r "$ROOT/code/requirements-tpu.txt" ||
    fail $SETUP_FAILED "cannot install requirements-tpu.txt"
  touch "$ROOT/venv/complete"
}

# Prints a text that changes with every checkpoint.
progress() { cksum 2>/dev/null <"$WORK/checkpoints/checkpoint"; }

# Includes files that the trainer holds open: gcsfuse uploads only at fsync and close.
upload_all_the_time() {
  while sleep "$PAUSE_S"; do
    put_log
    find "$WORK" -maxdepth 2 \( -name metrics.jsonl -o -name 'events.out.*' \) -exec sync {} +
  done
}

# Runs the trainer once and returns its exit code; passes a SIGTERM on to it.
train() {
  env PYTHONUNBUFFERED=1 "${TRAINER_ENV[@]}" "$PYTHON" "${TRAINER_ARGS[@]}" "--workdir=$WORK" \
    >>"$LOG" 2>&1 &
  trainer=$!
  [[ $stopping ]] && kill -TERM "$trainer"
  local code
  while true; do # a signal interrupts `wait` before the trainer ends
    wait "$trainer"
    code=$?
    kill -0 "$trainer" 2>/dev/null || break
  done
  trainer=
  return $code
}

train_until_it_ends() {
  local code before without_progress=0
  while [[ ! $stopping ]]; do
    before=$(progress)
    train
    code=$?
    say "the trainer ended with $code"
    case $code in
      0)
        put_log
        [[ -e $WORK/DONE ]] || fail 1 "the trainer ended with 0, but without DONE"
        return
        ;;
      42 | 143)
        [[ $(systemctl is-system-running 2>/dev/null) == stopping ]] && stopping=yes
        [[ $(progress) != "$before" ]] && without_progress=0
        ((++without_progress < WITHOUT_PROGRESS)) ||
          fail 42 "the trainer ended $without_progress times in a row without a new checkpoint"
        ;;
      *) fail $code "the trainer ended with $code" ;;
    esac
  done
  put_log
}

main() {
  local worker=0
  mkdir -p "$ROOT"
  if ((HOSTS > 1)); then
    worker=$(metadata attributes/agent-worker-number) ||
      fail $SETUP_FAILED "the VM does not know its worker number"
  fi
  # The other workers of a slice run TensorFlow's server, which is part of the image.
  [[ $worker == 0 ]] || exit 0
  has_ended && exit 0

  trap 'stopping=yes; [[ $trainer ]] && kill -TERM "$trainer" 2>/dev/null' TERM
  say "attempt $ATTEMPT of run $RUN on $NODE"
  upload_all_the_time >/dev/null 2>&1 &
  uploads=$!
  trap 'kill "$uploads" 2>/dev/null' EXIT
  fetch_code
  make_environment
  mount_bucket
  cd "$ROOT/code" || exit 1
  train_until_it_ends
}

# The service that starts this script does not pass on the SIGTERM of a shutdown, and the boot would
# wait for the script to end. As a separate service it gets the signal, and 60 s to save.
if [[ ! ${IS_SERVICE-} ]] && command -v systemd-run >/dev/null; then
  mkdir -p "$ROOT"
  cp "${BASH_SOURCE[0]}" "$ROOT/run.sh"
  exec systemd-run --unit=trainer-launch --collect --setenv=IS_SERVICE=yes \
    --property=After=network-online.target --property=KillMode=mixed \
    --property=TimeoutStopSec=60 /bin/bash "$ROOT/run.sh"
fi
main
