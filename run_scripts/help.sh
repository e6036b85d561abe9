# Sourced first by every script: with -h or --help it prints the script's header and those of the files whose variables
# the script takes, then exits.
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    if [ -L "$0" ]; then # a script of all data sets: options.sh speaks of this one
      echo
      sed -n '/^[^#]/q; s/^# \{0,1\}//p' "$(dirname "$0")/options.sh"
    fi
    for shared in benchmark common; do
      # A script that sources benchmark.sh, or common.sh through another file, takes their variables.
      grep -q "benchmark.sh\"\|$shared.sh\"" "$0" || continue
      echo
      sed -n '/^[^#]\|^$/q; s/^# \{0,1\}//p' "$(dirname "${BASH_SOURCE[0]}")/$shared.sh"
    done
    exit
    ;;
esac
