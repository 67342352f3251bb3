# Brings this host to the state of a launch. The workstation sends it, after lines that set these variables, to
# `bash -s`; it may run again at any time, and several at once wait for each other.
#
#   CODE             identity of the checkout, in janus/code/CODE
#   ENVIRONMENT      identity of the Python environment, in janus/env/ENVIRONMENT; empty: HOST_PYTHON is used as it is
#   HOST_PYTHON      an interpreter that is already here, or empty
#   PYTHON_VERSION   of the environment, such as 3.11
#   UV_VERSION       of uv, which makes the environment
#   CONSTRAINTS      file of the checkout with exact versions
#   EXTRAS           extras of pyproject.toml, separated by blanks
#   WHEELS           URL of a tar with uv, interpreter and wheels; empty: from the package index
#   NEED_KB          free space that a new environment needs
#   MAKE             1: make what is missing; 0: only say what is
#
# The last line of its output is `missing: ...`, or the host's facts as JSON. Needs bash, tar, curl or Python with pip.
# shellcheck shell=bash
set -euo pipefail
: "${CODE:?}" "${PYTHON_VERSION:?}" "${UV_VERSION:?}" "${CONSTRAINTS:?}" "${NEED_KB:?}" "${MAKE:?}"
: "${ENVIRONMENT=}" "${HOST_PYTHON=}" "${EXTRAS=}" "${WHEELS=}"

janus="$HOME/janus"
code="$janus/code/$CODE"
environment="$janus/env/$ENVIRONMENT"
complete="$environment/.complete"

fail() {
  echo "$*" >&2
  exit 1
}

missing() {
  local parts=()
  [[ -d $code ]] || parts+=(code)
  [[ -z $ENVIRONMENT || -e $complete ]] || parts+=(environment)
  echo "${parts[*]-}"
}

free_kb() {
  df -Pk "$1" | awk 'NR == 2 { print $4 }'
}

# download FILE WORDS...: to a file, which curl begins anew when it tries again; a pipe would get the first bytes twice.
# A transfer that stands still is tried again too.
download() {
  local file=$1
  shift
  curl -sSfL --retry 3 --connect-timeout 30 --speed-limit 1000 --speed-time 60 -o "$file" "$@"
}

# Ends with the status of curl. The token is not in its arguments: everybody on this host could read those.
fetch_with_token() {
  local metadata="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/service-accounts"
  local token
  token=$(curl -sf -H "Metadata-Flavor: Google" "$metadata/default/token" |
    sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p') || true
  [[ -n $token ]] || fail "the metadata server gives no access token: has the machine a service account?"
  printf 'header = "Authorization: Bearer %s"\n' "$token" |
    download "$2" --config - --url "$1"
}

get_uv() {
  local target="$janus/uv/$UV_VERSION"
  uv="$target/bin/uv"
  [[ -x $uv ]] && return
  rm -rf "$target"
  mkdir -p "$target"
  if [[ -n $WHEELS ]]; then
    # A wheel is a zip, which no tool of a bare machine opens: the workstation has unpacked it.
    mkdir -p "$target/bin"
    cp "$1/uv" "$uv.new"
  elif python3 -m pip --version >/dev/null 2>&1; then
    python3 -m pip install -q --disable-pip-version-check --no-deps --target "$target" "uv==$UV_VERSION" >&2
    return
  else
    mkdir -p "$target/bin"
    download "$target/uv.tar.gz" \
      "https://github.com/astral-sh/uv/releases/download/$UV_VERSION/uv-$(uname -m)-unknown-linux-gnu.tar.gz"
    tar -xzOf "$target/uv.tar.gz" "uv-$(uname -m)-unknown-linux-gnu/uv" >"$uv.new"
    rm "$target/uv.tar.gz"
  fi
  chmod 755 "$uv.new"
  mv "$uv.new" "$uv"
}

make_environment() {
  local free extra staged="" options=()
  mkdir -p "$janus/env"
  free=$(free_kb "$janus/env")
  if ((free < NEED_KB)); then
    fail "disk too small: $((free / 1048576)) GB free in $janus, a new environment needs $((NEED_KB / 1048576)) GB"
  fi
  rm -rf "$environment"
  if [[ -n $WHEELS ]]; then
    staged="$janus/env/.staged"
    rm -rf "$staged"
    mkdir -p "$staged"
    fetch_with_token "$WHEELS" "$staged/all.tar" || fail "cannot fetch $WHEELS"
    tar -xf "$staged/all.tar" -C "$staged"
    rm "$staged/all.tar"
    export UV_PYTHON_INSTALL_MIRROR="file://$staged/interpreter"
    options=(--no-index --find-links "$staged/wheels")
  fi
  get_uv "$staged"
  for extra in $EXTRAS; do options+=(--extra "$extra"); done
  export UV_PYTHON_INSTALL_DIR="$janus/python" UV_CACHE_DIR="$janus/uv/cache" UV_NO_CONFIG=1
  export UV_PYTHON_PREFERENCE="${UV_PYTHON_PREFERENCE:-only-managed}" UV_LINK_MODE="${UV_LINK_MODE:-hardlink}"
  "$uv" venv -q --python "$PYTHON_VERSION" "$environment" >&2
  "$uv" pip install -q --python "$environment/bin/python" "${options[@]}" \
    --constraints "$code/$CONSTRAINTS" -r "$code/pyproject.toml" >&2
  "$environment/bin/python" -m compileall -q -j 0 "$environment/lib" >/dev/null 2>&1 || true
  touch "$complete"
  rm -rf "$staged" "$janus/uv/cache"
}

# Removes checkouts and environments that neither the set-up before this one nor the last run names.
tidy() {
  local path
  for path in "$janus"/code/* "$janus"/env/*; do
    [[ -d $path && $path != "$code" && $path != "$environment" ]] || continue
    grep -qsF "${path##*/}" "$janus/current.json" "$janus/run/spec.json" || rm -rf "$path"
  done
}

place() {
  local path="$janus/$1"
  cat >"$path.$$"
  chmod "$2" "$path.$$"
  mv -f "$path.$$" "$path"
}

if [[ -n $HOST_PYTHON ]]; then
  python=${HOST_PYTHON/#"~"/$HOME}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "python: $python is $("$python" --version 2>&1 || true); 3.11 or newer is needed"
else
  python="$environment/bin/python"
fi

mkdir -p "$janus/code" "$janus/run"
if [[ -n $(missing) && ($MAKE != 1 || ! -d $code) ]]; then
  echo "missing: $(missing)"
  exit 0
fi
if [[ $MAKE == 1 ]]; then
  exec 9>"$janus/.lock"
  flock -w 1500 9 || fail "another set-up has been at work here for 25 minutes"
  [[ -z $(missing) ]] || make_environment
  tidy
  exec 9>&-
fi

place agent 755 <<AGENT
#!/bin/bash
# The agent of the launch, in the checkout and with the Python of the last set-up.
cd "\$HOME/janus/code/$CODE" && exec $(printf %q "$python") -m launch.host.agent "\$@"
AGENT
place current.json 644 <<CURRENT
{"code": "$CODE", "environment": "$ENVIRONMENT"}
CURRENT
cd "$code"
exec "$python" -m launch.host.facts
