// SPDX-License-Identifier: Apache-2.0
/*
 * The plainest way to bring an image up to a snapshot: for each block that a COW file lists as changed, one pread and one
 * pwrite of 4 KiB. What update-img is measured against.
 *
 *     update-blocks [--sync] SNAPSHOT COWFILE IMAGE
 *
 * Prints how many blocks it copied. With --sync the image is durable when it ends.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define BLOCK 4096
#define ENTRIES 4096

static int fail(const char *what)
{
	fprintf(stderr, "update-blocks: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	static uint64_t entries[ENTRIES];
	static char block[BLOCK] __attribute__((aligned(BLOCK)));
	const int sync = argc > 1 && strcmp(argv[1], "--sync") == 0;

	if (argc != 4 + sync) {
		fprintf(stderr, "usage: update-blocks [--sync] SNAPSHOT COWFILE IMAGE\n");
		return 2;
	}
	const int snapshot = open(argv[1 + sync], O_RDONLY);
	if (snapshot < 0)
		return fail(argv[1 + sync]);
	const int cow = open(argv[2 + sync], O_RDONLY);
	if (cow < 0)
		return fail(argv[2 + sync]);
	const int image = open(argv[3 + sync], O_WRONLY);
	if (image < 0)
		return fail(argv[3 + sync]);
	const off_t size = lseek(snapshot, 0, SEEK_END);
	if (size < 0)
		return fail("size of the snapshot");

	const off_t blocks = (size + BLOCK - 1) / BLOCK;
	long copied = 0;
	for (off_t first = 0; first < blocks; first += ENTRIES) {
		/* The index begins after the header's page: 8 bytes a block, not zero where the block changed. */
		if (pread(cow, entries, sizeof(entries), BLOCK + first * 8) != (ssize_t)sizeof(entries))
			return fail("index of the COW file");
		for (off_t i = 0; i < ENTRIES && first + i < blocks; i++) {
			if (le64toh(entries[i]) == 0)
				continue;
			const off_t at = (first + i) * BLOCK;
			const ssize_t length = pread(snapshot, block, BLOCK, at);
			if (length <= 0 || pwrite(image, block, length, at) != length)
				return fail("block");
			copied++;
		}
	}
	if (sync && fsync(image) != 0)
		return fail("fsync of the image");
	printf("%ld\n", copied);
	return 0;
}
