# Sourced by the other scripts: makes sure that there is an adapter, and says what it did.
# macOS has Metal and Windows has DX12 built in; on Linux an existing Vulkan or GL driver is used,
# and where there is none Mesa's software adapter is installed.

require_cargo() {
    command -v cargo >/dev/null 2>&1 && return
    echo "Rust is missing: install it from https://rustup.rs and run this again." >&2
    exit 1
}

# Installs Debian packages, or says why not. $@: their names.
install_packages() {
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "This script can install packages on Debian and Ubuntu only; needed here: $*" >&2
        return 1
    fi
    local root=""
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "As root, run: apt-get install -y $*" >&2
            return 1
        fi
        root="sudo -n"
    fi
    if ! { $root apt-get update -qq &&
        $root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }; then
        echo "apt-get could not install $*; its messages stand above." >&2
        return 1
    fi
}

# Asks wgpu itself. $1: the cargo profile's arguments, so that nothing is built twice.
has_adapter() {
    # shellcheck disable=SC2086
    cargo run --quiet $1 --example adapters -- --list
}

ensure_adapter() {
    echo "== Looking for a GPU adapter (the first build takes some minutes)"
    # shellcheck disable=SC2086
    cargo build $1 --example adapters
    if has_adapter "$1" 2>/dev/null; then
        return
    fi
    local packages="mesa-vulkan-drivers libvulkan1"
    echo "== None found: installing Mesa's software adapter"
    # shellcheck disable=SC2086
    if ! install_packages $packages; then
        has_adapter "$1" || true
        echo "No adapter was found, and none could be installed." >&2
        exit 1
    fi
    if ! has_adapter "$1"; then
        echo "There is still no adapter after installing $packages." >&2
        exit 1
    fi
}
