#!/usr/bin/env bash
# Puts a load of hits on a running proxy and says whether it stood it: ./validate.sh [base URL]
#
# Only what is held is asked for under load: one cover in its three sizes, fetched first, so the
# archive gets no more than a handful of requests. Where a cover is answered by a redirect to its
# image (COVER_ART_IMAGE_MODE), the image is what the load asks for. Exit code: 0 it stood it, 1 it
# did not, 2 it could not be tried. Needs curl 7.68 or later.
#
# REQUESTS (3000), CLIENTS (30), MOST_P99_MS (500), RELEASE: a release with a front cover.
set -uo pipefail

BASE=${1:-http://localhost:8080}
BASE=${BASE%/}
RELEASE=${RELEASE:-76df3287-6cda-33eb-8e9a-044b5e15ffdd}
REQUESTS=${REQUESTS:-3000}
CLIENTS=${CLIENTS:-30}
MOST_P99_MS=${MOST_P99_MS:-500}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

paths=("/release/$RELEASE/front-250" "/release/$RELEASE/front-500" "/release/$RELEASE/front-1200")
sizes=()
urls=()
for path in "${paths[@]}"; do
    # Twice: the second answer is the one that all others have to be like.
    for _ in 1 2; do
        read -r status size url < <(curl --silent --location --max-time 120 --output "$work/body" \
            --write-out '%{http_code} %{size_download} %{url_effective}\n' "$BASE$path")
    done
    if [[ $status != 200 ]]; then
        echo "can't be tried: $BASE$path answered $status" >&2
        exit 2
    fi
    sizes+=("$size")
    urls+=("$url")
done

for ((n = 0; n < REQUESTS; n++)); do
    i=$((n % ${#paths[@]}))
    printf 'url = "%s"\noutput = "/dev/null"\n' "${urls[i]}?$i"
done >"$work/urls"
began=$(date +%s.%N)
curl --silent --no-progress-meter --parallel --parallel-max "$CLIENTS" --max-time 60 --config "$work/urls" \
    --write-out '%{http_code} %{time_total} %{size_download} %{url_effective}\n' >"$work/answers"
ended=$(date +%s.%N)

awk -v wanted="$REQUESTS" -v most="$MOST_P99_MS" -v seconds="$(awk "BEGIN { print $ended - $began }")" \
    -v sizes="${sizes[*]}" '
    BEGIN { split(sizes, size, " ") }
    { at = $4; sub(/.*\?/, "", at); if ($1 == 200 && $3 == size[at + 1]) right++; else wrong[$1 == 200 ? "of a wrong length" : "with status " $1]++ ; time[NR] = $2 * 1000 }
    END {
        n = asort_numbers(time, NR)
        printf "%d requests by %s clients in %.1f s: %.0f a second\n", NR, clients, seconds, NR / seconds
        printf "right answers %d of %d\n", right, wanted
        for (kind in wrong) printf "answers %s: %d\n", kind, wrong[kind]
        p50 = time[int((n + 1) * 0.50)]; p99 = time[int((n + 1) * 0.99)]
        printf "time of an answer: median %.1f ms, 99th percentile %.1f ms (at most %s)\n", p50, p99, most
        if (right != wanted) { print "FAIL: not every answer was right"; exit 1 }
        if (p99 > most) { print "FAIL: too slow"; exit 1 }
        print "PASS"
    }
    function asort_numbers(a, n,   i, j, gap, v) {  # a shell sort: not every awk has one
        for (gap = int(n / 2); gap > 0; gap = int(gap / 2))
            for (i = gap + 1; i <= n; i++) {
                v = a[i]
                for (j = i; j > gap && a[j - gap] > v; j -= gap) a[j] = a[j - gap]
                a[j] = v
            }
        return n
    }' clients="$CLIENTS" "$work/answers"
