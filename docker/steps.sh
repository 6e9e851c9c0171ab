# What the docker/verify*.sh have in common; sourced by them. Needs $work, a folder.
failed=0

after_failure() { :; } # a script may say more here

step() { # WHAT COMMAND...: says pass or FAIL, counts the latter in $failed
    local what=$1 began=$SECONDS
    shift
    if "$@" >"$work/step" 2>&1; then
        printf 'pass  %-64s %3d s\n' "$what" $((SECONDS - began))
    else
        printf 'FAIL  %-64s %3d s\n' "$what" $((SECONDS - began))
        tail -n 15 "$work/step" | sed 's/^/      /'
        failed=$((failed + 1))
        after_failure
    fi
}

until_true() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

json() { # EXPRESSION: of d, the JSON on stdin
    "${PYTHON:-python3}" -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1], {"d": d}))' "$1"
}
