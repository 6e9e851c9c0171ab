#!/bin/sh
# Makes a private authority and nginx's certificate for the archive's names; see docs/appliance.md.
#
#   authority.sh FOLDER         makes what is missing, renews the certificate in its last 30 days
#   authority.sh FOLDER keep    the same, and once more each day, until it is stopped
#
#   FOLDER/authority.pem         what clients are told to trust; good for ten years. Its key signed
#                                signer.pem, was never on the disk and is gone
#   FOLDER/signer.pem, .key      sign the certificates; nobody but their owner reads the key
#   FOLDER/nginx/…               the certificate, good for 90 days, and its key, as nginx/start.sh takes
#                                them (NGINX_TLS_CERTIFICATES)
#
# Run again, it changes nothing that is still good. Needs openssl, 1.1.1 or later.
set -eu

NAMES="coverartarchive.org eventartarchive.org"
# Who reads the certificate's key besides its owner: the group that nginx has in its container. Only
# root can give a file to a group that is not its own.
AUTHORITY_GROUP=${AUTHORITY_GROUP:-101}
AUTHORITY_DAYS=3650
CERTIFICATE_DAYS=90
RENEW_DAYS=30

folder=${1:?say in which folder}
certificate=$folder/nginx/${NAMES%% *}
umask 077

say() { echo "authority.sh: $1"; }
names() { # WHAT: a list of OpenSSL's, for all names
    for name in $NAMES; do printf '%s:%s, ' "$1" "$name"; done | sed 's/, $//'
}
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 2>/dev/null; }
serial() { echo "0x$(openssl rand -hex 16)"; }
ends_within() { # DAYS FILE: or is not there
    ! openssl x509 -noout -checkend $(($1 * 86400)) -in "$2" >/dev/null 2>&1
}
clean() { rm -rf "$folder/.new"; }
trap clean EXIT
trap 'exit 0' TERM INT

# What an authority may sign ends at the archive's names: whoever steals its key can pretend to be the
# archive, and nobody else. Names do not bound addresses (RFC 5280 section 4.2.1.10): none is allowed.
extensions() { # PATHLEN
    echo "basicConstraints = critical, CA:TRUE, pathlen:$1"
    echo "keyUsage = critical, keyCertSign, cRLSign"
    echo "extendedKeyUsage = serverAuth"
    echo "subjectKeyIdentifier = hash"
    echo "nameConstraints = critical, $(names 'permitted;DNS'), excluded;IP:0.0.0.0/0.0.0.0, excluded;IP:::/::"
}

# Two steps, since some clients (Java) do not look at the constraints of what they are told to trust,
# only at those of what it signed.
authority() {
    [ ! -e "$folder/authority.pem" ] || return 0
    new=$folder/.new
    mkdir -p "$new"
    subject="/O=coverart/CN=coverart $(date +%F), for the Cover Art Archive only"
    {
        printf '[req]\nprompt = no\ndistinguished_name = none\n[none]\n[extensions]\n'
        extensions 1
    } >"$new/authority.cnf"
    {
        extensions 0
        echo "authorityKeyIdentifier = keyid"
    } >"$new/signer.cnf"
    key=$(new_key)
    printf '%s\n' "$key" | openssl req -new -x509 -sha256 -days $AUTHORITY_DAYS -config "$new/authority.cnf" \
        -extensions extensions -subj "$subject" -set_serial "$(serial)" -key /dev/stdin -out "$new/authority.pem"
    new_key >"$folder/signer.key"
    openssl req -new -sha256 -config "$new/authority.cnf" -subj "$subject (signer)" \
        -key "$folder/signer.key" -out "$new/signer.csr"
    printf '%s\n' "$key" | openssl x509 -req -sha256 -days $AUTHORITY_DAYS -in "$new/signer.csr" \
        -extfile "$new/signer.cnf" -CA "$new/authority.pem" -CAkey /dev/stdin -set_serial "$(serial)" \
        -out "$folder/signer.pem" 2>/dev/null
    unset key
    chmod 644 "$new/authority.pem" "$folder/signer.pem"
    rm -f "$certificate.crt"
    mv "$new/authority.pem" "$folder/authority.pem"
    say "new authority: let clients trust authority.pem"
}

certificate() {
    ends_within $RENEW_DAYS "$certificate.crt" || return 0
    new=$folder/.new
    mkdir -p "$new" "$folder/nginx"
    cat >"$new/cnf" <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $(names DNS)
END
    new_key >"$new/key"
    openssl req -new -sha256 -subj "/CN=${NAMES%% *}" -key "$new/key" -out "$new/csr"
    openssl x509 -req -sha256 -days $CERTIFICATE_DAYS -in "$new/csr" -extfile "$new/cnf" -set_serial "$(serial)" \
        -CA "$folder/signer.pem" -CAkey "$folder/signer.key" -out "$new/certificate.pem" 2>/dev/null
    cat "$new/certificate.pem" "$folder/signer.pem" >"$new/crt"
    [ "$(id -u)" != 0 ] || chgrp "$AUTHORITY_GROUP" "$folder/nginx" "$new/key"
    chmod 750 "$folder/nginx"
    chmod 640 "$new/key"
    chmod 644 "$new/crt"
    # nginx/start.sh takes the two when they belong together.
    mv "$new/key" "$certificate.key"
    mv "$new/crt" "$certificate.crt"
    say "new certificate for $NAMES, good for $CERTIFICATE_DAYS days"
}

all() {
    authority
    if ends_within $((2 * CERTIFICATE_DAYS)) "$folder/authority.pem"; then
        say "authority.pem ends soon: delete it, run this again, and let clients trust the new one"
    fi
    certificate
    clean
}

mkdir -m 755 -p "$folder"
all
[ "${2:-}" = keep ] || exit 0
while :; do
    sleep 86400 &
    wait $!
    all
done
