#!/bin/sh
# Gets a certificate for each name and keeps it new: what docker/tls.yml runs in certbot's image, beside
# nginx, which answers the authority for it. certbot renews what is due and asks for nothing else.
#
#   certificates.sh        twice a day, for good
#   certificates.sh once   now; exit code 1 if a name has none
#
# ACME_DOMAINS  names with commas between them
# ACME_SERVER   the authority's directory
# ACME_OPTIONS  more options of certbot
# ACME_DIR      a folder: NAME.crt and NAME.key come there, for nginx; acme/ is certbot's own, and
#               nginx answers from challenges/
set -u
umask 022
server=${ACME_SERVER:-https://acme-v02.api.letsencrypt.org/directory}
# Of each authority its own: what one has given (to practise, say) is not taken for another's.
own=$ACME_DIR/acme/$(echo "${server#*://}" | sed 's|/.*||; s|[^A-Za-z0-9.-]|_|g')

certificate() { # NAME: get or renew it; then put it where nginx looks
    # shellcheck disable=SC2086 # the options are words
    certbot certonly --non-interactive --quiet --agree-tos --register-unsafely-without-email \
        --server "$server" --webroot --webroot-path "$ACME_DIR/challenges" \
        --cert-name "$1" --domain "$1" --keep-until-expiring --key-type ecdsa \
        --config-dir "$own" --work-dir "$own/work" --logs-dir "$own/logs" --max-log-backups 3 \
        ${ACME_OPTIONS:-} || return 1
    put "$own/live/$1/privkey.pem" "$ACME_DIR/$1.key" && put "$own/live/$1/fullchain.pem" "$ACME_DIR/$1.crt"
}
put() { # FROM TO: whole or not at all
    cmp -s "$1" "$2" || { (umask 077 && cat "$1" >"$2.new") && mv "$2.new" "$2"; }
}
all() {
    failed=0
    mkdir -p "$ACME_DIR/challenges" "$own"
    for name in $(echo "$ACME_DOMAINS" | tr ',' ' '); do
        if certificate "$name"; then
            echo "certificates.sh: $name: its certificate is good"
        else
            echo "certificates.sh: $name: no new certificate, the next try is in 1 h" >&2
            failed=1
        fi
    done
    return $failed
}
if [ "${1:-}" = once ]; then
    all
    exit
fi
trap 'exit 0' TERM INT
while :; do
    # Authorities count what fails: five times an hour is what Let's Encrypt bears.
    all && pause=43200 || pause=3600
    sleep "$pause" &
    wait $!
done
