#!/bin/sh
# Builds the object that is committed beside the source: sh bpf/build.sh [FILE]. Needs clang, llvm and libbpf-dev; CLANG names another
# compiler than `clang`.
set -eu
cd "$(dirname "$0")/.."
# The kernel's own headers of this machine (asm/types.h): the object is the same on x86-64 and arm64.
out=${1:-bpf/tracker.bpf.o}
"${CLANG:-clang}" -g -O2 -target bpf -mcpu=v3 -Wall -Werror -fdebug-compilation-dir=. "-I/usr/include/$(uname -m)-linux-gnu" \
  -c bpf/tracker.bpf.c -o "$out"
# BTF stays, DWARF goes.
llvm-strip -g "$out"
