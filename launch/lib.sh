# shellcheck shell=bash
# What the launchers share: flags, errors, quoting, and the dry run. A launcher declares
#
#   option  [NAME]=DEFAULT  flags with a value, --NAME=VALUE, each with its default, or
#                           the environment variable PD_JAX_NAME where that is set
#   switch  [NAME]=         flags without one; "yes" where given
#
# and calls `parse "$@"`, which also fills `words` (what stands before --) and
# `arguments` (what stands after it, for pd_jax.main).

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash ${BASH_VERSION} is too old: 4.4 or newer is needed" >&2
  exit 1
fi

declare -A option=() switch=([dry-run]="")
words=()
arguments=()

# A mistake in what was given: one line, code 2, as pd_jax.main has it.
usage_error() {
  echo "error: $1; see ${0##*/} --help" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

# The comment at the head of a launcher.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

parse() {
  local name variable
  for name in "${!option[@]}"; do
    variable=PD_JAX_${name^^}
    variable=${variable//-/_}
    option[$name]=${!variable:-${option[$name]}}
  done
  while (($#)); do
    case $1 in
      --)
        shift
        arguments=("$@")
        return
        ;;
      -h | --help)
        help
        exit 0
        ;;
      --*)
        name=${1%%=*}
        name=${name#--}
        if [[ -n $name && -v option[$name] ]]; then
          [[ $1 == *=?* ]] || usage_error "--$name needs a value: --$name=VALUE"
          option[$name]=${1#*=}
        elif [[ -n $name && -v switch[$name] ]]; then
          [[ $1 != *=* ]] || usage_error "--$name takes no value"
          switch[$name]=yes
        else
          usage_error "unknown flag ${1%%=*} (pd_jax.main's own come after --)"
        fi
        ;;
      -*) usage_error "unknown flag $1" ;;
      *) words+=("$1") ;;
    esac
    shift
  done
}

# check_number NAME LEAST
check_number() {
  if ! [[ ${option[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${option[$1]} < $2)); then
    usage_error "--$1=${option[$1]} is not a whole number from $2 on"
  fi
  option[$1]=$((10#${option[$1]}))
}

# What pd_jax.main refuses is better said before anything is queued or paid for.
check_arguments() {
  [[ " ${arguments[*]}" =~ \ --?config[=\ ] ]] ||
    usage_error "--config=configs/NAME.py is missing after --"
}

# A command on one line, as any POSIX shell reads it back.
quote() {
  local word line=
  for word; do
    if [[ -z $word || $word == *[!a-zA-Z0-9_@%+=:,./-]* ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# Runs a command; in a dry run prints it instead.
call() {
  if [[ ${switch[dry-run]} ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# The value of pd_jax.main's flag $1 in `arguments`; empty where it is not given.
given() {
  local i value=
  for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
      "--$1="* | "-$1="*) value=${arguments[i]#*=} ;;
      "--$1" | "-$1") value=${arguments[i + 1]:-} ;;
    esac
  done
  printf '%s' "$value"
}

# The run's folder, by pd_jax.main's own rule.
workdir() {
  local config
  config=$(given workdir)
  if [[ -z $config ]]; then
    config=$(given config)
    config=${config##*/}
    config=runs/${config/.py/}
  fi
  config=${config%/}
  [[ $config == gs://* ]] || config=${config//:/_}
  printf '%s' "$config"
}
