#!/usr/bin/env bash
# Checks a running proxy, wherever it is: ./test.sh [base URL]
#
# Asks for a dozen things of one release, as a client would, so it is fit for a server that talks
# to the true archive. Exit code: 0 all is well, 1 something is not, 2 there is no proxy there.
# RELEASE and GROUP name a release and a release group with a front cover; needs curl.
set -uo pipefail

BASE=${1:-http://localhost:8080}
BASE=${BASE%/}
RELEASE=${RELEASE:-76df3287-6cda-33eb-8e9a-044b5e15ffdd}
GROUP=${GROUP:-c31a5e2b-0bf8-32e0-8aeb-ef4ba9973932}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
count=0

ask() { # PATH [curl options]: leaves status, headers and body of what came in the end
    # A front or back may be answered by a redirect to its image (COVER_ART_IMAGE_MODE).
    local path=$1
    shift
    status=$(curl --silent --location --path-as-is --max-time 90 --output "$work/body" --dump-header "$work/headers" \
        --write-out '%{http_code}' "$@" "$BASE$path") || status=000
    touch "$work/body" "$work/headers"
}
header() { # NAME: its value in the last answer
    tr -d '\r' <"$work/headers" | awk -v name="$1" '
        BEGIN { name = tolower(name) }
        /^HTTP\// { value = "" }  # another answer begins
        { at = index($0, ":"); if (at && value == "" && tolower(substr($0, 1, at - 1)) == name) value = substr($0, at + 2) }
        END { if (value != "") print value }'
}
check() { # WHAT EXPECTED FOUND
    count=$((count + 1))
    if [[ $3 == $2 ]]; then # the expected may be a pattern
        printf 'ok    %s\n' "$1"
    else
        printf 'FAIL  %s: expected %s, got %s\n' "$1" "$2" "${3:-nothing}"
        failed=$((failed + 1))
    fi
}
sum() { sha256sum <"$work/body" | cut -d' ' -f1; }
kind() { # by its first bytes
    case $(head -c 4 "$work/body" | od -An -tx1 | tr -d ' \n') in
        ffd8ff*) echo image/jpeg ;;
        89504e47) echo image/png ;;
        47494638) echo image/gif ;;
        25504446) echo application/pdf ;;
        *) echo "no image" ;;
    esac
}

ask /health
if [[ $status == 000 ]]; then
    echo "no proxy answers at $BASE" >&2
    exit 2
fi
check "/health answers" 200 "$status"
check "/health says healthy" '*"healthy"*' "$(cat "$work/body")"
ask /ready
check "/ready answers" 200 "$status"

thumb=/release/$RELEASE/front-250
ask "$thumb"
check "a thumbnail comes" 200 "$status"
check "it is a JPEG" image/jpeg "$(kind)"
check "and says so" image/jpeg "$(header Content-Type)"
check "it is no surprise for a browser" nosniff "$(header X-Content-Type-Options)"
check "web pages may use it" '\*' "$(header Access-Control-Allow-Origin)"
check "clients may keep it" 'public, max-age=*' "$(header Cache-Control)"
first=$(sum)
ask "$thumb"
check "the second time it is a hit" HIT "$(header X-Cache-Status)"
check "with the same bytes" "$first" "$(sum)"
printf '      sent by %s\n' "$(header X-Served-By)"
etag=$(header ETag)
size=$(wc -c <"$work/body" | tr -d ' ')
ask "$thumb" --header "If-None-Match: $etag"
check "who has it is told so" 304 "$status"
ask "$thumb" --range 0-99
check "a range of it comes" "206 100" "$status $(wc -c <"$work/body" | tr -d ' ')"
ask "$thumb" --range "$size-"
check "a range beyond its end is refused" 416 "$status"
ask "$thumb" --head
check "HEAD tells its length" "200 $size" "$status $(header Content-Length)"
ask "$thumb.jpg?x=1"
check "other spellings are the same cover" "$first" "$(sum)"
ask "//release/$RELEASE/%66ront-2500.webp/x"
check "so are those only the archive understands" "$first" "$(sum)"
ask "/release/$(tr a-f A-F <<<"$RELEASE")/front-250"
check "so is an MBID in upper case" "$first" "$(sum)"

ask "/release/$RELEASE/front"
check "the original comes" 200 "$status"
check "it is of the type it says" "$(kind)" "$(header Content-Type)"
ask "/release/$RELEASE/"
check "the listing comes" "200 application/json" "$status $(header Content-Type)"
check "and lists images" '*"images"*' "$(cat "$work/body")"
id=$(tr ',{' '\n\n' <"$work/body" | sed -n 's/^ *"id": *"\{0,1\}\([0-9][0-9]*\)"\{0,1\}.*/\1/p' | head -n 1)
ask "/release/$RELEASE/$id-250"
check "an image by its id comes" 200 "$status"
check "and may be kept for good" '*immutable*' "$(header Cache-Control)"
ask "/download/mbid-$RELEASE/mbid-$RELEASE-${id}_thumb250.jpg"
check "so does archive.org's own spelling" 200 "$status"
ask "/release-group/$GROUP/front-250"
check "a release group's cover comes" 200 "$status"
check "it is an image" image/jpeg "$(kind)"

ask "/release/00000000-0000-0000-0000-000000000000/front"
check "what the archive has not is a 404" 404 "$status"
check "in JSON" '{"error": "*"}' "$(cat "$work/body")"
check "with leave for web pages" '\*' "$(header Access-Control-Allow-Origin)"
ask "/release/$RELEASE/foot-250"
check "what is no path of the archive is a 400" 400 "$status"
check "and says why" '*"no such path: *"*' "$(cat "$work/body")"
ask "/release/../../etc/passwd"
check "what climbs out is refused" 400 "$status"
ask "/cache-files/release/"
check "the inner door is shut" '40[04]' "$status"
ask "$thumb" --request DELETE
check "only reading is possible" "405 GET, HEAD, OPTIONS" "$status $(header Allow)"
ask "$thumb" --request OPTIONS
check "OPTIONS is answered" 200 "$status"
ask "/admin/purge$thumb" --request POST
check "nobody purges without the token" '40[13]' "$status"
ask /cache-status
if [[ $status == 403 ]]; then
    echo "note  /cache-status is not for this address"
else
    check "/cache-status tells that it runs" '200 *"running"*' "$status $(cat "$work/body")"
fi

if ((failed)); then
    echo "$failed of $count checks failed"
    exit 1
fi
echo "all $count checks passed"
