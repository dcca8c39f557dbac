# Sourced by the other scripts: a second, newer lavapipe beside the system's.
#
# Debian 12 has Mesa 22.3, which Dawn refuses and which hides what newer compilers do. Its backports
# have a newer one, which is unpacked into a folder and reached through VK_DRIVER_FILES, so that the
# system stays as it is. Where the installed Mesa is new enough, it is used.

# The first version of Mesa that counts as new.
newest_needed=24

installed_mesa() {
    dpkg-query --showformat='${Version}' --show mesa-vulkan-drivers 2>/dev/null | cut -d. -f1 | sed 's/.*://'
}

# Sets the variable `newer_driver` to the driver's manifest. $1: a folder to unpack into.
find_newer_lavapipe() {
    local folder=$1 version manifest
    if [ "$(uname -s)" != Linux ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "A newer lavapipe can be fetched on Debian and Ubuntu only." >&2
        return 1
    fi
    # No Mesa is an error of dpkg-query's.
    version=$(installed_mesa) || version=0
    if [ "${version:-0}" -ge "$newest_needed" ]; then
        newer_driver=$(find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' | head -n 1)
        [ -n "$newer_driver" ] && return
    fi
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    newer_driver=$folder/lavapipe.json
    [ -s "$newer_driver" ] && return
    echo "== Unpacking a newer lavapipe into $folder"
    unpack_backports "$folder" || return
    manifest=$(find "$folder/root" -name 'lvp_icd*.json' | head -n 1)
    library=$(find "$folder/root" -name 'libvulkan_lvp.so' | head -n 1)
    if [ -z "$manifest" ] || [ -z "$library" ]; then
        echo "The packages hold no lavapipe." >&2
        return 1
    fi
    sed "s#\"library_path\": \"[^\"]*\"#\"library_path\": \"$library\"#" "$manifest" >"$newer_driver"
}

# Its own package lists: neither root nor a change of the system is needed.
unpack_backports() {
    local folder=$1 codename mirror key deb
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # apt's placeholder, not the shell's
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $codename" | head -n 1)
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ -z "$mirror" ] || [ ! -e "$key" ]; then
        echo "The installed Mesa is too old, and this is no Debian with backports." >&2
        return 1
    fi
    mkdir -p "$folder"/lists/partial "$folder"/cache/archives/partial "$folder"/root
    echo "deb [signed-by=$key] $mirror $codename-backports main" >"$folder/sources.list"
    local options="-o Dir::Etc::SourceList=$folder/sources.list -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder/cache -o APT::Sandbox::User="
    (
        cd "$folder/cache"
        # shellcheck disable=SC2086
        apt-get $options -qq update && apt-get $options -qq download \
            {mesa-vulkan-drivers,libdrm2,libdrm-amdgpu1}/"$codename-backports"
    ) || {
        echo "apt-get could not download the newer Mesa; its messages stand above." >&2
        return 1
    }
    for deb in "$folder"/cache/*.deb; do
        dpkg -x "$deb" "$folder/root" || return
    done
}

# Runs a command on the newer lavapipe.
with_newer_lavapipe() {
    local libraries
    libraries=$(dirname "$(sed -n 's#.*"library_path": "\(/[^"]*\)".*#\1#p' "$newer_driver")")
    VK_DRIVER_FILES=$newer_driver VK_ICD_FILENAMES=$newer_driver \
        LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
}
