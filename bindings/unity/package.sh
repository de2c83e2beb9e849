#!/bin/sh
# Makes the package ready for Unity's package manager: copies it, and into it the libraries.
#
#   package.sh OUT [--linux libsvdq.so] [--win64 svdq.dll] [--notices THIRD-PARTY.md]
#
# OUT/com.libsvdq.svdq must not exist. A platform that is not named has no library in it. A package that is given to
# others needs the licences of what is in the libraries: packaging/install.sh installs them as THIRD-PARTY.md.
set -eu

fail() {
    echo "package.sh: $*" >&2
    exit 1
}

[ $# -ge 1 ] || fail "usage: package.sh OUT [--linux libsvdq.so] [--win64 svdq.dll] [--notices THIRD-PARTY.md]"
here=$(cd "$(dirname "$0")" && pwd)
out=$1/com.libsvdq.svdq
shift
[ ! -e "$out" ] || fail "$out exists"

linux=
win64=
notices=
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 FILE"
    case $1 in
    --linux) linux=$2 ;;
    --win64) win64=$2 ;;
    --notices) notices=$2 ;;
    *) fail "what is $1?" ;;
    esac
    shift 2
done

mkdir -p "$(dirname "$out")"
cp -R "$here/com.libsvdq.svdq" "$out"
plugins=$out/Runtime/Plugins/x86_64
# Unity warns of settings without a file.
if [ -n "$linux" ]; then cp -L "$linux" "$plugins/libsvdq.so"; else rm "$plugins/libsvdq.so.meta"; fi
if [ -n "$win64" ]; then cp "$win64" "$plugins/svdq.dll"; else rm "$plugins/svdq.dll.meta"; fi
if [ -n "$notices" ]; then cp "$notices" "$out/Third Party Notices.md"; else rm "$out/Third Party Notices.md.meta"; fi
