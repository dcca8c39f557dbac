# Sourced by the other scripts: the npm package `webgpu`, which is Dawn, with Microsoft's shader
# compilers as it ships them for Windows.

# $1: the folder to install into.
install_dawn() {
    if ! command -v npm >/dev/null 2>&1; then
        echo "== Installing Node"
        install_packages nodejs npm || return
    fi
    mkdir -p "$1"
    cp tests/webgpu/package.json tests/webgpu/*.mjs "$1/"
    echo "== Installing Dawn into $1"
    npm --prefix "$1" install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error
}
