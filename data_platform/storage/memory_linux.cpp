// Texts that C++ grows beside DuckDB's allocator, such as what replace() makes, come from operator new. One block of it
// beyond all measure is refused, as the allocator refuses (memory_linux.go); what holds smaller ones is copied to there.

#include <cstddef>
#include <cstdlib>
#include <new>

extern "C" int naru_may_take(size_t n);

static void *take(std::size_t n) {
	if (n >= (std::size_t(64) << 20) && !naru_may_take(n)) {
		throw std::bad_alloc();
	}
	void *p = std::malloc(n ? n : 1);
	if (!p) {
		throw std::bad_alloc();
	}
	return p;
}

void *operator new(std::size_t n) { return take(n); }
void *operator new[](std::size_t n) { return take(n); }
void operator delete(void *p) noexcept { std::free(p); }
void operator delete[](void *p) noexcept { std::free(p); }
void operator delete(void *p, std::size_t) noexcept { std::free(p); }
void operator delete[](void *p, std::size_t) noexcept { std::free(p); }
