// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The change tracker: one bit for each 4 KiB block of one disk, set when a write to it is over.
 *
 * One copy of this is loaded for each tracked disk, with its numbers in .rodata. The maps and links are pinned: it goes on when
 * the process that loaded it is gone. No vmlinux.h: only the fields that are used, found by name (CO-RE) in the running kernel.
 *
 * When a bit is set. Request-based disks: at block_rq_complete, which comes after the data is on the disk and before whoever
 * wrote it is told. Disks without requests (zram, device mapper) complete bios whose range has been used up by then, so it is
 * noted at block_bio_queue under the bio's address, and marked at block_bio_complete. So a bit that is set after a reader cleared
 * it means that the reader may have read old data, and a bit that is not set means that it read what is there.
 *
 * Three programs at each tracepoint. The kernel does not run a program inside of itself: what completes in an interrupt while the
 * program runs for another disk would be missed, and machines with several kinds of disks would never be without a miss. Task,
 * softirq and hardirq can be inside of each other, so of three programs in a row one is always free. The first one notes which
 * event it did on a stack of its processor; the second does the event if it is not there (the first missed it), the third too,
 * and takes it off. `covered` counts what the first missed and another did: as long as it equals the kernel's own count of the
 * first one's misses, nothing was missed.
 *
 * And not even that is believed. Kernels were met that do not run programs in the context of some process, and count no miss. So a
 * request is noted at block_rq_issue under its address, with its range, and the note is emptied when it is seen to complete: what
 * is noted is under way or was missed, and whoever takes bits takes these ranges too. Requests are used again: a note that is not
 * empty when the next one is issued is of one whose end was missed, and its range is marked before the note is overwritten. One
 * program does for that: a request without a note is marked when it completes, and if that is missed too, it is a doubt.
 *
 * That is found by counting: `sectors` of what was seen to complete, `recovered` sectors of notes whose end was missed, and those that
 * are still noted, against the kernel's statistics of the disk, which count in the same function that completes requests. A zram
 * disk that is reset has other contents without a write: its statistics begin at 0 then, which is found the same way.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define NULL ((void *)0)
#define CORE __attribute__((preserve_access_index))

struct gendisk {
	int major;
	int first_minor;
} CORE;
struct request_queue {
	struct gendisk *disk;
} CORE;
struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
} CORE;
struct block_device {
	struct gendisk *bd_disk;
} CORE;
struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	struct bvec_iter bi_iter;
	void *bi_private;
} CORE;
struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	__u64 start_time_ns;
} CORE;
/* Before Linux 5.17. */
struct request___old {
	struct gendisk *rq_disk;
} CORE;

/* Operations (linux/blk_types.h, stable since 4.10): odd ones carry data to the disk. */
#define OP_MASK 0xff
#define OP_WRITE 1
#define OP_DISCARD 3
#define OP_SECURE_ERASE 5
#define OP_WRITE_ZEROES 9
#define OP_DRV_IN 34
#define OP_DRV_OUT 35

#define BLOCK_SHIFT 12
#define SECTOR_SHIFT 9
/* 64-bit words in a page of the map: what one entry of `summary` stands for. */
#define PAGE_WORDS_SHIFT 9
/* More than a disk has blocks: bpf_loop's limit. */
#define WORDS_MAX (1 << 23)
/* A request counts its ranges in 16 bits. */
#define BIOS_MAX (1 << 16)

/* Set between open and load. */
const volatile __u32 disk_major = 0;
const volatile __u32 disk_minor = 0;
const volatile __u32 words = 1;
/* 1: a passthrough command without data may change the disk, as with NVMe's Write Zeroes. */
const volatile __u32 strict_passthrough = 0;
const volatile __u64 block_count = 0;
/* Places for notes: a power of two, less one. */
const volatile __u32 note_mask = 0;

/*
 * The layout below is read by every later Cowbird: src/live/kernel-map.ts has the same numbers. `magic` to `ready` are written
 * by the process that loads this, `ready` last.
 */
#define DOUBT_COUNTERS 8
struct state {
	__u32 magic;
	__u32 layout;
	__u32 ready;
	__u32 kind;
	__u32 major;
	__u32 minor;
	__u32 words;
	__u32 cpus;
	__u64 block_count;
	__u64 disk_bytes;
	__u8 device[64];
	__u8 map_id[32];
	__u8 since[32];
	/* Everything after which the map cannot be trusted; they only grow. */
	__u64 passthrough;
	__u64 beyond_end;
	__u64 unknown_op;
	__u64 unknown_bio;
	__u64 too_many_bios;
	__u64 no_cpu;
	__u64 unused[2];
};
_Static_assert(sizeof(struct state) == 48 + 128 + 8 * DOUBT_COUNTERS, "the layout is fixed");
struct state state;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} dirty SEC(".maps");

/* Not zero: this page of `dirty` may have bits. Set after the bit, cleared before the page is read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} summary SEC(".maps");

/*
 * What of a processor's stack of events can be live is at most three deep; what the third program missed stays below it until an
 * outer event cleans up, or for good. At `LEVELS_FULL` the upper `LEVELS_KEPT` come down: reading them is not disturbed by an
 * interrupt that does the same.
 */
#define LEVELS 16
#define LEVELS_FULL 12
#define LEVELS_KEPT 4
struct cpu {
	__u32 depth;
	__u32 unused;
	__u64 covered;
	/* That changed, of what was seen to complete: the kernel counts them too. */
	__u64 sectors;
	/* That changed, of requests whose end was not seen: known by their notes. */
	__u64 recovered;
	__u64 event[LEVELS];
};
_Static_assert(sizeof(struct cpu) == 32 + 8 * LEVELS, "the layout is fixed");

/* Two for each processor: for events that complete, and for those that are queued. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

struct range {
	__u64 first;
	__u64 bytes;
};

/* Bios under way, by address. Only with disks without requests. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct range);
} bios SEC(".maps");

/*
 * Written in place, `bytes` last. A reader may see the sectors of one request with the bytes of the next: that one is under way
 * only now, and its note is there, whole, for as long as its end is not seen.
 */
struct note {
	/* Of the request; 0: the place is free. Once taken, it is that request's for good. */
	__u64 address;
	__u64 first;
	/* What has not been seen to complete; 0: nothing. */
	__u64 bytes;
	/* When the request was allocated: tells one use of an address from the next, and not a request from itself when it is requeued. */
	__u64 start;
};
_Static_assert(sizeof(struct note) == 32, "the layout is fixed");

/*
 * Requests that are or were under way, each at the place that its address gives, or at one of the next. A disk uses the same few
 * again and again, so that their notes stay: to make and remove one for each write, in a hash, costs more than all the rest.
 * There is room for four times as many as the disk has, some of which may be made anew (another I/O scheduler). A request that
 * finds no place has no note, and if its end is missed, it is a doubt.
 */
#define PROBES 8
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct note);
} requests SEC(".maps");

#define COMPLETE 0
#define QUEUE 1

static __always_inline struct cpu *this_cpu(__u32 kind)
{
	__u32 key = bpf_get_smp_processor_id() * 2 + kind;
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &key);

	if (!cpu)
		__sync_fetch_and_add(&state.no_cpu, 1);
	return cpu;
}

static __always_inline void put_event(struct cpu *cpu, __u64 event)
{
	__u32 depth = cpu->depth;

	if (depth >= LEVELS_FULL) {
		for (int i = 0; i < LEVELS_KEPT; i++)
			cpu->event[i] = cpu->event[LEVELS_FULL - LEVELS_KEPT + i];
		depth = LEVELS_KEPT;
		barrier();
		cpu->depth = depth;
		barrier();
	}
	/* Taken before it is filled: an interrupt in between uses the level above. What is free is 0, so it finds nothing there. */
	cpu->depth = depth + 1;
	barrier();
	cpu->event[depth & (LEVELS - 1)] = event;
}

/* How deep the event is in the stack; -1 when it is not there. */
static __always_inline int find_event(struct cpu *cpu, __u64 event)
{
	__u32 depth = cpu->depth, top = (depth - 1) & (LEVELS - 1);

	/* All but always. */
	if (cpu->event[top] == event && top < depth)
		return top;
	for (int i = LEVELS - 1; i >= 0; i--)
		if (i < depth && cpu->event[i] == event)
			return i;
	return -1;
}

/* Takes the event off, and what was left above it by interrupts that are over. */
static __always_inline int take_event(struct cpu *cpu, __u64 event)
{
	int at = find_event(cpu, event);

	if (at < 0)
		return 0;
	cpu->event[at & (LEVELS - 1)] = 0;
	barrier();
	cpu->depth = at;
	return 1;
}

struct span {
	__u64 first;
	__u64 last;
};

static long mark_word(__u32 i, struct span *span)
{
	__u64 word = (span->first >> 6) + i, mask = ~0ULL, *bits;
	__u32 key = word, page = word >> PAGE_WORDS_SHIFT, *hint;

	if (word > (span->last >> 6) || word >= words)
		return 1;
	if (word == span->first >> 6)
		mask &= ~0ULL << (span->first & 63);
	if (word == span->last >> 6)
		mask &= ~0ULL >> (63 - (span->last & 63));
	bits = bpf_map_lookup_elem(&dirty, &key);
	hint = bpf_map_lookup_elem(&summary, &page);
	if (!bits || !hint)
		return 1;
	/*
	 * The OR that returns the old value is a full barrier: the bit is there before the hint is looked at. One that is 1 is exchanged
	 * later, by a reader who then sees the bit. Written each time, its cache line would go to and fro between processors.
	 */
	if ((*bits & mask) != mask && (__sync_fetch_and_or(bits, mask) & mask) != mask && *(volatile __u32 *)hint != 1)
		*hint = 1;
	return 0;
}

static __always_inline void mark(__u64 sector, __u64 bytes)
{
	struct span span = {
		.first = (sector << SECTOR_SHIFT) >> BLOCK_SHIFT,
		.last = ((sector << SECTOR_SHIFT) + bytes - 1) >> BLOCK_SHIFT,
	};

	if (!bytes)
		return;
	if (span.last >= block_count || span.first > span.last) {
		__sync_fetch_and_add(&state.beyond_end, 1);
		if (span.first >= block_count)
			return;
		span.last = block_count - 1;
	}
	if (span.first >> 6 == span.last >> 6)
		mark_word(0, &span);
	else
		bpf_loop(WORDS_MAX, mark_word, &span, 0);
}

/* The rest of a request's bios. */
struct walk {
	struct bio *bio;
};

static long mark_bio(__u32 i, struct walk *walk)
{
	struct bio *bio = walk->bio;

	if (!bio)
		return 1;
	mark(BPF_CORE_READ(bio, bi_iter.bi_sector), BPF_CORE_READ(bio, bi_iter.bi_size));
	walk->bio = BPF_CORE_READ(bio, bi_next);
	return 0;
}

/*
 * A discard may be of several ranges that do not touch, where the disk takes such (NVMe): the kernel gathers the bios of one plug,
 * whose sizes the request has in sum, behind the sector of the first. They have not been advanced yet when it is told that they end.
 */
static __always_inline int has_ranges(struct request *rq)
{
	return (rq->cmd_flags & OP_MASK) == OP_DISCARD && rq->bio && rq->bio->bi_next;
}

static __always_inline void mark_ranges(struct request *rq)
{
	struct walk walk = { .bio = rq->bio };

	bpf_loop(BIOS_MAX, mark_bio, &walk, 0);
	if (walk.bio)
		__sync_fetch_and_add(&state.unknown_op, 1);
}

static __always_inline int is_ours(struct gendisk *disk)
{
	return disk && BPF_CORE_READ(disk, major) == disk_major && BPF_CORE_READ(disk, first_minor) == disk_minor;
}

static __always_inline int names_range(__u32 op)
{
	return op == OP_WRITE || op == OP_DISCARD || op == OP_SECURE_ERASE || op == OP_WRITE_ZEROES;
}

/* Whether the operation changes a range that it names. Counts what may change anything. */
static __always_inline int changes_range(__u32 op, __u64 bytes)
{
	if (names_range(op))
		return 1;
	if (op == OP_DRV_OUT || (op == OP_DRV_IN && strict_passthrough && !bytes))
		__sync_fetch_and_add(&state.passthrough, 1);
	else if (op & 1)
		__sync_fetch_and_add(&state.unknown_op, 1);
	return 0;
}

static __always_inline int is_request_ours(struct request *rq)
{
	struct gendisk *disk;

	/* Read without a helper: this is done for every request of every disk. */
	if (bpf_core_field_exists(struct request_queue, disk)) {
		disk = rq->q->disk;
		return disk && disk->major == disk_major && disk->first_minor == disk_minor;
	}
	return is_ours(BPF_CORE_READ((struct request___old *)rq, rq_disk));
}

/*
 * Marks what was noted, of which `missed` bytes were not seen to complete. Who takes bits reads notes first, then marks: the mark
 * is there before the note goes, for which the exchange is a barrier.
 */
static __always_inline void recover(struct cpu *cpu, struct note *note, __u64 missed)
{
	mark(note->first, note->bytes);
	if (cpu)
		__sync_fetch_and_add(&cpu->recovered, missed >> SECTOR_SHIFT);
	__sync_lock_test_and_set(&note->bytes, 0);
}

/* The note of a request; with `take`, one of its own where it has none yet. */
static __always_inline struct note *find_note(struct request *rq, int take)
{
	__u64 address = (__u64)rq;
	__u32 low = address, place;

	/* The verifier lets nobody calculate with pointers; half of one, moved to a register of 32 bits, is a number. */
	asm volatile("" : "+w"(low));
	/* Requests lie side by side, some hundred bytes each; more bits than there ever are places. */
	place = ((low >> 6) * 0x9e3779b1U) >> 14;
	for (int i = 0; i < PROBES; i++) {
		__u32 key = (place + i) & note_mask;
		struct note *note = bpf_map_lookup_elem(&requests, &key);

		if (!note)
			return NULL;
		if (note->address == address)
			return note;
		if (note->address)
			continue;
		if (!take)
			return NULL;
		if (!__sync_val_compare_and_swap(&note->address, 0, address))
			return note;
	}
	return NULL;
}

static __always_inline void write_note(struct note *note, __u64 first, __u64 bytes, __u64 start)
{
	note->first = first;
	note->start = start;
	/* An exchange, because nothing that is written before may come later. */
	__sync_lock_test_and_set(&note->bytes, bytes);
}

static __always_inline void on_issue(struct request *rq)
{
	struct note *note;

	if (!names_range(rq->cmd_flags & OP_MASK) || !is_request_ours(rq))
		return;
	note = find_note(rq, 1);
	if (!note)
		return;
	/* Requeued, it has not completed, but it may be another range now. */
	if (note->bytes)
		recover(this_cpu(COMPLETE), note, note->start == rq->start_time_ns ? 0 : note->bytes);
	/* A note has one range: without one, an end that is missed is a doubt. */
	if (has_ranges(rq))
		return;
	write_note(note, rq->__sector, rq->__data_len, rq->start_time_ns);
}

static __always_inline void on_request(struct cpu *cpu, struct request *rq, unsigned int bytes)
{
	__u64 rest = rq->__data_len;
	struct note *note;

	/* A failed write may have changed sectors: errors are not looked at. */
	if (!is_request_ours(rq) || !changes_range(rq->cmd_flags & OP_MASK, bytes))
		return;
	if (cpu)
		__sync_fetch_and_add(&cpu->sectors, bytes >> SECTOR_SHIFT);
	if (has_ranges(rq))
		mark_ranges(rq);
	else
		mark(rq->__sector, bytes);
	note = find_note(rq, 0);
	if (!note)
		return;
	if (note->bytes) {
		/* Either this request, which may have completed in part before; or one before it, whose end and this one's beginning were missed. */
		int is_same = note->start == rq->start_time_ns && note->bytes >= rest &&
			      note->first + (note->bytes >> SECTOR_SHIFT) == rq->__sector + (rest >> SECTOR_SHIFT);

		if (!is_same)
			recover(cpu, note, note->bytes);
		else if (note->bytes > rest)
			recover(cpu, note, note->bytes - rest);
	}
	if (bytes < rest && !has_ranges(rq))
		write_note(note, rq->__sector + (bytes >> SECTOR_SHIFT), rest - bytes, rq->start_time_ns);
	else
		__sync_lock_test_and_set(&note->bytes, 0);
}

static __always_inline void on_bio_queue(struct bio *bio)
{
	struct range range = { .first = bio->bi_iter.bi_sector, .bytes = bio->bi_iter.bi_size };
	struct range *before;
	__u64 key = (__u64)bio;

	if (!is_ours(bio->bi_bdev->bd_disk) || !changes_range(bio->bi_opf & OP_MASK, range.bytes))
		return;
	/* A bio begins once: this is of one before it, whose end was missed. */
	before = bpf_map_lookup_elem(&bios, &key);
	if (before)
		mark(before->first, before->bytes);
	if (bpf_map_update_elem(&bios, &key, &range, BPF_ANY)) {
		__sync_fetch_and_add(&state.too_many_bios, 1);
		mark(range.first, range.bytes);
	}
}

static __always_inline void on_bio_complete(struct cpu *cpu, struct bio *bio)
{
	__u64 key = (__u64)bio, parent = (__u64)bio->bi_private;
	struct range *range = bpf_map_lookup_elem(&bios, &key);
	__u32 op = bio->bi_opf & OP_MASK;

	if (range) {
		/* As zram counts: no discards. */
		if (cpu && op == OP_WRITE)
			__sync_fetch_and_add(&cpu->sectors, range->bytes >> SECTOR_SHIFT);
		mark(range->first, range->bytes);
		bpf_map_delete_elem(&bios, &key);
		return;
	}
	/* A piece that was split off: the bio that it came from ends after it, and marks the whole. */
	if (bpf_map_lookup_elem(&bios, &parent))
		return;
	/* Queued before tracking started: its range is used up, what it changed is not known. */
	if (is_ours(BPF_CORE_READ(bio, bi_bdev, bd_disk)) &&
	    names_range(op))
		__sync_fetch_and_add(&state.unknown_bio, 1);
}

/* Three programs for one tracepoint; `DO` is what they do, once, for the event that `KEY` names. */
#define THREE(NAME, TRACEPOINT, KIND, KEY, DO, ...)                        \
	SEC("tp_btf/" TRACEPOINT) int BPF_PROG(NAME##_1, __VA_ARGS__)          \
	{                                                                      \
		struct cpu *cpu = this_cpu(KIND);                                  \
		if (cpu)                                                           \
			put_event(cpu, (__u64)(KEY));                                  \
		DO;                                                                \
		return 0;                                                          \
	}                                                                      \
	SEC("tp_btf/" TRACEPOINT) int BPF_PROG(NAME##_2, __VA_ARGS__)          \
	{                                                                      \
		struct cpu *cpu = this_cpu(KIND);                                  \
		if (!cpu || find_event(cpu, (__u64)(KEY)) >= 0)                    \
			return 0;                                                      \
		put_event(cpu, (__u64)(KEY));                                      \
		DO;                                                                \
		__sync_fetch_and_add(&cpu->covered, 1);                            \
		return 0;                                                          \
	}                                                                      \
	SEC("tp_btf/" TRACEPOINT) int BPF_PROG(NAME##_3, __VA_ARGS__)          \
	{                                                                      \
		struct cpu *cpu = this_cpu(KIND);                                  \
		if (!cpu || take_event(cpu, (__u64)(KEY)))                         \
			return 0;                                                      \
		DO;                                                                \
		__sync_fetch_and_add(&cpu->covered, 1);                            \
		return 0;                                                          \
	}

THREE(request, "block_rq_complete", COMPLETE, rq, on_request(cpu, rq, bytes), struct request *rq, int error, unsigned int bytes)
THREE(queue, "block_bio_queue", QUEUE, bio, on_bio_queue(bio), struct bio *bio)
THREE(complete, "block_bio_complete", COMPLETE, bio, on_bio_complete(cpu, bio), struct request_queue *q, struct bio *bio)

SEC("tp_btf/block_rq_issue") int BPF_PROG(issue, struct request *rq)
{
	on_issue(rq);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
