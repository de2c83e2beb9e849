#!/bin/sh
# Makes the plugin ready for a project's Plugins folder: copies it, and into it the headers and libraries.
#
#   package.sh OUT [--linux libsvdq.so] [--win64 svdq.dll svdq.dll.lib] [--notices THIRD-PARTY.md]
#
# OUT/SVDQ must not exist. A platform that is not named has no library in it, and cannot be built for. A plugin that is
# given to others needs the licences of what is in the libraries: packaging/install.sh installs them as THIRD-PARTY.md.
set -eu

fail() {
    echo "package.sh: $*" >&2
    exit 1
}

[ $# -ge 1 ] || fail "usage: package.sh OUT [--linux libsvdq.so] [--win64 svdq.dll svdq.dll.lib] [--notices THIRD-PARTY.md]"
here=$(cd "$(dirname "$0")" && pwd)
out=$1/SVDQ
shift
[ ! -e "$out" ] || fail "$out exists"

mkdir -p "$(dirname "$out")"
cp -R "$here/SVDQ" "$out"
cp "$here/README.md" "$here/../../LICENSE-MIT" "$here/../../LICENSE-APACHE" "$out/"
library=$out/Source/ThirdParty/SVDQLibrary
mkdir -p "$library/include"
cp "$here/../../include/svdq.h" "$here/../cpp/svdq.hpp" "$library/include/"

while [ $# -gt 0 ]; do
    case $1 in
    --linux)
        [ $# -ge 2 ] || fail "--linux libsvdq.so"
        mkdir -p "$library/lib/Linux"
        cp -L "$2" "$library/lib/Linux/libsvdq.so"
        cp -L "$2" "$library/lib/Linux/libsvdq.so.0"
        shift 2
        ;;
    --win64)
        [ $# -ge 3 ] || fail "--win64 svdq.dll svdq.dll.lib"
        mkdir -p "$library/bin/Win64" "$library/lib/Win64"
        cp "$2" "$library/bin/Win64/svdq.dll"
        cp "$3" "$library/lib/Win64/svdq.dll.lib"
        shift 3
        ;;
    --notices)
        [ $# -ge 2 ] || fail "--notices THIRD-PARTY.md"
        cp "$2" "$library/THIRD-PARTY.md"
        shift 2
        ;;
    *) fail "what is $1?" ;;
    esac
done
