#!/bin/sh
# Installs what the end-to-end tests and `make demo-ohif` use from Debian or Ubuntu, where that is possible; otherwise
# says what will be skipped. Never fails: the tests that need a missing program skip and give the reason.
#
#   sh scripts/debian_packages.sh [orthanc] [chromium] [nginx] [dicom3tools]        default: all

missing=""
for part in ${*:-orthanc chromium nginx dicom3tools}; do
    case $part in
    orthanc)
        { command -v Orthanc >/dev/null 2>&1 || [ -x /usr/sbin/Orthanc ]; } || missing="$missing orthanc"
        [ -n "$(find /usr/share/orthanc/plugins /usr/lib/orthanc -name 'libOrthancDicomWeb.so*' 2>/dev/null)" ] ||
            missing="$missing orthanc-dicomweb"
        ;;
    nginx) { command -v nginx >/dev/null 2>&1 || [ -x /usr/sbin/nginx ]; } || missing="$missing nginx-light" ;;
    dicom3tools) command -v dciodvfy >/dev/null 2>&1 || missing="$missing dicom3tools" ;;
    chromium) command -v chromium >/dev/null 2>&1 || missing="$missing chromium" ;;
    esac
done
[ -n "$missing" ] || exit 0

command="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "debian-packages: $command"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if { apt-get update && $command; } >"$log" 2>&1 </dev/null; then
        rm -f "$log"
        exit 0
    fi
    tail -n 15 "$log"
    rm -f "$log"
    echo "debian-packages: that failed (see above)."
else
    echo "debian-packages: not installed:$missing. To have them: apt-get update && $command (as root)."
fi
echo "debian-packages: tests that need these are skipped:$missing"
