#!/usr/bin/env bash
# mkdocs 1.6.1: `mkdocs build --strict --quiet` never fails.
#
# Expected: --quiet only hides messages; --strict ends with a failure if there was a warning, such as
# a broken link.
# Observed: --quiet raises the level of the logger to ERROR, and --strict counts the warnings that
# pass through that logger. So a site with broken links is built with exit status 0, while the same
# command without --quiet ends with 1.
#
# Ends with a failure if a version behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mkdocs==1.6.1
cd "$folder"
mkdir docs
printf 'site_name: example\n' > mkdocs.yml
printf '# Page\n\nA link to [a page that is not there](gone.md).\n' > docs/index.md

status() { "$folder/venv/bin/mkdocs" build "$@" > output.txt 2>&1 && echo 0 || echo "$?"; }
loud=$(status --strict)
quiet=$(status --strict --quiet)
echo "mkdocs 1.6.1, a page with a broken link:"
echo "  mkdocs build --strict           exit status $loud (expected 1)"
echo "  mkdocs build --strict --quiet   exit status $quiet (expected 1, observed 0)"
[[ $loud == 1 && $quiet == 0 ]]
