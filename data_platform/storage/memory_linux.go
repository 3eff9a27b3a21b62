// What DuckDB may take of the process's memory. Its own limit counts the blocks of tables and of what operators keep, and not
// the texts that expressions make: SELECT repeat('x', 100000000) over a vector of rows would take 200 GB, and the process
// along. So its allocator is asked here, by way of the linker's --wrap: beyond the limit it has nothing to give, which DuckDB
// tells as a query that is out of memory. Threads of pipelines have an amount of their own on top, which no query gets, and threads that load
// are exempt: it is no fault of theirs.

package storage

/*
#cgo LDFLAGS: -Wl,-wrap=duckdb_je_malloc -Wl,-wrap=duckdb_je_realloc -Wl,-wrap=duckdb_je_free
#include <stdatomic.h>
#include <stddef.h>

void *__real_duckdb_je_malloc(size_t n);
void *__real_duckdb_je_realloc(void *p, size_t n);
void __real_duckdb_je_free(void *p);
size_t duckdb_je_sallocx(const void *p, int flags);

// Smaller ones are not counted: DuckDB takes texts in chunks that grow beyond it.
#define NARU_LARGE (64 << 10)

// What databases have on top of their limits, together: while they are opened, and for what these do not count.
static _Atomic long long naru_most = 128LL << 20;
static _Atomic long long naru_more; // that threads of pipelines have beyond it
static _Atomic long long naru_live;
static _Thread_local int naru_rank; // 0 queries, 1 pipelines, 2 exempt

static long long naru_limit(int rank) { return atomic_load(&naru_most) + (rank ? atomic_load(&naru_more) : 0); }

static int naru_take(size_t n) {
	long long live = atomic_fetch_add(&naru_live, (long long)n) + (long long)n;
	if (naru_rank == 2 || live <= naru_limit(naru_rank)) return 1;
	atomic_fetch_sub(&naru_live, (long long)n);
	return 0;
}

static void naru_give(size_t n) {
	if (n >= NARU_LARGE) atomic_fetch_sub(&naru_live, (long long)n);
}

void *__wrap_duckdb_je_malloc(size_t n) {
	if (n < NARU_LARGE / 2) return __real_duckdb_je_malloc(n); // the allocator rounds up by a quarter at most
	if (!naru_take(n)) return NULL;
	void *p = __real_duckdb_je_malloc(n);
	size_t got = p ? duckdb_je_sallocx(p, 0) : 0;
	atomic_fetch_add(&naru_live, (long long)(got >= NARU_LARGE ? got : 0) - (long long)n);
	return p;
}

void __wrap_duckdb_je_free(void *p) {
	if (p) naru_give(duckdb_je_sallocx(p, 0));
	__real_duckdb_je_free(p);
}

void *__wrap_duckdb_je_realloc(void *p, size_t n) {
	size_t had = p ? duckdb_je_sallocx(p, 0) : 0;
	if (n >= NARU_LARGE && n > had) {
		if (!naru_take(n)) return NULL;
		atomic_fetch_sub(&naru_live, (long long)n); // it was a question
	}
	void *q = __real_duckdb_je_realloc(p, n);
	if (!q) return NULL;
	naru_give(had);
	size_t got = duckdb_je_sallocx(q, 0);
	if (got >= NARU_LARGE) atomic_fetch_add(&naru_live, (long long)got);
	return q;
}

// Whether this thread may have one block so large, of another allocator.
int naru_may_take(size_t n) { return naru_rank == 2 || n <= (256u << 20); }

static void naru_allow(long long n) { atomic_fetch_add(&naru_most, n); }
static void naru_allow_pipelines(long long n) { atomic_fetch_add(&naru_more, n); }
static int naru_rank_this_thread(int rank) { int was = naru_rank; naru_rank = rank; return was; }
static long long naru_spare(void) { return naru_limit(1) - atomic_load(&naru_live); }
*/
import "C"

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// allow adds to what DuckDB may take in this process, and allowPipelines to what pipelines may beyond that.
func allow(bytes int64) { C.naru_allow(C.longlong(bytes)) }

func allowPipelines(bytes int64) { C.naru_allow_pipelines(C.longlong(bytes)) }

// spare is what there is for a pipeline.
func spare() int64 { return int64(C.naru_spare()) }

// exempt calls f on a thread that is given memory beyond all limits.
func exempt(f func() error) error { return ranked(2, f) }

// piping calls f on a thread that is given what pipelines have.
func piping(f func() error) error { return ranked(1, f) }

func ranked(rank C.int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was := C.naru_rank_this_thread(rank)
	defer C.naru_rank_this_thread(was)
	return f()
}

// aside calls f on a thread of its own, which has a processor when others do not want it.
func aside(f func()) {
	runtime.LockOSThread() // and never unlock: the thread goes with the goroutine, since it must not be given back like this
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), asideNice)
	f()
}

// asideNice is a tenth of the share of others, about.
const asideNice = 10
