#!/usr/bin/env bash
# Installs libsvdq for C and C++: headers, shared and static library, CMake package, pkg-config file.
#
#   packaging/install.sh [--prefix /usr/local] [--destdir DIR] [--from DIR]
#   packaging/install.sh --archive DIR [--from DIR]
#
# --prefix   where it is to live; nothing in it holds this path, so it may be moved as a whole.
# --destdir  put in front of the prefix, for those who make packages; $DESTDIR unless given.
# --archive  writes DIR/svdq-VERSION-PLATFORM.tar.gz instead: the same, with the packages for Unity and Unreal and
#            the examples in C. The same libraries give the same bytes.
# --from     where libsvdq.so and libsvdq.a are. Without it they are built here, as they are shipped.
set -euo pipefail
sources=$(cd "$(dirname "$0")/.." && pwd)
prefix=/usr/local destdir=${DESTDIR:-} from='' archive=''
while (($#)); do
    case $1 in
    --prefix | --destdir | --from | --archive)
        [ $# -ge 2 ] || { echo "install.sh: $1 needs a folder" >&2; exit 2; }
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    *)
        sed -n '2,11s/^# \?//p' "$0" >&2
        exit 2
        ;;
    esac
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$sources/Cargo.toml" | head -1)
major=${version%%.*}
host=$(rustc -vV | sed -n 's/^host: //p')
# The header says what the static library needs, and a test links with just that.
static_needs=$(sed -n '/libsvdq.a and then/{n;s/^ \* *//p;q}' "$sources/include/svdq.h")
features=(--no-default-features)

cargo_here() { (cd "$sources" && cargo "$@"); }

# As it is shipped; without the folders of this machine, which the texts of panics would have.
build() {
    local crates=${CARGO_HOME:-$HOME/.cargo}/registry/src
    local flags=${RUSTFLAGS:-} separator=$'\x1f'
    flags=${flags:+${flags// /$separator}$separator}
    flags+="--remap-path-prefix=$crates=crates${separator}--remap-path-prefix=$sources=libsvdq"
    CARGO_ENCODED_RUSTFLAGS=$flags cargo_here build --locked --profile dist "${features[@]}" --lib
    from=$(cargo_here metadata --locked --no-deps --format-version 1 |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/dist
}

# copy MODE FILE FOLDER/ or copy MODE FILE FILE
copy() { install -D -m "$1" "${@:2}"; }

# fill TEMPLATE FILE
fill() {
    local list="$static_needs"
    # CMake's lists have semicolons and no -l.
    [[ $1 = *.cmake ]] && list=$(echo "${static_needs//-l/}" | tr ' ' ';')
    sed "s/@VERSION@/$version/; s/@MAJOR@/$major/; s/@STATIC_NEEDS@/$list/" "$sources/packaging/$1" >"$2"
    chmod 644 "$2"
}

# tree FOLDER: the files of an installation.
tree() {
    mkdir -p "$1"/{include,lib/cmake/svdq,lib/pkgconfig,share/doc/svdq}
    copy 644 "$sources/include/svdq.h" "$sources/bindings/cpp/svdq.hpp" "$1/include/"
    copy 755 "$from/libsvdq.so" "$1/lib/libsvdq.so.$version"
    ln -sf "libsvdq.so.$version" "$1/lib/libsvdq.so.$major"
    ln -sf "libsvdq.so.$major" "$1/lib/libsvdq.so"
    copy 644 "$from/libsvdq.a" "$1/lib/"
    # What rustc keeps for itself is most of it.
    strip --strip-debug -R .llvmbc -R .llvmcmd "$1/lib/libsvdq.a"
    fill svdqConfig.cmake "$1/lib/cmake/svdq/svdqConfig.cmake"
    fill svdqConfigVersion.cmake "$1/lib/cmake/svdq/svdqConfigVersion.cmake"
    fill svdq.pc "$1/lib/pkgconfig/svdq.pc"
    copy 644 "$sources"/LICENSE-* "$1/share/doc/svdq/"
    third_party >"$1/share/doc/svdq/THIRD-PARTY.md"
}

# The licences of what the library has in it: vocabularies, crates as their packages say, Rust's standard library.
third_party() {
    local folders std name version licence files file sum
    local -A first
    echo "# What libsvdq contains"
    printf '\n#%s\n' "$(cat "$sources/assets/tokenizers/NOTICE.md")"
    folders=$(cargo_here metadata --locked "${features[@]}" --filter-platform "$host" --format-version 1 |
        grep -o '"manifest_path":"[^"]*/Cargo.toml"' | cut -d'"' -f4 | xargs -n1 dirname)
    cargo_here tree --locked "${features[@]}" --edges normal,no-proc-macro --prefix none --format '{p} {l}' |
        sed 's/ ([^)]*)//' | sort -u |
        while read -r name version licence; do
            [ "$name" != libsvdq ] || continue
            printf '\n## %s %s\n%s\n' "$name" "${version#v}" "$licence"
            files=$(grep "/$name-${version#v}\$" <<<"$folders" |
                xargs -I{} find {} -maxdepth 1 -type f \( -iname 'licen*' -o -iname 'copying*' -o -iname 'notice*' \) |
                sort)
            [ -n "$files" ] || { echo "install.sh: $name $version has no licence with it" >&2; exit 1; }
            for file in $files; do
                sum=$(md5sum <"$file")
                if [ -n "${first[$sum]-}" ]; then
                    printf '\n%s: the same as of %s\n' "$(basename "$file")" "${first[$sum]}"
                else
                    first[$sum]="$name ${version#v}, $(basename "$file")"
                    printf '\n%s:\n\n' "$(basename "$file")"
                    sed 's/\r$//; s/^/    /; s/ *$//' "$file"
                fi
            done
        done
    printf "\n## Rust's standard library\nMIT OR Apache-2.0; LICENSE-MIT and LICENSE-APACHE have the texts.\n\n"
    std=$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html
    if [ -f "$std" ]; then
        sed -E "s/<[^>]*>//g; s/&(#60|lt);/</g; s/&(#62|gt);/>/g; s/&(#34|quot);/\"/g; s/&#39;/'/g; s/&(#38|amp);/\\&/g
            s/^/    /; s/ *\$//" "$std" | cat -s
    else
        echo "What it contains in turn is in COPYRIGHT-library.html of Rust's distribution."
    fi
}

write_archive() {
    local platform name work engine
    platform=$(sed 's/^\([^-]*\)-[^-]*-\([^-]*\).*/\2-\1/' <<<"$host") # linux-x86_64
    name=svdq-$version-$platform
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    tree "$work/$name"
    cp -r "$sources/README.md" "$sources/examples-c" "$work/$name/"
    for engine in unity unreal; do
        "$sources/bindings/$engine/package.sh" "$work/$name/$engine" --linux "$from/libsvdq.so" \
            --notices "$work/$name/share/doc/svdq/THIRD-PARTY.md"
    done
    mkdir -p "$archive"
    tar -C "$work" --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner \
        --mode=u+w,go-w,a+rX -cf - "$name" | gzip -n >"$archive/$name.tar.gz"
    echo "$archive/$name.tar.gz"
}

[ -n "$from" ] || build
if [ -n "$archive" ]; then
    write_archive
else
    tree "$destdir$prefix"
fi
