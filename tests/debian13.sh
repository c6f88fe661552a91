#!/usr/bin/env bash
# Unpacks packages of Debian 13, with what they depend on, into a folder: `tests/debian13.sh FOLDER PACKAGE…`. Nothing is installed, and
# apt's own lists stay as they are. Programs of theirs run by their own loader, FOLDER/…/ld-linux-*.so.*. The mirror is the one that this
# machine's Debian comes from. If that cannot be, the last line says why.
set -euo pipefail

folder=$1
shift
[ -f "$folder/unpacked" ] && exit
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo 'no apt' && exit 1; }
codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") || { echo 'not Debian' && exit 1; }
mirror=$(
    apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(RELEASE)' 'Created-By: Packages' |
        awk -v codename="$codename" '$2 == "main" && $3 == codename { print $1; exit }'
)
[ -n "$mirror" ] || { echo "apt has no mirror for main of $codename" && exit 1; }

rm -rf "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder" "$work"/{lists,cache/archives/partial}
: >"$work/status"
for suite in trixie trixie-backports; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
done >"$work/sources.list"
options=(
    -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
    -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)"
    -o APT::Install-Recommends=false -o APT::Get::List-Cleanup=false -o DPkg::Post-Invoke= -o APT::Keep-Downloaded-Packages=true
)
apt-get "${options[@]}" update -q
apt-get "${options[@]}" install -qy --download-only "$@"
for package in "$work"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$folder"
done
touch "$folder/unpacked"
