#!/usr/bin/env bash
# Brings the stack of docker-compose.yml up with a simulated archive, and tries it: requests, load,
# three apps, killed containers, restarts, down and up. Says pass or FAIL for each step; exit code 0
# if all passed. Takes some minutes and cleans up after itself.
#
#   docker/verify.sh                        with `docker compose`
#   COMPOSE=/path/to/other docker/verify.sh
#
# Needs the right to remove what the containers wrote (root, or sudo), curl and python3.
set -uo pipefail
cd "$(dirname "$0")/.."

COMPOSE=${COMPOSE:-docker compose}
export COMPOSE_PROJECT_NAME=coverart-verify
export COMPOSE_FILE=docker-compose.yml:docker/verify.yml
export COVER_ART_PORT=${COVER_ART_PORT:-18080}
export ARCHIVE_CONTROL_PORT=${ARCHIVE_CONTROL_PORT:-18195}
BASE=http://127.0.0.1:$COVER_ART_PORT
ARCHIVE=http://127.0.0.1:$ARCHIVE_CONTROL_PORT

as_root=
((EUID == 0)) || as_root=sudo
work=$(mktemp -d)
. docker/steps.sh
export COVER_ART_CACHE_DIR=$work/cache
log=$work/log

compose() { $COMPOSE "$@" >>"$log" 2>&1; }
finish() {
    compose down --volumes --timeout 20
    $as_root rm -rf "$COVER_ART_CACHE_DIR"
    ((failed)) && echo "what the containers said is in $log" || rm -rf "$work"
}
trap finish EXIT

after_failure() { compose logs; }
status_says() { [[ $(curl -fsS "$BASE/cache-status" | json "$1") == True ]]; }
answer() { curl -s -o "$work/body" -w '%{http_code} %header{x-cache-status}' --max-time 30 "$BASE$1"; }
asked() { curl -fsS "$ARCHIVE/counts" | json 'sum(d["requests"].values())'; }
apps_ready() { # COUNT: so many app containers are healthy
    [[ $($COMPOSE ps 2>/dev/null | grep -E '[-_]app[-_]?[0-9]*' | grep -c '(healthy)') -eq $1 ]]
}
ready() { curl -fsS "$BASE/ready"; }

all_hits() { # every cover of the first walk, with the bytes it had
    while read -r sum path; do
        said=$(answer "$path")
        [[ $said == "200 HIT" ]] || { echo "$path: $said"; return 1; }
        [[ $(sha256sum <"$work/body") == "$sum"* ]] || { echo "$path: other bytes"; return 1; }
    done <"$work/covers"
}
walk() { # fetch a hundred covers and remember them
    : >"$work/covers"
    for mbid in $(curl -fsS "$ARCHIVE/walk?entity=release&count=130" | json '" ".join(d)'); do
        path=/release/$mbid/front-250
        said=$(answer "$path")
        case $said in
            "200 "*) echo "$(sha256sum <"$work/body" | cut -d' ' -f1) $path" >>"$work/covers" ;;
            "404 "*) ;;
            *) echo "$path: $said"; return 1 ;;
        esac
    done
    [[ $(wc -l <"$work/covers") -ge 50 ]]
}
tests() { RELEASE=$1 GROUP=$2 ./test.sh "$BASE"; }
load() { RELEASE=$1 REQUESTS=3000 CLIENTS=30 ./validate.sh "$BASE"; }
users() { # each process has no rights to speak of, and can't write where it has nothing to write
    for service in nginx app redis; do
        uid=$($COMPOSE exec -T "$service" id -u | tr -d '\r')
        echo "$service runs as user $uid"
        [[ $uid =~ ^[0-9]+$ && $uid != 0 ]] || return 1
        ! $COMPOSE exec -T "$service" sh -c 'touch /usr/x' 2>/dev/null || return 1
    done
    for path in /usr/bin/gcc /opt/coverart/bin/pip; do
        ! $COMPOSE exec -T app test -e "$path" || return 1
    done
}
traffic_while() { # COMMAND...: asks all the time for what is held and what is not; no answer may fail
    : >"$work/traffic"
    touch "$work/go"
    (
        n=0
        while [[ -e $work/go ]]; do
            n=$((n + 1))
            answer "$(sed -n "$((n % 50 + 1))p" "$work/covers" | cut -d' ' -f2)" >>"$work/traffic"
            echo >>"$work/traffic"
            mbid=$(sed -n "$((n % 400 + 1))p" "$work/others")
            curl -s -o /dev/null -w '%{http_code}\n' --max-time 30 "$BASE/release/$mbid/front-250" >>"$work/traffic"
        done
    ) &
    local asking=$!
    "$@"
    local outcome=$?
    rm "$work/go"
    wait "$asking"
    sort "$work/traffic" | uniq -c
    ! grep -vqE '^(200|404)' "$work/traffic" && return $outcome
}
replace_one() {
    compose exec -T --index=2 app python -c 'import os, signal; os.kill(1, signal.SIGTERM)'
    sleep 5
    compose up -d --scale app=3
    until_true 60 apps_ready 3
}
restart_nginx() { compose restart nginx && until_true 60 ready && all_hits; }
without_apps() {
    compose kill -s SIGKILL app
    all_hits
    local hits=$?
    said=$(answer "/release/$(tail -n 1 "$work/others")/front-1200")
    echo "what is not held: $said"
    compose up -d --scale app=3 && until_true 90 apps_ready 3 && until_true 30 ready &&
        [[ $hits == 0 && $said == 503* ]]
}
without_redis() {
    compose kill -s SIGKILL redis
    all_hits
    local hits=$?
    said=$(answer "/release/$(sed -n 1p "$work/others")/front-500")
    echo "what is not held: $said"
    compose up -d --scale app=3 && until_true 60 status_says 'd["redis_available"]' &&
        [[ $hits == 0 && ($said == 200* || $said == 404*) ]]
}
somebodys_folder() { # a folder that holds files of another user is refused in one line, and left alone
    mkdir "$work/somebodys" && touch "$work/somebodys/file"
    ! COVER_ART_CACHE_DIR=$work/somebodys $COMPOSE run --rm folder >"$work/said" 2>&1 || return 1
    cat "$work/said"
    grep -q "COVER_ART_CACHE_DIR=$work/somebodys belongs to user $EUID and is not empty" "$work/said" &&
        [[ $(stat -c %u "$work/somebodys") == "$EUID" ]]
}
down_and_up() {
    compose down --timeout 30 || return 1
    compose up -d || return 1
    until_true 120 ready || return 1
    all_hits || return 1
    echo "the archive was asked $(asked) times"
    [[ $(asked) -eq 0 ]]
}
sizes() { $COMPOSE images; }

step "images are built and the stack comes up" compose up -d --build
((failed)) || step "it is ready" until_true 120 ready
if ((failed)); then
    tail -n 40 "$log"
    exit 1
fi
example=$(curl -fsS "$ARCHIVE/examples" | json 'd["jpeg"].split("/")[2] + " " + d["group"].split("/")[2]')
curl -fsS "$ARCHIVE/walk?entity=release&start=130&count=370" | json '"\n".join(d)' >"$work/others"
step "test.sh" tests $example
step "a hundred covers are fetched" walk
step "they are hits now" all_hits
step "no process is root, no file system is writable" users
cat "$work/step"
step "validate.sh" load $example
cat "$work/step"
step "what nginx answered by itself is counted" until_true 30 status_says 'd["direct_hits"] > 3000'
step "three apps" eval 'compose up -d --scale app=3 && until_true 90 apps_ready 3'
step "one of them is replaced under traffic, nobody notices" traffic_while replace_one
step "nginx is restarted, all are hits" restart_nginx
step "all apps killed: hits go on, the rest waits politely" without_apps
step "Redis killed: everything goes on" without_redis
step "test.sh again" tests $example
step "down and up again: all are hits, the archive is not asked" down_and_up
step "a folder with somebody's files is refused" somebodys_folder
step "how large the images are" sizes
cat "$work/step"

((failed == 0)) && echo "all steps passed" || echo "$failed steps failed"
exit $((failed > 0))
