#!/bin/sh
# Gives a new folder to the user of the containers: folder.sh FOLDER NAME, where NAME is how the
# operator knows it. One that is his already is left as it is; one that holds somebody's files is
# not taken away from him.
set -eu
owner=$(stat -c %u "$1")
[ "$owner" != 101 ] || exit 0
if [ -n "$(ls -A "$1" 2>&1)" ]; then
    echo "$2 belongs to user $owner and is not empty: sudo chown -R 101:101 that folder, or name another in .env" >&2
    exit 1
fi
chown 101:101 "$1"
