# Sourced first by every script: with -h or --help it prints the script's own header and ends.
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
